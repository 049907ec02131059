// Between the passes forward and back: the losses of a batch, then their totals, which tell whether the step counts.
//
// The loss of each row, the gradient of the weighted sum, and whether the row is predicted rightly take one pass over
// the outputs.  fastmlp/formulas/losses.py has the formulas; targets are labels (n,) or values (n, k).
//
// Few outputs: one warp a row, eight rows a block, no shared memory.  Many: one block of eight warps a row.
#include "common.cuh"
#include "activations.cuh"
#include "step.cuh"

enum Loss : int {
  SOFTMAX_CROSS_ENTROPY,
  SIGMOID_CROSS_ENTROPY,
  MEAN_SQUARED_ERROR,
  MEAN_ABSOLUTE_ERROR,
  HUBER,
  POISSON,
  CATEGORICAL_HINGE,
  MEAN_SQUARED_LOGARITHMIC_ERROR,
  QUANTILE
};

// Targets are labels where their type is this one, else values.
template <typename Y> constexpr bool is_label = false;
template <> constexpr bool is_label<long long> = true;

constexpr long long NOWHERE = 0x7fffffffffffffffLL;

// The largest number and where it stands first; NaN counts as larger than all, as in NumPy's argmax.
template <typename T> struct Largest {
  T value;
  long long at;

  __device__ __forceinline__ void take(T v, long long where) {
    bool first = where < at;
    bool replaces = is_nan(value) ? is_nan(v) && first : is_nan(v) || v > value || (v == value && first);
    if (at == NOWHERE || (where != NOWHERE && replaces)) {
      value = v;
      at = where;
    }
  }
};

// Where the largest of z[0..k) is, leaving out `without`; the same in every thread of the group.
template <typename G, typename T>
__device__ Largest<T> largest_of(const T* __restrict__ z, long long k, long long without) {
  Largest<T> best{T(0), NOWHERE};
  for (long long j = G::rank(); j < k; j += G::SIZE)
    if (j != without) best.take(z[j], j);
  for (int offset = WARP / 2; offset > 0; offset /= 2) {
    T value = __shfl_xor_sync(ALL_LANES, best.value, offset);
    long long at = __shfl_xor_sync(ALL_LANES, best.at, offset);
    best.take(value, at);
  }
  if (G::SIZE == WARP) return best;
  constexpr int WARPS = G::SIZE / WARP;
  __shared__ T values[WARPS];
  __shared__ long long places[WARPS];
  __syncthreads();  // the search before this one has been read
  if (lane_id() == 0) {
    values[warp_id()] = best.value;
    places[warp_id()] = best.at;
  }
  __syncthreads();
  for (int w = 0; w < WARPS; ++w) best.take(values[w], places[w]);
  return best;
}

// One output of the losses that are a mean over outputs: its loss, and its slope through `gradient`.
template <typename T> __device__ __forceinline__ T loss_term(int loss, T z, T t, T parameter, T& gradient) {
  switch (loss) {
    case SIGMOID_CROSS_ENTROPY:
      gradient = sigmoid(z) - t;
      return softplus(z) - z * t;
    case MEAN_SQUARED_ERROR: {
      T e = z - t;
      gradient = T(2) * e;
      return e * e;
    }
    case MEAN_ABSOLUTE_ERROR: {
      T e = z - t;
      gradient = e > 0 ? T(1) : e < 0 ? T(-1) : e;
      return e < 0 ? -e : e;
    }
    case HUBER: {
      T e = z - t, c = e > parameter ? parameter : e < -parameter ? -parameter : e;
      gradient = c;
      return c * (e - T(0.5) * c);
    }
    case POISSON: {
      T rate = exp(z);
      gradient = rate - t;
      return rate - z * t;
    }
    case QUANTILE: {
      T e = z - t;
      gradient = e > 0 ? T(1) - parameter : e < 0 ? -parameter : e;
      return e * gradient;
    }
    default: {  // MEAN_SQUARED_LOGARITHMIC_ERROR
      T positive = z > 0 || is_nan(z) ? z : T(0);
      T difference = log1p(positive) - log1p(t);
      gradient = positive > 0 ? T(2) * difference / (T(1) + positive) : T(0) * positive;
      return difference * difference;
    }
  }
}

// Softmax cross-entropy with labels, or with rows of probabilities that need not sum to 1.
template <typename G, typename T, typename Y>
__device__ T softmax_cross_entropy(const T* __restrict__ z, const Y* __restrict__ t, T smoothing, T factor, long long k,
                                   T* __restrict__ d) {
  constexpr bool LABELS = is_label<Y>;
  T top = -infinity<T>();
  for (long long j = G::rank(); j < k; j += G::SIZE) top = z[j] > top ? z[j] : top;
  top = G::max(top);
  T total = 0;
  for (long long j = G::rank(); j < k; j += G::SIZE) total += exp(z[j] - top);
  total = G::sum(total);
  T share = smoothing / T(k), mass = 1, expected = 0;  // expected: sum of t (z - top)
  if (LABELS) {
    expected = (T(1) - smoothing) * (z[(long long)t[0]] - top);
    if (smoothing != 0) {
      T sum = 0;
      for (long long j = G::rank(); j < k; j += G::SIZE) sum += z[j] - top;
      expected += share * G::sum(sum);
    }
  } else {
    mass = 0;
    for (long long j = G::rank(); j < k; j += G::SIZE) {
      T smoothed = T(t[j]) * (T(1) - smoothing) + share;
      mass += smoothed;
      expected += smoothed * (z[j] - top);
    }
    mass = G::sum(mass);
    expected = G::sum(expected);
  }
  for (long long j = G::rank(); j < k; j += G::SIZE) {
    T smoothed = share + (T(1) - smoothing) * (LABELS ? T(j == (long long)t[0]) : T(t[j]));
    d[j] = (exp(z[j] - top) / total * mass - smoothed) * factor;
  }
  return log(total) * mass - expected;
}

// Crammer and Singer's hinge: max(0, 1 + the strongest wrong output - the right one).
template <typename G, typename T>
__device__ T categorical_hinge(const T* __restrict__ z, long long label, T factor, long long k, T* __restrict__ d) {
  Largest<T> wrong = largest_of<G>(z, k, label);
  T margin = wrong.value - z[label] + T(1);
  T row_loss = margin > 0 || is_nan(margin) ? margin : T(0);
  T active = row_loss > 0 ? T(1) : row_loss;  // NaN stays
  for (long long j = G::rank(); j < k; j += G::SIZE)
    d[j] = (j == wrong.at ? active : j == label ? -active : T(0)) * factor;
  return row_loss;
}

// Losses and gradients are wanted together or not at all (both null), hits by themselves (null where not).  The
// gradient of row n is that of its loss times weights_n[n] (1 where null) times 1 / (total weight), which comes from
// the table of the step where there is one, else from `inverse_total`.  The parameters of a loss (null where there are
// none) are one for all outputs, or one for each in turn.
template <typename T, typename Y, int WARPS>
__global__ void __launch_bounds__(256, 1)
loss_rows(int loss, const T* __restrict__ parameters_p, long long p, const T* __restrict__ outputs_nk,
          const Y* __restrict__ targets, const T* __restrict__ weights_n, double inverse_total,
          const double* __restrict__ table, const long long* __restrict__ cursor, int index,
          T* __restrict__ d_outputs_nk, T* __restrict__ row_losses_n, T* __restrict__ row_hits_n, long long n,
          long long k) {
  using G = Group<WARPS>;
  constexpr bool LABELS = is_label<Y>;
  long long row = (long long)blockIdx.x * (256 / G::SIZE) + (WARPS == 1 ? warp_id() : 0);
  if (row >= n) return;  // a whole group at once
  if (table != nullptr) inverse_total = step_scalars(table, cursor, index)[INVERSE_TOTAL];
  T factor = T(inverse_total);
  if (weights_n != nullptr) factor *= weights_n[row];
  const T* z = outputs_nk + row * k;
  const Y* t = targets + row * (LABELS ? 1 : k);
  T* d = d_outputs_nk + row * k;

  T row_loss = 0;
  if (row_losses_n != nullptr) {
    if (loss == SOFTMAX_CROSS_ENTROPY) {
      row_loss = softmax_cross_entropy<G>(z, t, p > 0 ? parameters_p[0] : T(0), factor, k, d);
    } else if (loss == CATEGORICAL_HINGE) {
      row_loss = categorical_hinge<G>(z, (long long)t[0], factor, k, d);
    } else {
      for (long long j = G::rank(); j < k; j += G::SIZE) {
        T parameter = p > 0 ? parameters_p[j % p] : T(0), gradient;
        row_loss += loss_term(loss, z[j], T(t[j]), parameter, gradient);
        d[j] = gradient / T(k) * factor;
      }
      row_loss = G::sum(row_loss) / T(k);
    }
    if (G::rank() == 0) row_losses_n[row] = row_loss;
  }

  if (row_hits_n == nullptr) return;
  T hit = 0;
  if (loss == SOFTMAX_CROSS_ENTROPY || loss == CATEGORICAL_HINGE) {
    long long right;
    if (LABELS)
      right = (long long)t[0];
    else
      right = largest_of<G>(t, k, -1).at;
    hit = largest_of<G>(z, k, -1).at == right ? T(1) : T(0);
  } else if (loss == SIGMOID_CROSS_ENTROPY) {
    for (long long j = G::rank(); j < k; j += G::SIZE) hit += (z[j] > 0) == (T(t[j]) > T(0.5)) ? T(1) : T(0);
    hit = G::sum(hit) / T(k);
  }
  if (G::rank() == 0) row_hits_n[row] = hit;
}

// The sums over rows of w l, w and w hit, in double and in a fixed order; one block.
template <typename T>
__device__ void sum_rows(const T* row_losses_n, const T* row_hits_n, const T* weights_n, long long n, double sums[3]) {
  using G = Group<8>;
  double loss = 0, weight = 0, hits = 0;
  for (long long row = threadIdx.x; row < n; row += G::SIZE) {
    double w = weights_n == nullptr ? 1.0 : double(weights_n[row]);
    loss += w * row_losses_n[row];
    weight += w;
    hits += w * row_hits_n[row];
  }
  sums[0] = G::sum(loss);
  sums[1] = G::sum(weight);
  sums[2] = G::sum(hits);
}

template <typename T>
__global__ void __launch_bounds__(256, 1)
totals(const T* __restrict__ row_losses_n, const T* __restrict__ row_hits_n, const T* __restrict__ weights_n,
       double* __restrict__ out, long long n) {
  double sums[3];
  sum_rows(row_losses_n, row_hits_n, weights_n, n, sums);
  if (threadIdx.x == 0)
    for (int i = 0; i < 3; ++i) out[i] = sums[i];
}

__device__ __forceinline__ void report_batch(const double sums[3], const double* table, const long long* cursor, int index,
                                             double* report, int* frozen) {
  long long row = step_row(cursor, index);
  bool empty = step_scalars(table, cursor, index)[INVERSE_TOTAL] == 0;  // a batch that weighs nothing is no step
  for (int i = 0; i < 3; ++i) report[row * 3 + i] = empty ? 0.0 : sums[i];
  frozen[row + 1] = frozen[row] || (!empty && !is_finite(sums[0]));
}

// The totals of a training step into its row of the report, and whether all that follows is frozen; one block.
template <typename T>
__global__ void __launch_bounds__(256, 1)
finish_batch(const T* __restrict__ row_losses_n, const T* __restrict__ row_hits_n, const T* __restrict__ weights_n,
             const double* __restrict__ table, const long long* __restrict__ cursor, int index,
             double* __restrict__ report, int* __restrict__ frozen, long long n) {
  double sums[3];
  sum_rows(row_losses_n, row_hits_n, weights_n, n, sums);
  if (threadIdx.x == 0) report_batch(sums, table, cursor, index, report, frozen);
}

// The same of a batch in shards, whose totals are added in their order.  One thread.
__global__ void __launch_bounds__(32, 1)
finish_shards(const double* __restrict__ totals_s3, long long s, const double* __restrict__ table,
              const long long* __restrict__ cursor, int index, double* __restrict__ report, int* __restrict__ frozen) {
  double sums[3] = {totals_s3[0], totals_s3[1], totals_s3[2]};
  for (long long shard = 1; shard < s; ++shard)
    for (int i = 0; i < 3; ++i) sums[i] += totals_s3[shard * 3 + i];
  report_batch(sums, table, cursor, index, report, frozen);
}
