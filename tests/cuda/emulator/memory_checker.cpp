// Sees every load and store of a kernel and stops at
//   - races: two threads touch one place, one of them writes, and nothing orders them: no barrier between them within a
//     block; between blocks of one launch nothing ever does;
//   - accesses outside the arrays that the launch was given, and writes to those that it may only read;
//   - misaligned accesses, wide ones above all: a CPU forgives them, a GPU does not.
// It also counts the distinct bytes that a launch reads and writes.  g++ -fsanitize=thread inserts the calls at the end
// of this file; races are found in whatever order threads run, because it is the barriers that are compared, not times.
#include "memory_checker.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <map>
#include <memory>
#include <utility>
#include <vector>

namespace checker {

constexpr int SEVERAL = -2;
constexpr size_t CELL = 4;  // bytes that are watched as one; no kernel writes anything smaller

struct Access {  // zeros: nobody's
  uint64_t interval;  // between two barriers of one block of one launch; later ones have higher numbers
  int thread, block;
};
struct Cell {
  Access write, read;
};
struct Region {
  char *start, *stop;
  bool writable, shared;
  Cell* cells;
};

static std::vector<Region> regions;
// What is known of each array is kept from launch to launch, where it is out of date by the number of the launch:
// clearing it would take longer than most launches.  Nor are the zeros written that a new array begins with.
struct Free {
  void operator()(Cell* cells) { free(cells); }
};
static std::map<std::pair<char*, size_t>, std::unique_ptr<Cell[], Free>> kept;
static size_t kept_cells;
constexpr size_t MOST_CELLS = 4 << 20;
static Region* last_hit;
static void** index_variables;
static char *stack_start, *stack_stop;
static int thread, block;
static uint64_t interval, first_of_launch, bytes_read, bytes_written;
static bool watching;

void watch(bool on) { watching = on; }
void next_interval() { ++interval; }

static void add_region(char* start, size_t size, bool writable, bool shared) {
  auto& cells = kept[{start, size}];
  if (!cells) {
    size_t count = (size + 2 * CELL - 1) / CELL;
    cells.reset((Cell*)calloc(count, sizeof(Cell)));
    kept_cells += count;
  }
  regions.push_back({start, start + size, writable, shared, cells.get()});
}

void begin_launch(char* shared, size_t shared_size, void** indices) {
  index_variables = indices;
  add_region(shared, shared_size, true, true);
  bytes_read = bytes_written = 0;
  last_hit = nullptr;
  first_of_launch = interval + 1;
}

void begin_block(long number) {
  block = int(number);
  ++interval;
}

void switch_to(int number, char* stack, size_t stack_size) {
  thread = number;
  stack_start = stack;
  stack_stop = stack + stack_size;
}

static Region* region_of(char* address) {
  for (auto& region : regions)
    if (address >= region.start && address < region.stop) return last_hit = &region;
  return nullptr;
}

static bool conflicts(const Access& other, bool shared) {
  if (other.interval < first_of_launch) return false;
  if (other.block != block) return !shared;  // SEVERAL blocks, or another one; shared memory is each block's own
  return other.thread != thread && other.interval == interval;
}

static void remember(Access& last) {
  bool same_launch = last.interval >= first_of_launch;
  int who = last.interval == interval && last.thread != thread ? SEVERAL : thread;
  int where = same_launch && last.block != block ? SEVERAL : block;
  last = {interval, who, where};
}

static void access(void* pointer, size_t size, bool write, bool aligned) {
  if (!watching) return;
  char* address = (char*)pointer;
  Region* region = last_hit;
  if (!region || address < region->start || address >= region->stop) {
    if (address >= stack_start && address < stack_stop) return;
    for (int i = 0; i < 4; ++i)
      if (address >= (char*)index_variables[i] && address < (char*)index_variables[i] + 12) return;
    region = region_of(address);
  }
  char text[300];
  const char* what = write ? "write" : "read";
  if (region == nullptr || address + size > region->stop) {
    snprintf(text, sizeof text, "%zu-byte %s outside the arrays given, by thread %d of block %d", size, what, thread, block);
    emulator::stop(text);
    return;
  }
  if (write && !region->writable) {
    snprintf(text, sizeof text, "write to an array that may only be read, by thread %d of block %d", thread, block);
    emulator::stop(text);
  }
  if (aligned && (uintptr_t)address % size) {
    snprintf(text, sizeof text, "misaligned %zu-byte %s by thread %d of block %d", size, what, thread, block);
    emulator::stop(text);
  }
  size_t last = (address + size - 1 - region->start) / CELL;
  for (size_t i = (address - region->start) / CELL; i <= last; ++i) {
    Cell& cell = region->cells[i];
    bool after_write = conflicts(cell.write, region->shared), after_read = write && conflicts(cell.read, region->shared);
    if (after_write || after_read) {
      const Access& other = after_write ? cell.write : cell.read;
      snprintf(text, sizeof text, "race on %s memory: %s by thread %d of block %d, %s by thread %d of block %d, and "
               "nothing orders them", region->shared ? "shared" : "global", what, thread, block,
               after_write ? "write" : "read", other.thread, other.block);
      emulator::stop(text);
    }
    Access& own = write ? cell.write : cell.read;
    if (!region->shared && own.interval < first_of_launch) (write ? bytes_written : bytes_read) += CELL;
    remember(own);
  }
}

}  // namespace checker

extern "C" {
void checker_forget() {
  checker::regions.clear();
  if (checker::kept_cells < checker::MOST_CELLS) return;
  checker::kept.clear();
  checker::kept_cells = 0;
}
void checker_allow(char* start, size_t size, int writable) { checker::add_region(start, size, writable, false); }
uint64_t checker_bytes(int written) { return written ? checker::bytes_written : checker::bytes_read; }

#define ACCESSES(n)                                                                             \
  void __tsan_read##n(void* p) { checker::access(p, n, false, true); }                          \
  void __tsan_write##n(void* p) { checker::access(p, n, true, true); }                          \
  void __tsan_unaligned_read##n(void* p) { checker::access(p, n, false, true); }                \
  void __tsan_unaligned_write##n(void* p) { checker::access(p, n, true, true); }
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
void __tsan_read_range(void* p, size_t n) { checker::access(p, n, false, n <= 16); }
void __tsan_write_range(void* p, size_t n) { checker::access(p, n, true, n <= 16); }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
}
