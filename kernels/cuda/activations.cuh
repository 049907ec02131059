// Every activation as one function z -> (a, slope); included by layers.cu, losses.cu and products.cu, on common.cuh.
//
// fastmlp/formulas/activations.py has the formulas and their sources.
// Which one is a run-time switch: all threads of a launch take the same branch, and one kernel serves every network.
// No fast-math: NaN and infinities come out as in NumPy, small values keep their relative accuracy.
#pragma once

enum Activation : int { IDENTITY, RELU, LEAKY_RELU, ELU, SELU, GELU, SILU, MISH, SOFTPLUS, SIGMOID, TANH, SIN, COS };

template <typename T> __device__ __forceinline__ T sigmoid(T z) {
  // the exponential of what cannot overflow
  T e = exp(z < 0 ? z : -z);
  T s = T(1) / (T(1) + e);
  return z < 0 ? e * s : s;
}

template <typename T> __device__ __forceinline__ T softplus(T z) {
  T e = log1p(exp(z < 0 ? z : -z));
  return z > 0 ? z + e : e;
}

// Return f(z), and f'(z) through `slope`.
template <typename T> __device__ __forceinline__ T activate(int activation, T z, T& slope) {
  constexpr T LEAK = T(0.01), SELU_ALPHA = T(1.6732632423543772), SELU_SCALE = T(1.0507009873554805);
  constexpr T INVERSE_SQRT_2 = T(0.70710678118654752), INVERSE_SQRT_2_PI = T(0.39894228040143268);
  switch (activation) {
    case RELU:
      slope = z > 0 ? T(1) : T(0);
      return z > 0 || is_nan(z) ? z : T(0);
    case LEAKY_RELU:
      slope = z > 0 ? T(1) : LEAK;
      return z > 0 ? z : z * LEAK;
    case ELU: {
      T below = expm1(z > 0 ? T(0) : z);
      slope = z > 0 ? T(1) : below + T(1);
      return z > 0 ? z : below;
    }
    case SELU: {
      T below = SELU_ALPHA * expm1(z > 0 ? T(0) : z);
      slope = z > 0 ? SELU_SCALE : SELU_SCALE * (below + SELU_ALPHA);
      return z > 0 ? z * SELU_SCALE : below * SELU_SCALE;
    }
    case GELU: {
      T cumulative = T(0.5) * erfc(-z * INVERSE_SQRT_2);
      slope = z * (INVERSE_SQRT_2_PI * exp(T(-0.5) * z * z)) + cumulative;
      return z * cumulative;
    }
    case SILU: {
      T s = sigmoid(z);
      slope = s * (T(1) + z * (T(1) - s));
      return z * s;
    }
    case MISH: {
      T t = tanh(softplus(z));
      slope = t + z * (T(1) - t * t) * sigmoid(z);
      return z * t;
    }
    case SOFTPLUS:
      slope = sigmoid(z);
      return softplus(z);
    case SIGMOID: {
      T s = sigmoid(z);
      slope = s * (T(1) - s);
      return s;
    }
    case TANH: {
      T t = tanh(z);
      slope = T(1) - t * t;
      return t;
    }
    case SIN:
      slope = cos(z);
      return sin(z);
    case COS:
      slope = -sin(z);
      return cos(z);
    default:
      slope = T(1);
      return z;
  }
}

// The slope where the forward pass has written none: told by the activation itself.
template <typename T> __device__ __forceinline__ T slope_from_output(int activation, T a) {
  return activation == RELU && !(a > 0) ? T(0) : T(1);
}
