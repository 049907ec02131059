// First launch of a step: rows of a data set, taken in an order, in the type that is computed in.
#include "common.cuh"
#include "philox.cuh"
#include "step.cuh"

// Bytes are pictures: 0..255 becomes 0..1.  `bool` is not a byte here.
template <typename T, typename S> __device__ __forceinline__ T converted(S v) { return T(v); }
template <> __device__ __forceinline__ float converted<float, unsigned char>(unsigned char v) { return float(v) / 255.0f; }
template <> __device__ __forceinline__ double converted<double, unsigned char>(unsigned char v) { return double(v) / 255.0; }

// out[n, c] = source[order[n], c].  One warp a row; blocks of 8 warps.
template <typename S, typename T>
__global__ void __launch_bounds__(256, 1)
gather_rows(const S* __restrict__ source_sc, const long long* __restrict__ order_n, T* __restrict__ out_nc, long long n,
            long long c) {
  long long row = (long long)blockIdx.x * (blockDim.x / WARP) + warp_id();
  if (row >= n) return;
  const S* from = source_sc + order_n[row] * c;
  T* to = out_nc + row * c;
  for (long long j = lane_id(); j < c; j += WARP) to[j] = converted<T, S>(from[j]);
}

// The batch of a training step in one launch: inputs with their dropout, targets, row weights (null where there are
// none).  Y is `long long` for labels (k = 1), else T.  Rows are taken, and numbered, from `first_row` of the batch on.
// One warp a row; blocks of 8 warps.
template <typename S, typename Y, typename T>
__global__ void __launch_bounds__(256, 1)
gather_batch(const S* __restrict__ source_si, const Y* __restrict__ targets_sk, const T* __restrict__ weights_s,
             const long long* __restrict__ order, const long long* __restrict__ cursor, int index, long long batch,
             T* __restrict__ x_ni, Y* __restrict__ y_nk, T* __restrict__ w_n, long long n, long long i, long long k,
             unsigned int threshold, T scale, unsigned long long key, long long first_row) {
  long long row = (long long)blockIdx.x * (blockDim.x / WARP) + warp_id();
  if (row >= n) return;
  long long source_row = order[batch_in_epoch(cursor, index) * batch + first_row + row];
  const S* from = source_si + source_row * i;
  T* to = x_ni + row * i;
  if (threshold == 0) {
    for (long long j = lane_id(); j < i; j += WARP) to[j] = converted<T, S>(from[j]);
  } else {
    Dropout<T> dropout{threshold, scale, key, step_number(cursor, index), 0};
    for (long long quad = lane_id(); 4 * quad < i; quad += WARP) {
      Four<T> factors = dropout.factors(first_row + row, quad);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        long long column = 4 * quad + j;
        if (column < i) to[column] = converted<T, S>(from[column]) * factors.v[j];
      }
    }
  }
  for (long long j = lane_id(); j < k; j += WARP) y_nk[row * k + j] = targets_sk[source_row * k + j];
  if (weights_s != nullptr && lane_id() == 0) w_n[row] = weights_s[source_row];
}
