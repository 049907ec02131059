// Last launches of a step: one pass over the flat buffer of parameters, and the stages around it.
//
// The buffer is cut into chunks, of which none holds both weights and biases, or anything that is frozen.  A gradient
// may lie in several slabs (a matrix product of many rows leaves one for each part of the rows); whoever reads it adds
// them in order.
#include "common.cuh"
#include "step.cuh"

enum Optimizer : int { SGD, ADAM, ADAMW, RMSPROP };

// The numbers of a rule that do not change from step to step, as doubles in device memory.
// MEAN_DECAY: Adam's beta1, the momentum of SGD and RMSprop.  SQUARE_DECAY: Adam's beta2, RMSprop's rho.
enum RuleNumber : int { MEAN_DECAY, SQUARE_DECAY, EPSILON, NESTEROV, WEIGHT_DECAY, CLIP_NORM, L2, RULE_NUMBERS };

// A row of the table of chunks.
// The gradient of parameter i lies at BEHIND + i, its slabs SLAB_STRIDE apart.
enum Chunk : int { START, STOP, IS_WEIGHT, SLABS, BEHIND, SLAB_STRIDE, CHUNK_NUMBERS };

constexpr int THREADS = 256;

// One step of a parameter.  mean: of gradients, or the momentum; square: the mean of their squares.
template <typename T>
__device__ __forceinline__ T updated(int optimizer, T p, T g, bool has_mean, T& mean, T& square, const double* rule,
                                     const double* scalars) {
  T rate = T(scalars[RATE]), mean_decay = T(rule[MEAN_DECAY]);
  switch (optimizer) {
    case SGD: {
      if (!has_mean) return p - g * rate;
      mean = mean * mean_decay + g;
      return p - (rule[NESTEROV] != 0 ? mean * mean_decay + g : mean) * rate;
    }
    case RMSPROP: {
      square = square * T(rule[SQUARE_DECAY]) + g * g * T(1 - rule[SQUARE_DECAY]);
      T step = g / (sqrt(square) + T(rule[EPSILON]));
      if (!has_mean) return p - step * rate;
      mean = mean * mean_decay + step;
      return p - mean * rate;
    }
    default: {  // ADAM, ADAMW
      mean = mean * mean_decay + g * T(1 - rule[MEAN_DECAY]);
      square = square * T(rule[SQUARE_DECAY]) + g * g * T(1 - rule[SQUARE_DECAY]);
      T root = sqrt(square) * T(scalars[CORRECTION2]) + T(rule[EPSILON]);
      return p - mean / root * T(scalars[RATE] * scalars[CORRECTION1]);
    }
  }
}

// Of one array, null for none: what a thread holds of it, THREADS apart from `first` on and as far as `stop`.
constexpr int HELD = 4;

template <typename T>
__device__ __forceinline__ void load_held(T (&held)[HELD], const T* from, long long first, long long stop) {
#pragma unroll
  for (int j = 0; j < HELD; ++j) held[j] = from != nullptr && first + j * THREADS < stop ? from[first + j * THREADS] : T(0);
}

template <typename T>
__device__ __forceinline__ void store_held(T* to, const T (&held)[HELD], long long first, long long stop) {
#pragma unroll
  for (int j = 0; j < HELD; ++j)
    if (to != nullptr && first + j * THREADS < stop) to[first + j * THREADS] = held[j];
}

template <typename T>
__device__ __forceinline__ T gradient_at(const T* __restrict__ grads, const long long* chunk, long long i) {
  long long at = chunk[BEHIND] + i;
  T g = grads[at];
  for (long long s = 1; s < chunk[SLABS]; ++s) g += grads[s * chunk[SLAB_STRIDE] + at];
  return g;
}

// sums = the gradient of each parameter, its slabs added; or sums += that, where it comes on top.  One chunk a block.
template <typename T>
__global__ void __launch_bounds__(THREADS)
collect_gradients(const long long* __restrict__ chunks, const T* __restrict__ grads, T* __restrict__ sums, bool on_top) {
  const long long* chunk = chunks + blockIdx.x * (long long)CHUNK_NUMBERS;
  for (long long i = chunk[START] + threadIdx.x; i < chunk[STOP]; i += THREADS) {
    T g = gradient_at(grads, chunk, i);
    sums[i] = on_top ? sums[i] + g : g;
  }
}

// partials[b]: the sum of the squares of the gradient, L2 included, over the chunks of block b.
template <typename T>
__global__ void __launch_bounds__(THREADS)
gradient_norm(const long long* __restrict__ chunks, long long count, const T* __restrict__ grads,
              const T* __restrict__ params, const double* __restrict__ rule, double* __restrict__ partials,
              const double* __restrict__ table, const long long* __restrict__ cursor, int index) {
  T l2_now = T(rule[L2]) * T(step_scalars(table, cursor, index)[L2_SHARE]);
  double sum = 0;
  for (long long c = blockIdx.x; c < count; c += gridDim.x) {
    const long long* chunk = chunks + c * CHUNK_NUMBERS;
    T l2 = chunk[IS_WEIGHT] ? l2_now : T(0);
    for (long long i = chunk[START] + threadIdx.x; i < chunk[STOP]; i += THREADS) {
      T g = gradient_at(grads, chunk, i);
      if (l2 != 0) g += l2 * params[i];
      sum += double(g) * double(g);
    }
  }
  sum = Group<THREADS / WARP>::sum(sum);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

// One chunk a block: gradient (slabs added, L2, clipped by the norm whose parts are given), weight decay, the update,
// and the moving average of the parameters where `average` is not null.
template <typename T>
__global__ void __launch_bounds__(THREADS)
update_parameters(int optimizer, const long long* __restrict__ chunks, T* __restrict__ params,
                  const T* __restrict__ grads, T* __restrict__ mean, T* __restrict__ square, T* __restrict__ average,
                  const double* __restrict__ rule, const double* __restrict__ partials, int parts,
                  const double* __restrict__ table, const long long* __restrict__ cursor, int index,
                  const int* __restrict__ frozen) {
  if (step_is_void(table, frozen, cursor, index)) return;  // every thread alike
  const double* scalars = step_scalars(table, cursor, index);
  const long long* chunk = chunks + blockIdx.x * (long long)CHUNK_NUMBERS;
  T clip = 1;
  if (parts > 0) {
    double sum = 0;
    for (int i = threadIdx.x; i < parts; i += THREADS) sum += partials[i];
    double norm = sqrt(Group<THREADS / WARP>::sum(sum));
    if (norm > rule[CLIP_NORM]) clip = T(rule[CLIP_NORM] / norm);
  }
  bool is_weight = chunk[IS_WEIGHT];
  T l2 = is_weight ? T(rule[L2]) * T(scalars[L2_SHARE]) : T(0);
  T kept = is_weight ? T(1 - scalars[RATE] * rule[WEIGHT_DECAY]) : T(1);
  const T* grads_here = grads + chunk[BEHIND];
  long long stop = chunk[STOP], slabs = chunk[SLABS], slab_stride = chunk[SLAB_STRIDE];
  for (long long first = chunk[START] + threadIdx.x; first < stop; first += HELD * THREADS) {
    T p[HELD], g[HELD], m[HELD], v[HELD], a[HELD];  // all on their way at once: a small network waits for memory once
    load_held(p, params, first, stop);
    load_held(g, grads_here, first, stop);
    load_held(m, mean, first, stop);
    load_held(v, square, first, stop);
    load_held(a, average, first, stop);
    for (long long s = 1; s < slabs; ++s) {
      T more[HELD];
      load_held(more, grads_here + s * slab_stride, first, stop);
#pragma unroll
      for (int j = 0; j < HELD; ++j) g[j] += more[j];
    }
#pragma unroll
    for (int j = 0; j < HELD; ++j) {
      if (l2 != 0) g[j] += l2 * p[j];
      if (clip != 1) g[j] *= clip;
      p[j] = updated(optimizer, p[j] * kept, g[j], mean != nullptr, m[j], v[j], rule, scalars);
      a[j] += (p[j] - a[j]) * T(1 - scalars[AVERAGE_DECAY]);
    }
    store_held(params, p, first, stop);
    store_held(mean, m, first, stop);
    store_held(square, v, first, stop);
    store_held(average, a, first, stop);
  }
}

// The update alone, of flat arrays: p *= kept, then one step.  scalars: a row of the table of steps.
template <typename T>
__global__ void __launch_bounds__(THREADS)
update(int optimizer, T* __restrict__ p, const T* __restrict__ g, T* __restrict__ mean, T* __restrict__ square,
       double kept, const double* __restrict__ rule, const double* __restrict__ scalars, long long n) {
  for (long long i = blockIdx.x * (long long)THREADS + threadIdx.x; i < n; i += gridDim.x * (long long)THREADS) {
    T m = mean == nullptr ? T(0) : mean[i], v = square == nullptr ? T(0) : square[i];
    p[i] = updated(optimizer, p[i] * T(kept), g[i], mean != nullptr, m, v, rule, scalars);
    if (mean != nullptr) mean[i] = m;
    if (square != nullptr) square[i] = v;
  }
}

// Each column of w (i, o) is scaled down to the 2-norm `limit` where its own is longer.  Threads (32, 8), a block for
// 32 columns.  table is null outside a training step.
template <typename T>
__global__ void __launch_bounds__(THREADS)
max_norm(T* __restrict__ w_io, T limit, long long i, long long o, const double* __restrict__ table,
         const long long* __restrict__ cursor, int index, const int* __restrict__ frozen) {
  constexpr int ROWS = THREADS / WARP;
  __shared__ T parts[ROWS][WARP];
  if (table != nullptr && step_is_void(table, frozen, cursor, index)) return;
  long long column = (long long)blockIdx.x * WARP + threadIdx.x;
  T sum = 0;
  if (column < o)
    for (long long row = threadIdx.y; row < i; row += ROWS) sum += w_io[row * o + column] * w_io[row * o + column];
  parts[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  sum = 0;
  for (int r = 0; r < ROWS; ++r) sum += parts[r][threadIdx.x];
  T norm = sqrt(sum);
  if (column >= o || !(norm > limit)) return;
  T scale = limit / norm;
  for (long long row = threadIdx.y; row < i; row += ROWS) w_io[row * o + column] *= scale;
}

// average = decay average + (1 - decay) p, of chunks in a training step whose parameters change after the update
// (max-norm).
template <typename T>
__global__ void __launch_bounds__(THREADS)
average_parameters(const long long* __restrict__ chunks, const T* __restrict__ params, T* __restrict__ average,
                   const double* __restrict__ table, const long long* __restrict__ cursor, int index,
                   const int* __restrict__ frozen) {
  if (step_is_void(table, frozen, cursor, index)) return;
  const long long* chunk = chunks + blockIdx.x * (long long)CHUNK_NUMBERS;
  T part = T(1 - step_scalars(table, cursor, index)[AVERAGE_DECAY]);
  for (long long i = chunk[START] + threadIdx.x; i < chunk[STOP]; i += THREADS)
    average[i] += (params[i] - average[i]) * part;
}

// The end of a captured run of steps: the next one begins `count` steps later.  One thread.
__global__ void advance_cursor(long long* cursor, int count) { cursor[0] += count; }
