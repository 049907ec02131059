// Around cuBLAS's products of a layer: bias, activation and dropout forward, slope and bias gradient back.
#include "common.cuh"
#include "philox.cuh"
#include "activations.cuh"
#include "step.cuh"

// Threads (32, 8): each takes four consecutive columns of every row that is its turn, so that one Philox counter
// serves a thread and wide loads are possible.
constexpr int QUADS = 32, ROWS = 8;

// z becomes f(z + b), slope (where there is one) f'(z + b).  b may be null.
template <typename T>
__global__ void __launch_bounds__(QUADS * ROWS, 1)
bias_activation(int activation, const T* __restrict__ b_o, T* __restrict__ z_no, T* __restrict__ slope_no, long long n,
                long long o, bool wide) {
  long long column = ((long long)blockIdx.y * QUADS + threadIdx.x) * 4;
  if (column >= o) return;
  int count = int(o - column < 4 ? o - column : 4);
  Four<T> bias{};
  if (b_o != nullptr) bias = load_four(b_o + column, wide, count);
  for (long long row = (long long)blockIdx.x * ROWS + threadIdx.y; row < n; row += (long long)gridDim.x * ROWS) {
    long long at = row * o + column;
    Four<T> z = load_four(z_no + at, wide, count), slope;
#pragma unroll
    for (int j = 0; j < 4; ++j) z.v[j] = activate(activation, z.v[j] + bias.v[j], slope.v[j]);
    store_four(z_no + at, z, wide, count);
    if (slope_no != nullptr) store_four(slope_no + at, slope, wide, count);
  }
}

// The same, then dropout of layer `layer`: activations and slopes are multiplied by mask / (1 - rate).  Of the rows of
// the batch these are `first_row` and those after it.
template <typename T>
__global__ void __launch_bounds__(QUADS * ROWS, 1)
bias_activation_dropout(int activation, const T* __restrict__ b_o, T* __restrict__ z_no, T* __restrict__ slope_no,
                        long long n, long long o, bool wide, unsigned int threshold, T scale, unsigned long long key,
                        const long long* __restrict__ cursor, int index, int layer, long long first_row) {
  long long column = ((long long)blockIdx.y * QUADS + threadIdx.x) * 4;
  if (column >= o) return;
  int count = int(o - column < 4 ? o - column : 4);
  Dropout<T> dropout{threshold, scale, key, step_number(cursor, index), (unsigned int)layer};
  Four<T> bias = load_four(b_o + column, wide, count);
  for (long long row = (long long)blockIdx.x * ROWS + threadIdx.y; row < n; row += (long long)gridDim.x * ROWS) {
    long long at = row * o + column;
    Four<T> z = load_four(z_no + at, wide, count), slope, factors = dropout.factors(first_row + row, column / 4);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      z.v[j] = activate(activation, z.v[j] + bias.v[j], slope.v[j]) * factors.v[j];
      slope.v[j] *= factors.v[j];
    }
    store_four(z_no + at, z, wide, count);
    if (slope_no != nullptr) store_four(slope_no + at, slope, wide, count);
  }
}

// a, and slope where there is one, are multiplied by mask / (1 - rate).
template <typename T>
__global__ void __launch_bounds__(QUADS * ROWS, 1)
dropout(T* __restrict__ a_no, T* __restrict__ slope_no, long long n, long long o, bool wide, unsigned int threshold,
        T scale, unsigned long long key, unsigned int step, int layer, long long first_row) {
  long long column = ((long long)blockIdx.y * QUADS + threadIdx.x) * 4;
  if (column >= o) return;
  int count = int(o - column < 4 ? o - column : 4);
  Dropout<T> mask{threshold, scale, key, step, (unsigned int)layer};
  for (long long row = (long long)blockIdx.x * ROWS + threadIdx.y; row < n; row += (long long)gridDim.x * ROWS) {
    long long at = row * o + column;
    Four<T> factors = mask.factors(first_row + row, column / 4), a = load_four(a_no + at, wide, count);
#pragma unroll
    for (int j = 0; j < 4; ++j) a.v[j] *= factors.v[j];
    store_four(a_no + at, a, wide, count);
    if (slope_no == nullptr) continue;
    Four<T> slope = load_four(slope_no + at, wide, count);
#pragma unroll
    for (int j = 0; j < 4; ++j) slope.v[j] *= factors.v[j];
    store_four(slope_no + at, slope, wide, count);
  }
}

// d *= slope, told by the activation where slope is null; flat arrays of n numbers.
template <typename T>
__global__ void __launch_bounds__(256, 1)
activation_gradient(int activation, const T* __restrict__ a, const T* __restrict__ slope, T* __restrict__ d, long long n) {
  for (long long i = blockIdx.x * 256ll + threadIdx.x; i < n; i += gridDim.x * 256ll)
    d[i] *= slope != nullptr ? slope[i] : slope_from_output(activation, a[i]);
}

// The sums of the columns of d: the bias gradient.  Threads (32, 8), a block for 32 columns of a slab of rows: slab s
// writes db + s * slab_stride, and whoever reads them adds the slabs in order.
template <typename T>
__global__ void __launch_bounds__(256, 1)
column_sums(const T* __restrict__ d_no, T* __restrict__ db_so, long long slab_stride, long long n, long long o) {
  __shared__ T parts[ROWS][WARP];
  long long column = (long long)blockIdx.x * WARP + threadIdx.x;
  long long first = n * blockIdx.y / gridDim.y, last = n * (blockIdx.y + 1) / gridDim.y;
  T sum = 0;
  if (column < o)
    for (long long row = first + threadIdx.y; row < last; row += ROWS) sum += d_no[row * o + column];
  parts[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y == 0 && column < o) {
    for (int r = 1; r < ROWS; ++r) sum += parts[r][threadIdx.x];
    db_so[blockIdx.y * slab_stride + column] = sum;
  }
}
