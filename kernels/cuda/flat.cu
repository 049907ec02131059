// Beside training steps: operations of the backend interface on flat arrays.  Grid-stride loops, 256 threads.
#include "common.cuh"

constexpr int THREADS = 256;

__device__ __forceinline__ long long first_element() { return blockIdx.x * (long long)THREADS + threadIdx.x; }
__device__ __forceinline__ long long grid_stride() { return gridDim.x * (long long)THREADS; }

// target += factor * source
template <typename T>
__global__ void __launch_bounds__(THREADS)
add_scaled(T* __restrict__ target, const T* __restrict__ source, T factor, long long n) {
  for (long long i = first_element(); i < n; i += grid_stride()) target[i] += factor * source[i];
}

// array *= factor
template <typename T> __global__ void __launch_bounds__(THREADS) scale(T* __restrict__ array, T factor, long long n) {
  for (long long i = first_element(); i < n; i += grid_stride()) array[i] *= factor;
}

// mean += (p - mean) * part
template <typename T>
__global__ void __launch_bounds__(THREADS)
average(T* __restrict__ mean, const T* __restrict__ p, T part, long long n) {
  for (long long i = first_element(); i < n; i += grid_stride()) mean[i] += (p[i] - mean[i]) * part;
}

// partials[b]: the sum of squares of what block b looks at, in double
template <typename T>
__global__ void __launch_bounds__(THREADS)
squared_norm(const T* __restrict__ array, double* __restrict__ partials, long long n) {
  double sum = 0;
  for (long long i = first_element(); i < n; i += grid_stride()) sum += double(array[i]) * double(array[i]);
  sum = Group<THREADS / WARP>::sum(sum);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}
