// The three matrix products of a layer, each with what follows it: in place of cuBLAS and layers.cu in captured steps.
//
// In small steps a launch of cuBLAS and one after it cost more than its speed gains.
//
//   forward          z (n, o) = x (n, i) w (i, o);        then + bias, activation, slope, dropout
//   input gradient   dx (n, i) = dz (n, o) w' (o, i);     then times the slope of the layer below
//   weight gradient  dw (i, o) = x' (i, n) dz (n, o);     and db (o), the sums of the columns of dz
//
// One scheme serves all: a block computes a TILE x TILE part of C (M, N) = A (M, K) B (K, N).  Its 256 threads are
// SLICES groups, and in each round group s multiplies the s-th of SLICES panels of DEPTH bytes along K, so that few
// tiles of a long product still keep a whole block busy; in the end the groups' sums are added in order.  While a round
// is computed from shared memory, the next one's numbers are on their way into registers.
//
//   TILE 16, 16 slices   a thread computes 4 x 4 numbers   few tiles: 32 x 64 x 784
//   TILE 32, 8 slices                      8 x 4
//   TILE 64, 2 slices                      8 x 4           many tiles
#include "common.cuh"
#include "philox.cuh"
#include "activations.cuh"
#include "step.cuh"

constexpr int THREADS = 256;

// At least so many blocks fit the registers of a multiprocessor, 65,536 of 32 bits.
template <typename T> constexpr int BLOCKS = sizeof(T) == 4 ? 2 : 1;

// What a thread computes of a tile takes ROWS + COLUMNS numbers from shared memory for ROWS x COLUMNS products.  Shared
// memory gives a warp 32 numbers a cycle, while four warps multiply: 8 x 4 wait for it a third of the time, 4 x 2 two
// thirds.  (8 x 8 were no faster on an NVIDIA H100: one block, not two, fits its registers.)
template <int TILE> struct Shape;
template <> struct Shape<16> { static constexpr int SLICES = 16, ROWS = 4, COLUMNS = 4, DEPTH = 32; };
template <> struct Shape<32> { static constexpr int SLICES = 8, ROWS = 8, COLUMNS = 4, DEPTH = 32; };
template <> struct Shape<64> { static constexpr int SLICES = 2, ROWS = 8, COLUMNS = 4, DEPTH = 64; };

template <typename T, int TILE> constexpr int DEPTH = Shape<TILE>::DEPTH / int(sizeof(T));

// A round's part of an operand: STEPS steps along K of TILE rows of A (or columns of B), held as [k][row].  Each thread
// carries EACH of its numbers from memory into registers, and from there to shared memory.  ALONG_K: neighbours in
// memory are neighbours along K, else neighbouring rows.
//
// Wide, where the host has found pointer and stride aligned to 16 bytes: a thread carries 16 bytes at a time, of rows
// whose length is then a multiple of that, so that such a vector is all within the matrix or all beyond.  Along K four
// neighbouring threads read one row, so that their stores to shared memory meet in few banks.
// Else: one number at a time, neighbouring threads at neighbouring addresses.
template <typename T, int TILE, bool ALONG_K> struct Panel {
  static constexpr int STEPS = Shape<TILE>::SLICES * DEPTH<T, TILE>, EACH = STEPS * TILE / THREADS;
  static constexpr int WIDTH = TILE + 4;  // neighbours along K lie in other banks of shared memory
  static constexpr int VECTOR = 16 / int(sizeof(T)), VECTORS = EACH / VECTOR, TOGETHER = 4;
  static constexpr int CONTIGUOUS = ALONG_K ? STEPS : TILE;

  // from each of a wide thread's vectors to the next, along K; and of a narrow one's numbers, along what is not contiguous
  static constexpr int STEP = VECTOR * THREADS / TILE, STRIDE = THREADS / CONTIGUOUS;

  bool wide;
  int along, across;  // where the first number that this thread carries lies: along K, and in which row

  __device__ __forceinline__ explicit Panel(bool is_wide) : wide(is_wide) {
    int t = threadIdx.x;
    if (wide) {
      along = ALONG_K ? VECTOR * (t % TOGETHER + TOGETHER * (t / (TOGETHER * TILE))) : t / (TILE / VECTOR);
      across = ALONG_K ? t / TOGETHER % TILE : VECTOR * (t % (TILE / VECTOR));
    } else {
      along = ALONG_K ? t % CONTIGUOUS : t / CONTIGUOUS;
      across = ALONG_K ? t / CONTIGUOUS : t % CONTIGUOUS;
    }
  }

  // Read into registers, from where the panel begins in the matrix; beyond `rows_left` and `k_left` there are zeros,
  // which add nothing.
  __device__ __forceinline__ void read(T (&held)[EACH], const T* __restrict__ start, long long stride, int rows_left,
                                       int k_left) const {
    const T* p = start + (ALONG_K ? across * stride + along : along * stride + across);
    if (wide) {
#pragma unroll
      for (int j = 0; j < VECTORS; ++j) {
        Wide vector{};
        if (across < rows_left && along + j * STEP < k_left) vector = *reinterpret_cast<const Wide*>(p);
        *reinterpret_cast<Wide*>(held + j * VECTOR) = vector;
        p += ALONG_K ? STEP : STEP * stride;
      }
    } else {
      int others_left = ALONG_K ? rows_left - across : k_left - along;
      bool inside = ALONG_K ? along < k_left : across < rows_left;
#pragma unroll
      for (int j = 0; j < EACH; ++j) {
        held[j] = inside && j * STRIDE < others_left ? *p : T(0);
        p += STRIDE * stride;
      }
    }
  }

  __device__ __forceinline__ void write(const T (&held)[EACH], T (&panel)[STEPS][WIDTH]) const {
    if (wide && ALONG_K) {
#pragma unroll
      for (int j = 0; j < EACH; ++j) panel[along + j / VECTOR * STEP + j % VECTOR][across] = held[j];
    } else if (wide) {
#pragma unroll
      for (int j = 0; j < VECTORS; ++j)
        *reinterpret_cast<Wide*>(&panel[along + j * STEP][across]) = *reinterpret_cast<const Wide*>(held + j * VECTOR);
    } else {
#pragma unroll
      for (int j = 0; j < EACH; ++j)
        panel[along + (ALONG_K ? 0 : j * STRIDE)][across + (ALONG_K ? j * STRIDE : 0)] = held[j];
    }
  }
};

// PART: rows whose sums are written at a time, so that they take no more room than the panels.
template <typename T, int TILE> union __align__(16) Shared {
  static constexpr int PART = 16;
  struct {
    T a[Panel<T, TILE, true>::STEPS][TILE + 4], b[Panel<T, TILE, true>::STEPS][TILE + 4];
  } panels;
  T sums[Shape<TILE>::SLICES][PART][TILE];
};

// C's tile at (row0, column0), its sums over K from k_begin to k_end; `finish(row, column, value)` is called once for
// each of its elements, within the matrix or not.  A_ALONG_K: rows of A are contiguous along K, else its columns are;
// B_ALONG_K likewise.  a_stride and b_stride lead from one such run to the next; a_wide and b_wide: see Panel.
// column_sums (null where not wanted) gets the sums over K of B's columns, from the block of the first rows.
template <typename T, int TILE, bool A_ALONG_K, bool B_ALONG_K, typename Finish>
__device__ __forceinline__ void multiply(const T* __restrict__ a, long long a_stride, bool a_wide,
                                         const T* __restrict__ b, long long b_stride, bool b_wide, long long m,
                                         long long n, long long k_begin, long long k_end, T* column_sums,
                                         Finish finish) {
  using S = Shape<TILE>;
  using A = Panel<T, TILE, A_ALONG_K>;
  using B = Panel<T, TILE, B_ALONG_K>;
  constexpr int STEPS = A::STEPS, PART = Shared<T, TILE>::PART;
  constexpr int GROUP = THREADS / S::SLICES, ACROSS = TILE / S::COLUMNS;
  static_assert(GROUP * S::ROWS * S::COLUMNS == TILE * TILE, "each element has one thread of each slice");
  static_assert(PART % S::ROWS == 0, "the rows of a thread are written together");
  __shared__ Shared<T, TILE> shared;

  int slice = int(threadIdx.x) / GROUP, member = int(threadIdx.x) % GROUP;
  int row = member / ACROSS * S::ROWS, column = member % ACROSS * S::COLUMNS;
  long long row0 = (long long)blockIdx.x * TILE, column0 = (long long)blockIdx.y * TILE;
  bool sums_columns = column_sums != nullptr && blockIdx.x == 0 && threadIdx.x < TILE;

  int rows_left = int(m - row0 < TILE ? m - row0 : TILE), columns_left = int(n - column0 < TILE ? n - column0 : TILE);
  const A of_a(a_wide);
  const B of_b(b_wide);
  const T* a_at = a + (A_ALONG_K ? row0 * a_stride + k_begin : k_begin * a_stride + row0);
  const T* b_at = b + (B_ALONG_K ? column0 * b_stride + k_begin : k_begin * b_stride + column0);
  __align__(16) T next_a[A::EACH], next_b[B::EACH];
  T c[S::ROWS][S::COLUMNS] = {}, column_sum = 0;
  int k_left = int(k_end - k_begin);
  of_a.read(next_a, a_at, a_stride, rows_left, k_left);
  of_b.read(next_b, b_at, b_stride, columns_left, k_left);
  for (; k_left > 0; k_left -= STEPS) {
    __syncthreads();  // the round before has been computed
    of_a.write(next_a, shared.panels.a);
    of_b.write(next_b, shared.panels.b);
    __syncthreads();
    if (k_left > STEPS) {
      a_at += A_ALONG_K ? STEPS : STEPS * a_stride;
      b_at += B_ALONG_K ? STEPS : STEPS * b_stride;
      of_a.read(next_a, a_at, a_stride, rows_left, k_left - STEPS);
      of_b.read(next_b, b_at, b_stride, columns_left, k_left - STEPS);
    }
#pragma unroll 4
    for (int k = slice * DEPTH<T, TILE>; k < (slice + 1) * DEPTH<T, TILE>; ++k) {
      T left[S::ROWS], right[S::COLUMNS];
#pragma unroll
      for (int i = 0; i < S::ROWS; ++i) left[i] = shared.panels.a[k][row + i];
#pragma unroll
      for (int j = 0; j < S::COLUMNS; ++j) right[j] = shared.panels.b[k][column + j];
#pragma unroll
      for (int i = 0; i < S::ROWS; ++i)
#pragma unroll
        for (int j = 0; j < S::COLUMNS; ++j) c[i][j] += left[i] * right[j];
    }
    if (sums_columns)
      for (int k = 0; k < STEPS; ++k) column_sum += shared.panels.b[k][threadIdx.x];
  }
  if (sums_columns && column0 + threadIdx.x < n) column_sums[column0 + threadIdx.x] = column_sum;

#pragma unroll 1
  for (int part = 0; part < TILE; part += PART) {
    __syncthreads();  // the last round has been computed, or the part before read, and its memory is free
    if (row >= part && row < part + PART) {
#pragma unroll
      for (int i = 0; i < S::ROWS; ++i)
#pragma unroll
        for (int j = 0; j < S::COLUMNS; ++j) shared.sums[slice][row - part + i][column + j] = c[i][j];
    }
    __syncthreads();
#pragma unroll 1  // what follows is long, and once is enough
    for (int e = threadIdx.x; e < PART * TILE; e += THREADS) {
      int at = e / TILE, across = e % TILE;
      T sum = shared.sums[0][at][across];
      for (int s = 1; s < S::SLICES; ++s) sum += shared.sums[s][at][across];
      finish(row0 + part + at, column0 + across, sum);
    }
  }
}

// z = f(x w + b) with its slope where there is one, both under dropout where threshold is not 0 (then a cursor is given).
// Of the rows of the batch these are `first_row` and those after it.
template <typename T, int TILE>
__global__ void __launch_bounds__(THREADS, BLOCKS<T>)
product_forward(const T* __restrict__ x_ni, const T* __restrict__ w_io, const T* __restrict__ b_o, T* __restrict__ z_no,
                T* __restrict__ slope_no, long long n, long long i, long long o, bool x_wide, bool w_wide, int activation,
                unsigned int threshold, T scale, unsigned long long key, const long long* __restrict__ cursor, int index, int layer,
                long long first_row) {
  Dropout<T> dropout{threshold, scale, key, threshold == 0 ? 0 : step_number(cursor, index), (unsigned int)layer};
  auto finish = [&](long long row, long long column, T z) {
    if (row >= n || column >= o) return;
    T slope, factor = 1;
    z = activate(activation, z + b_o[column], slope);
    if (threshold != 0) factor = dropout.factors(first_row + row, column / 4).v[column % 4];
    z_no[row * o + column] = z * factor;
    if (slope_no != nullptr) slope_no[row * o + column] = slope * factor;
  };
  multiply<T, TILE, true, false>(x_ni, i, x_wide, w_io, o, w_wide, n, o, 0, i, (T*)nullptr, finish);
}

// dx = (dz w') times the slope below, which its activation tells where slope_ni is null.
template <typename T, int TILE>
__global__ void __launch_bounds__(THREADS, BLOCKS<T>)
product_input_gradient(const T* __restrict__ dz_no, const T* __restrict__ w_io, T* __restrict__ dx_ni, long long n,
                       long long i, long long o, bool dz_wide, bool w_wide, int activation, const T* __restrict__ a_ni,
                       const T* __restrict__ slope_ni) {
  auto finish = [&](long long row, long long column, T d) {
    if (row >= n || column >= i) return;
    long long at = row * i + column;
    if (slope_ni != nullptr)
      d *= slope_ni[at];
    else if (activation != IDENTITY)
      d *= slope_from_output(activation, a_ni[at]);
    dx_ni[at] = d;
  };
  multiply<T, TILE, true, true>(dz_no, o, dz_wide, w_io, o, w_wide, n, i, 0, o, (T*)nullptr, finish);
}

// dw = x' dz and db = the sums of dz over rows, of the rows of slab blockIdx.z, into that slab of the gradients.
template <typename T, int TILE>
__global__ void __launch_bounds__(THREADS, BLOCKS<T>)
product_weight_gradient(const T* __restrict__ x_ni, const T* __restrict__ dz_no, T* __restrict__ dw_sio,
                        T* __restrict__ db_so, long long slab_stride, long long n, long long i, long long o, bool x_wide,
                        bool dz_wide) {
  long long first = n * blockIdx.z / gridDim.z, last = n * (blockIdx.z + 1) / gridDim.z;
  T* dw_io = dw_sio + blockIdx.z * slab_stride;
  T* db_o = db_so + blockIdx.z * slab_stride;
  auto finish = [&](long long row, long long column, T d) {
    if (row < i && column < o) dw_io[row * o + column] = d;
  };
  multiply<T, TILE, false, false>(x_ni, i, x_wide, dz_no, o, dz_wide, i, o, first, last, db_o, finish);
}
