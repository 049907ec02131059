// Threads numbered within a warp and a block, sums and maxima over them, wide loads; every .cu file includes it first.
//
// Sizes and offsets are `long long` wherever rows and columns are multiplied: 65,536 rows of 65,536 columns are more
// than 32 bits can count.  Sums are taken in an order that depends on the launch alone, so results are the same bits
// every time; nothing is added atomically and no block waits for another.
//
// Blocks have 256 threads.  Where a second launch bound of 1 stands, the compiler would otherwise save registers by
// spilling some.
#pragma once

constexpr int WARP = 32;
constexpr unsigned int ALL_LANES = 0xffffffffu;

// NVRTC has no <math.h>, and so no INFINITY
template <typename T> __device__ __forceinline__ T infinity() { return T(__longlong_as_double(0x7ff0000000000000LL)); }

template <typename T> __device__ __forceinline__ bool is_nan(T v) { return v != v; }

__device__ __forceinline__ bool is_finite(double v) { return v - v == 0; }

__device__ __forceinline__ int lane_id() { return int(threadIdx.x) % WARP; }
__device__ __forceinline__ int warp_id() { return int(threadIdx.x) / WARP; }

template <typename T> __device__ __forceinline__ T warp_sum(T v) {
  for (int offset = WARP / 2; offset > 0; offset /= 2) v += __shfl_xor_sync(ALL_LANES, v, offset);
  return v;
}

template <typename T> __device__ __forceinline__ T warp_max(T v) {
  for (int offset = WARP / 2; offset > 0; offset /= 2) {
    T other = __shfl_xor_sync(ALL_LANES, v, offset);
    v = other > v ? other : v;
  }
  return v;
}

// The threads that work on one row: a warp by itself (WARPS = 1), or a whole block of WARPS warps.
template <int WARPS> struct Group {
  static constexpr int SIZE = WARPS * WARP;

  __device__ static __forceinline__ int rank() { return WARPS == 1 ? lane_id() : int(threadIdx.x); }

  // The sum over the group, the same bits in each of its threads.
  template <typename T> __device__ static T sum(T v) {
    v = warp_sum(v);
    if (WARPS == 1) return v;
    __shared__ T parts[WARPS];
    __syncthreads();  // the sum before this one has been read
    if (lane_id() == 0) parts[warp_id()] = v;
    __syncthreads();
    v = parts[0];
    for (int w = 1; w < WARPS; ++w) v += parts[w];
    return v;
  }

  template <typename T> __device__ static T max(T v) {
    v = warp_max(v);
    if (WARPS == 1) return v;
    __shared__ T parts[WARPS];
    __syncthreads();
    if (lane_id() == 0) parts[warp_id()] = v;
    __syncthreads();
    v = parts[0];
    for (int w = 1; w < WARPS; ++w) v = parts[w] > v ? parts[w] : v;
    return v;
  }
};

// Four consecutive numbers of a row, as one or two wide loads where the host has found rows and pointers aligned to
// 16 bytes, else one by one and only as many as there are.
template <typename T> struct Four {
  T v[4];
};

struct __align__(16) Wide {
  unsigned int words[4];
};

template <typename T> __device__ __forceinline__ Four<T> load_four(const T* p, bool wide, int count) {
  Four<T> f;
  if (wide) {
    Wide* to = reinterpret_cast<Wide*>(&f);
    const Wide* from = reinterpret_cast<const Wide*>(p);
#pragma unroll
    for (int i = 0; i < int(sizeof(Four<T>) / sizeof(Wide)); ++i) to[i] = from[i];
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) f.v[i] = i < count ? p[i] : T(0);
  }
  return f;
}

template <typename T> __device__ __forceinline__ void store_four(T* p, const Four<T>& f, bool wide, int count) {
  if (wide) {
    Wide* to = reinterpret_cast<Wide*>(p);
    const Wide* from = reinterpret_cast<const Wide*>(&f);
#pragma unroll
    for (int i = 0; i < int(sizeof(Four<T>) / sizeof(Wide)); ++i) to[i] = from[i];
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (i < count) p[i] = f.v[i];
  }
}
