// Floating-point formats, arrays with strides, and the random bits of stochastic rounding.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

enum Dtype : int64_t { F64, F32, BF16, F16 };

struct Array {  // of the canonical shape; an axis along which it has one value has stride 0
  char* data;
  int64_t dtype;
  int64_t stride[4];

  int64_t at(int64_t b, int64_t l, int64_t r, int64_t c) const {
    return b * stride[0] + l * stride[1] + r * stride[2] + c * stride[3];
  }
};

// --- formats -------------------------------------------------------------------------------------------------------

inline float from_bits(uint32_t bits) { float x; std::memcpy(&x, &bits, 4); return x; }
inline uint32_t to_bits(float x) { uint32_t bits; std::memcpy(&bits, &x, 4); return bits; }

struct bfloat16 { uint16_t bits; };
inline float from_bf16(uint16_t h) { return from_bits(uint32_t(h) << 16); }
inline uint16_t to_bf16(float x) {
  const uint32_t b = to_bits(x), rounded = (b + 0x7FFF + ((b >> 16) & 1)) >> 16, nan = (b >> 16) | 0x40;
  return uint16_t((b & 0x7FFFFFFF) > 0x7F800000 ? nan : rounded);
}

inline double value(double x) { return x; }
inline float value(float x) { return x; }
inline float value(bfloat16 x) { return from_bf16(x.bits); }
inline void put(float& to, float x) { to = x; }
inline void put(bfloat16& to, float x) { to.bits = to_bf16(x); }

inline float from_f16(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000) << 16, magnitude = h & 0x7FFF;
  if (magnitude >= 0x7C00) return from_bits(sign | 0x7F800000 | (magnitude & 0x3FF) << 13);
  return from_bits(sign | to_bits(from_bits(magnitude << 13) * 0x1p112f));  // exact, subnormal numbers too
}
inline uint16_t to_f16(float x) {
  const uint32_t b = to_bits(x), sign = (b >> 16) & 0x8000, magnitude = b & 0x7FFFFFFF;
  if (magnitude > 0x7F800000) return uint16_t(sign | 0x7E00);
  if (magnitude >= 0x477FF000) return uint16_t(sign | 0x7C00);  // 65520 is nearer to the number after the largest
  if (magnitude < 0x38800000)                                   // subnormal: adding 0.5 rounds at 2^-24
    return uint16_t(sign | (to_bits(from_bits(magnitude) + 0.5f) - 0x3F000000));
  return uint16_t(sign | (((magnitude + 0xFFF + ((magnitude >> 13) & 1)) >> 13) - 0x1C000));
}

template <typename T> inline T rounded(T x, int64_t dtype) {  // to `dtype`, to nearest; 16 bits by way of float32
  switch (dtype) {
    case F64: return x;
    case F32: return T(float(x));
    case BF16: return T(from_bf16(to_bf16(float(x))));
    default: return T(from_f16(to_f16(float(x))));
  }
}

template <typename T> inline T element(const Array& a, int64_t at) {
  switch (a.dtype) {
    case F64: return T(reinterpret_cast<const double*>(a.data)[at]);
    case F32: return T(reinterpret_cast<const float*>(a.data)[at]);
    case BF16: return T(from_bf16(reinterpret_cast<const uint16_t*>(a.data)[at]));
    default: return T(from_f16(reinterpret_cast<const uint16_t*>(a.data)[at]));
  }
}

template <typename T> inline void load(const Array& a, int64_t at, int64_t s, int64_t n, T* x) {
  if (s == 1 && a.dtype == F32) {
    const float* from = reinterpret_cast<const float*>(a.data) + at;
    for (int64_t i = 0; i < n; ++i) x[i] = T(from[i]);
  } else if (s == 1 && a.dtype == BF16) {
    const uint16_t* from = reinterpret_cast<const uint16_t*>(a.data) + at;
    for (int64_t i = 0; i < n; ++i) x[i] = T(from_bf16(from[i]));
  } else {
    for (int64_t i = 0; i < n; ++i) x[i] = element<T>(a, at + i * s);
  }
}

template <typename T> inline void store(const Array& a, int64_t at, int64_t s, int n, const T* x) {
  switch (a.dtype) {
    case F64: {
      double* to = reinterpret_cast<double*>(a.data) + at;
      for (int i = 0; i < n; ++i) to[i * s] = double(x[i]);
      break;
    }
    case F32: {
      float* to = reinterpret_cast<float*>(a.data) + at;
      if (s == 1)
        for (int i = 0; i < n; ++i) to[i] = float(x[i]);
      else
        for (int i = 0; i < n; ++i) to[i * s] = float(x[i]);
      break;
    }
    case BF16: {
      uint16_t* to = reinterpret_cast<uint16_t*>(a.data) + at;
      for (int i = 0; i < n; ++i) to[i * s] = to_bf16(float(x[i]));
      break;
    }
    default: {
      uint16_t* to = reinterpret_cast<uint16_t*>(a.data) + at;
      for (int i = 0; i < n; ++i) to[i * s] = to_f16(float(x[i]));
    }
  }
}

// --- stochastic rounding: `random_bits` and `round_stochastically` of the oracle ------------------------------------

inline uint32_t mix(uint32_t x) {
  x ^= x >> 16; x *= 0x7feb352du;
  x ^= x >> 15; x *= 0x846ca68bu;
  return x ^ (x >> 16);
}

inline float stochastic(float x, uint32_t bits, int64_t dtype) {
  if (!std::isfinite(x)) return x;
  const float smallest = dtype == BF16 ? 0x1p-126f : 0x1p-14f, units = dtype == BF16 ? 128.0f : 1024.0f;
  const float power = std::max(from_bits(to_bits(x) & 0x7F800000), smallest);
  const float q = std::fabs(x) / power * units, below = std::floor(q);
  const float up = (q - below) >= 1.0f - float(bits >> 8) * 0x1p-24f ? 1.0f : 0.0f;
  return std::copysign((below + up) / units * power, x);
}

}  // namespace
