// Dropout masks from Philox4x32-10; included by gather.cu, layers.cu and products.cu, on common.cuh.
//
// Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
// The words are those of fastmlp/formulas/random_bits.py, bit for bit: counter (column / 4, row, step, purpose << 24 | layer).
#pragma once

constexpr unsigned int DROPOUT_PURPOSE = 3;

struct Words {
  unsigned int v[4];
};

__device__ __forceinline__ Words philox4x32(Words c, unsigned long long key) {
  unsigned int k0 = (unsigned int)key, k1 = (unsigned int)(key >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    unsigned long long p = (unsigned long long)0xD2511F53u * c.v[0], q = (unsigned long long)0xCD9E8D57u * c.v[2];
    c = Words{{(unsigned int)(q >> 32) ^ c.v[1] ^ k0, (unsigned int)q, (unsigned int)(p >> 32) ^ c.v[3] ^ k1,
               (unsigned int)p}};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

// What dropout needs to know of a layer.  A unit is kept where its random word is at least `threshold`, and then
// multiplied by `scale`; threshold 0 keeps every unit.  Layer 0 is the input of the network.
template <typename T> struct Dropout {
  unsigned int threshold;
  T scale;
  unsigned long long key;
  unsigned int step;
  unsigned int layer;

  // mask / (1 - rate) of the four units of a row whose first column is 4 * quad
  __device__ __forceinline__ Four<T> factors(long long row, long long quad) const {
    Words counter{{(unsigned int)quad, (unsigned int)row, step, DROPOUT_PURPOSE << 24 | layer}};
    Words words = philox4x32(counter, key);
    Four<T> f;
#pragma unroll
    for (int i = 0; i < 4; ++i) f.v[i] = words.v[i] >= threshold ? scale : T(0);
    return f;
  }
};
