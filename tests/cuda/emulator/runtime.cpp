// The scheduler of the emulator: fibers, barriers, warp collectives, one launch.  Compiled without the sanitizer.
#include <link.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <xmmintrin.h>

#include <algorithm>

#include "cuda_emulator.h"
#include "memory_checker.h"

Dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

// Save what a function must preserve, exchange the stack pointers, restore.
extern "C" void emulator_switch(void** save, void* load);
#if defined(__x86_64__)
asm(".text\n.local emulator_switch\n.type emulator_switch,@function\nemulator_switch:\n"
    " push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
    " mov %rsp,(%rdi)\n mov %rsi,%rsp\n"
    " pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n");
#else
#error "the emulator needs a context switch written for this processor"
#endif

constexpr size_t STACK = 64 * 1024;
constexpr int LANES = 32;

enum State { READY, AT_BARRIER, IN_COLLECTIVE, DONE };

struct Fiber {
  void* stack_pointer;
  char* stack = nullptr;
  Dim3 thread;
  int number, line;
  State state;
};

struct Collective {  // of the lanes in a mask
  uint32_t mask, arrived = 0;
  uint64_t generation = 0;
  int line = 0;
  uint64_t bytes[2][LANES];  // of this call and the one before, which slow lanes may still read
};

struct Warp {
  std::vector<Collective> collectives;
  uint32_t alive = 0;
};

static std::vector<Fiber> fibers;
static std::vector<Warp> warps;
static Fiber* current;
static void* scheduler;  // its stack pointer
static void (*entry)(void**);
static void** entry_arguments;
static int live, waiting, barrier_line;
static uint64_t barriers_passed, progress, random_state;
static std::string error;

static uint32_t random_number() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return uint32_t(random_state >> 16);
}

template <class V> static void shuffle(V& items) {
  for (size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[random_number() % i]);
}

static void yield() { emulator_switch(&current->stack_pointer, scheduler); }

static int lane() { return current->number % LANES; }

// The fiber is never run again.
void stop(const char* complaint) {
  if (error.empty()) error = complaint;
  yield();
}

static void fail(const char* what, int line) {
  char text[400];
  snprintf(text, sizeof text, "%s (line %d, block %u,%u,%u thread %u,%u,%u)", what, line, blockIdx.x.value,
           blockIdx.y.value, blockIdx.z.value, threadIdx.x.value, threadIdx.y.value, threadIdx.z.value);
  stop(text);
}

// Called by kernels, with the place in the source and the index, where an array of known size has no such element.
extern "C" void __ubsan_handle_out_of_bounds(const void* where, uintptr_t) {
  struct Place {
    const char* file;
    uint32_t line, column;
  };
  fail("an index beyond the end of its array", int(static_cast<const Place*>(where)->line));
}

static void open_barrier() {
  waiting = 0;
  ++barriers_passed;
  checker::next_interval();
}

void barrier(int line) {
  if (waiting == 0) barrier_line = line;
  if (barrier_line != line) fail("__syncthreads: threads of a block wait at different barriers", line);
  uint64_t passed = barriers_passed;
  current->state = AT_BARRIER;
  current->line = line;
  ++progress;
  if (++waiting == live) open_barrier();
  while (barriers_passed == passed) yield();
  current->state = READY;
}

static Collective& collective_of(Warp& warp, uint32_t mask) {
  for (auto& c : warp.collectives)
    if (c.mask == mask) return c;
  warp.collectives.push_back({mask});
  return warp.collectives.back();
}

uint64_t exchange(uint32_t mask, uint64_t bytes, int difference, int line) {
  Warp& warp = warps[current->number / LANES];
  if (!(mask >> lane() & 1)) fail("warp collective: the calling lane is not in its own mask", line);
  if (mask & ~warp.alive) fail("warp collective: the mask names lanes that have ended or do not exist", line);
  collective_of(warp, mask);
  size_t which = &collective_of(warp, mask) - warp.collectives.data();
  auto here = [&]() -> Collective& { return warp.collectives[which]; };  // others may move the vector
  if (here().arrived == 0) here().line = line;
  if (here().line != line) fail("warp collective: lanes of a warp wait at different calls", line);
  uint64_t generation = here().generation;
  here().bytes[generation % 2][lane()] = bytes;
  here().arrived |= 1u << lane();
  current->state = IN_COLLECTIVE;
  current->line = line;
  ++progress;
  if (here().arrived == mask) {
    here().arrived = 0;
    ++here().generation;
  }
  while (here().generation == generation) yield();
  current->state = READY;
  int other = lane() ^ difference;
  if (other >= LANES || !(mask >> other & 1)) fail("a shuffle reads a lane that takes no part", line);
  return here().bytes[generation % 2][other];
}

static void run_fiber() {
  entry(entry_arguments);
  current->state = DONE;
  ++progress;
  --live;
  warps[current->number / LANES].alive &= ~(1u << lane());
  if (live && waiting == live) open_barrier();  // CUDA too counts only threads that have not ended
  emulator_switch(&current->stack_pointer, scheduler);
}

// The thread-local memory of the kernels' file: their static shared memory.
static thread_local char anchor;
struct Memory {
  char* start = nullptr;
  size_t size = 0;
};
static int find_thread_locals(dl_phdr_info* module, size_t, void* result) {
  auto* found = (Memory*)result;
  bool ours = false;
  for (int k = 0; k < module->dlpi_phnum; ++k) {
    auto& part = module->dlpi_phdr[k];
    uintptr_t start = module->dlpi_addr + part.p_vaddr, here = (uintptr_t)&fibers;
    ours |= part.p_type == PT_LOAD && here >= start && here < start + part.p_memsz;
  }
  for (int k = 0; ours && k < module->dlpi_phnum; ++k)
    if (module->dlpi_phdr[k].p_type == PT_TLS) *found = {(char*)module->dlpi_tls_data, module->dlpi_phdr[k].p_memsz};
  return ours;
}

static void start_fiber(Fiber& fiber, unsigned int number) {
  fiber.number = int(number);
  unsigned int x = blockDim.x, y = blockDim.y;
  fiber.thread = {number % x, number / x % y, number / (x * y)};
  fiber.state = READY;
  void** top = (void**)((uintptr_t)(fiber.stack + STACK) & ~uintptr_t(15));
  *--top = nullptr;           // where run_fiber would return to
  *--top = (void*)run_fiber;  // where the first switch returns to
  top -= 6;                   // six registers
  memset(top, 0, 6 * sizeof(void*));
  fiber.stack_pointer = top;
}

static void run_block(uint64_t number, const Memory& shared, bool shuffled) {
  size_t threads = size_t(blockDim.x) * blockDim.y * blockDim.z;
  blockIdx = {unsigned(number % gridDim.x), unsigned(number / gridDim.x % gridDim.y),
              unsigned(number / (uint64_t(gridDim.x) * gridDim.y))};
  memset(shared.start, 0xff, shared.size);  // NaN, so that what is read before it is written shows
  checker::begin_block(long(number));
  live = int(threads);
  waiting = 0;
  std::vector<unsigned int> order(threads);
  for (auto& warp : warps) warp = Warp();
  for (unsigned int i = 0; i < threads; ++i) {
    start_fiber(fibers[i], i);
    warps[i / LANES].alive |= 1u << i % LANES;
    order[i] = i;
  }
  for (int idle = 0; live;) {
    if (shuffled) shuffle(order);
    uint64_t before = progress;
    for (unsigned int i : order) {
      if (fibers[i].state == DONE) continue;
      current = &fibers[i];
      threadIdx = current->thread;
      checker::switch_to(int(i), current->stack, STACK);
      checker::watch(true);
      emulator_switch(&scheduler, current->stack_pointer);
      checker::watch(false);
      if (!error.empty()) return;
    }
    idle = progress == before ? idle + 1 : 0;
    if (idle > 1) {
      int at_barrier = 0, in_collective = 0, lines[2] = {0, 0};
      for (size_t i = 0; i < threads; ++i) {
        if (fibers[i].state == AT_BARRIER) ++at_barrier, lines[0] = fibers[i].line;
        if (fibers[i].state == IN_COLLECTIVE) ++in_collective, lines[1] = fibers[i].line;
      }
      char text[300];
      snprintf(text, sizeof text, "deadlock in block %u,%u,%u: %d threads at __syncthreads (line %d), %d in a warp "
               "collective (line %d), %d have ended", blockIdx.x.value, blockIdx.y.value, blockIdx.z.value, at_barrier, lines[0],
               in_collective, lines[1], int(threads) - live);
      error = text;
      return;
    }
  }
}

static sigjmp_buf after_fault;
static volatile bool running;

static void on_fault(int, siginfo_t* what, void*) {
  if (!running) {
    signal(SIGSEGV, SIG_DFL);
    return;
  }
  char text[200];
  snprintf(text, sizeof text, "illegal memory access at %p (block %u,%u,%u thread %u,%u,%u)", what->si_addr, blockIdx.x.value,
           blockIdx.y.value, blockIdx.z.value, threadIdx.x.value, threadIdx.y.value, threadIdx.z.value);
  error = text;
  siglongjmp(after_fault, 1);
}

static void run_grid(uint64_t seed) {
  size_t threads = size_t(blockDim.x) * blockDim.y * blockDim.z;
  for (size_t i = fibers.size(); i < threads; ++i) {
    fibers.emplace_back();
    fibers.back().stack = (char*)malloc(STACK);
  }
  warps.resize((threads + LANES - 1) / LANES);
  *(volatile char*)&anchor = 0;  // so that this thread has the module's thread-local memory
  Memory shared;
  dl_iterate_phdr(find_thread_locals, &shared);
  random_state = seed * 0x9E3779B97F4A7C15ull + 1;
  std::vector<uint64_t> blocks(uint64_t(gridDim.x) * gridDim.y * gridDim.z);
  for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = i;
  if (seed) shuffle(blocks);
  Dim3* indices[4] = {&threadIdx, &blockIdx, &blockDim, &gridDim};
  checker::begin_launch(shared.start, shared.size, (void**)indices);
  for (uint64_t block : blocks) {
    run_block(block, shared, seed != 0);
    if (!error.empty()) return;
  }
}

}  // namespace emulator

extern const emulator::Entry emulator_kernels[];

extern "C" const char* emulator_signature(int kernel) { return emulator_kernels[kernel].signature.c_str(); }

// Run a kernel; return what went wrong, or null.  sizes: grid x, y, z, block x, y, z.  Seed 0: threads in order.
extern "C" const char* emulator_launch(int kernel, const unsigned int* sizes, uint64_t seed, void** arguments) {
  using namespace emulator;
  error.clear();
  gridDim = {sizes[0], sizes[1], sizes[2]};
  blockDim = {sizes[3], sizes[4], sizes[5]};
  entry = emulator_kernels[kernel].run;
  entry_arguments = arguments;
  static char alternate[64 * 1024];  // a fault may be a stack that is full
  stack_t stack{alternate, 0, sizeof alternate}, old_stack;
  sigaltstack(&stack, &old_stack);
  struct sigaction action {}, old_segv, old_bus;
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaction(SIGSEGV, &action, &old_segv);
  sigaction(SIGBUS, &action, &old_bus);
  unsigned int modes = _mm_getcsr();
  // CuPy compiles with -ftz=true, which is about float32 alone: subnormal operands and results are zero
  bool flushed = emulator_kernels[kernel].signature.find("float32") != std::string::npos;
  if (flushed) _mm_setcsr(modes | 0x8040);
  running = true;
  if (sigsetjmp(after_fault, 1) == 0) run_grid(seed);
  running = false;
  checker::watch(false);
  _mm_setcsr(modes);
  sigaction(SIGSEGV, &old_segv, nullptr);
  sigaction(SIGBUS, &old_bus, nullptr);
  sigaltstack(&old_stack, nullptr);
  return error.empty() ? nullptr : error.c_str();
}
