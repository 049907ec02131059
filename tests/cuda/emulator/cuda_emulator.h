// CUDA on a CPU, for tests: what a .cu file finds here instead of the CUDA compiler's own names.
//
// Each CUDA thread is a fiber (a stack of its own, switched by hand), and blocks run one after another on one OS thread.
// A fiber runs until it waits: at a barrier, or in a warp collective.  In what order fibers run is shuffled by a seed, so
// that code which happens to be right in one order does not stay so.  Every load and store of a kernel is seen by
// memory_checker.cpp, because kernels are compiled with g++'s thread sanitizer switched on and our functions in place
// of its library.  An index of an array whose size the source tells, in shared memory or of a thread's own, is looked at
// too (g++'s check of bounds): neither a neighbour in shared memory nor another variable can be taken for an element.
//
// Code that narrows a number without saying so does not compile either (-Werror=conversion): an index of a large array
// stays 64 bits wide.
//
// A kernel is compiled as NVRTC compiles it by default and as CuPy asks: a product and the sum that it goes into are one
// operation, rounded once (where this processor has such), and subnormal float32 numbers are zero, while those of float64
// are kept.  The processor knows but one switch for both types, so it is set for each launch: a kernel that takes float32
// numbers of any kind runs with it, and what it computes in float64 besides is flushed too.
//
// Not modelled: half precision, atomics, fences, dynamic shared memory, and the ordering of memory within a warp.
// fastmlp's kernels use none of these; a kernel that does will not compile here.
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <string>
#include <type_traits>
#include <utility>
#include <vector>

// --- the names that a kernel uses ---

#define __global__ __attribute__((noinline))  // kept apart from the code that reads its arguments
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __shared__ static thread_local  // so the thread-local memory of the compiled file is a block's shared memory

// A thread's or block's number, or how many there are: 32 bits, as in CUDA.  A product with another 32-bit number, which
// may overflow where there are many rows and columns, does not compile here: `(long long)blockIdx.x * THREADS` does.
struct Index {
  unsigned int value;
  __attribute__((always_inline)) operator unsigned int() const { return value; }
};
template <class T> __attribute__((always_inline)) inline T operator*(Index a, T b) {
  static_assert(sizeof(T) == 8, "a 32-bit product of an index: make one factor a long long first");
  return T(a.value) * b;
}
template <class T> __attribute__((always_inline)) inline T operator*(T a, Index b) { return b * a; }
int operator*(Index, Index) = delete;

struct Dim3 {
  Index x, y, z;
};
extern "C" Dim3 threadIdx, blockIdx, blockDim, gridDim;

inline double __longlong_as_double(long long bits) {
  double value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// --- waiting; see runtime.cpp ---

namespace emulator {
void barrier(int line);
// Each lane named in `mask` hands in eight bytes; once all have, returns those of the lane whose number differs in the
// bits of `difference`.
uint64_t exchange(uint32_t mask, uint64_t bytes, int difference, int line);
}  // namespace emulator

// The line of the call is an argument that the caller need not write.
inline void __syncthreads(int line = __builtin_LINE()) { emulator::barrier(line); }

template <class T> T __shfl_xor_sync(uint32_t mask, T value, int lanes, int line = __builtin_LINE()) {
  static_assert(sizeof(T) <= 8, "a shuffle moves at most eight bytes");
  uint64_t bytes = 0;
  __builtin_memcpy(&bytes, &value, sizeof value);
  bytes = emulator::exchange(mask, bytes, lanes, line);
  __builtin_memcpy(&value, &bytes, sizeof value);
  return value;
}

// --- kernels by name, with their signatures as the host must know them ---

namespace emulator {
template <class A> std::string type_name() {
  using P = std::remove_cv_t<A>;
  using Target = std::remove_pointer_t<P>;
  if constexpr (std::is_pointer_v<P>) return (std::is_const_v<Target> ? "const " : "") + type_name<Target>() + "*";
  else if constexpr (std::is_same_v<P, float>) return "float32";
  else if constexpr (std::is_same_v<P, double>) return "float64";
  else if constexpr (std::is_same_v<P, bool>) return "bool";
  else return (std::is_signed_v<P> ? "int" : "uint") + std::to_string(8 * sizeof(P));
}

template <auto K> struct Kernel;
template <class... A, void (*K)(A...)> struct Kernel<K> {
  // reading the arguments is not an access of the kernel
  template <size_t... I> __attribute__((no_sanitize_thread)) static void call(void** arguments, std::index_sequence<I...>) {
    K(*(std::remove_cv_t<A>*)arguments[I]...);
  }
  __attribute__((no_sanitize_thread)) static void entry(void** arguments) { call(arguments, std::index_sequence_for<A...>()); }
  static std::string signature() {
    std::string all;
    ((all += type_name<A>() + ","), ...);
    return all;
  }
};

struct Entry {
  void (*run)(void**);
  std::string signature;
};
}  // namespace emulator
