// Vectors of floats, as wide as the registers of the processor that is compiled for.
//
// PER vectors always make LANES floats, whatever the width, and the compiler is told not to fuse a product with a sum. So
// sums are added in the same order, and have the same bits, on every processor.
//
// A row is taken in groups of 2 * LANES elements, each group in two halves. Where the weight or the gradient is in
// float32, the halves are the first and the last LANES elements. Where both are in bfloat16 (PAIRS), they are the even and
// the odd elements: a 32-bit word holds one of each, and a shift and a mask take them out. Compilers widen 16-bit elements
// in order by shuffles, which took longer than the arithmetic. What is kept of the columns is in the same order as the
// halves (`to_halves`, `from_halves`).

#pragma once

#include <vector>

#include "task.h"

namespace {

#if defined(__AVX512F__)
constexpr int WIDE = 16;
#elif defined(__AVX__)
constexpr int WIDE = 8;
#else
constexpr int WIDE = 4;
#endif
constexpr int PER = LANES / WIDE, GROUP = 2 * LANES;

typedef float Floats __attribute__((vector_size(4 * WIDE)));
typedef uint32_t Words __attribute__((vector_size(4 * WIDE)));
typedef uint16_t Halves __attribute__((vector_size(2 * WIDE)));

struct Two { Floats first, second; };

template <typename V, typename S> inline V read(const S* from) { V v; std::memcpy(&v, from, sizeof v); return v; }
inline Floats get(const float* x) { return read<Floats>(x); }
inline Floats get(const bfloat16* x) { return Floats(__builtin_convertvector(read<Halves>(x), Words) << 16); }
inline void set(float* to, Floats v) { std::memcpy(to, &v, sizeof v); }
inline void set(bfloat16* to, Words made) {  // from the upper halves
  const Halves h = __builtin_convertvector(made >> 16, Halves);
  std::memcpy(to, &h, sizeof h);
}

// The j-th vectors of the two halves of the group that begins at x.
template <bool PAIRS, typename S> inline Two get(const S* x, int j) {
  if constexpr (PAIRS && sizeof(S) == 2) {
    const Words w = read<Words>(x + 2 * j * WIDE);
    return {Floats(w << 16), Floats(w & 0xFFFF0000u)};
  } else {
    return {get(x + j * WIDE), get(x + LANES + j * WIDE)};
  }
}

// `to_bf16` of each float, in the upper half of its word.
inline Words nearest(Floats v) {
  const Words b = Words(v), rounded = b + 0x7FFF + ((b >> 16) & 1);
  return Words(v != v ? b | 0x400000 : rounded) & 0xFFFF0000u;
}

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Words{__VA_ARGS__})
#endif
// The even and the odd ones of 2 * WIDE floats in memory.
inline Two even_and_odd(const float* x) {
  const Floats a = get(x), b = get(x + WIDE);
#if defined(__AVX512F__)
  return {SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30),
          SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31)};
#elif defined(__AVX__)
  return {SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14), SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15)};
#else
  return {SHUFFLE(a, b, 0, 2, 4, 6), SHUFFLE(a, b, 1, 3, 5, 7)};
#endif
}
inline void put_even_and_odd(float* to, Two t) {
#if defined(__AVX512F__)
  set(to, SHUFFLE(t.first, t.second, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23));
  set(to + WIDE, SHUFFLE(t.first, t.second, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31));
#elif defined(__AVX__)
  set(to, SHUFFLE(t.first, t.second, 0, 8, 1, 9, 2, 10, 3, 11));
  set(to + WIDE, SHUFFLE(t.first, t.second, 4, 12, 5, 13, 6, 14, 7, 15));
#else
  set(to, SHUFFLE(t.first, t.second, 0, 4, 1, 5));
  set(to + WIDE, SHUFFLE(t.first, t.second, 2, 6, 3, 7));
#endif
}
// The same as `get`, where the floats of a momentum stand beside weights and gradients in bfloat16.
template <bool PAIRS> inline Two get_floats(const float* x, int j) {
  if constexpr (PAIRS) return even_and_odd(x + 2 * j * WIDE);
  return {get(x + j * WIDE), get(x + LANES + j * WIDE)};
}
template <bool PAIRS> inline void set_floats(float* to, int j, Two t) {
  if constexpr (PAIRS) return put_even_and_odd(to + 2 * j * WIDE, t);
  set(to + j * WIDE, t.first);
  set(to + LANES + j * WIDE, t.second);
}

// Sums of squares: as float within a chunk, and as double beyond it (`Sum`).
struct Lanes {
  Two of[PER] = {};
  void square(int j, Two x) {
    of[j].first += x.first * x.first;
    of[j].second += x.second * x.second;
  }
};
struct Sum {
  double lanes[GROUP] = {}, rest = 0;
  void operator+=(const Lanes& some) {
    float one[GROUP];
    for (int j = 0; j < PER; ++j) set(one + j * WIDE, some.of[j].first), set(one + LANES + j * WIDE, some.of[j].second);
    for (int l = 0; l < GROUP; ++l) lanes[l] += double(one[l]);
  }
  void square(float x) { rest += double(x * x); }
  double all() const {
    double sum[GROUP];
    std::memcpy(sum, lanes, sizeof sum);
    for (int half = GROUP / 2; half; half /= 2)
      for (int l = 0; l < half; ++l) sum[l] += sum[l + half];
    return sum[0] + rest;
  }
};

// Some T that begin where a cache line does.
template <typename T> struct Aligned {
  std::vector<char> memory;
  T* data;
  explicit Aligned(int64_t n) : memory(n * sizeof(T) + 64) {
    data = reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64);
  }
};

// The values of n columns, from their own order to that of the halves of their groups, and back. Columns that do not fill a
// group keep their places.
template <bool PAIRS, typename T> inline void to_halves(int64_t n, const T* from, T* to) {
  const int64_t grouped = PAIRS ? n / GROUP * GROUP : 0;
  for (int64_t c = 0; c < grouped; c += GROUP)
    for (int i = 0; i < LANES; ++i) to[c + i] = from[c + 2 * i], to[c + LANES + i] = from[c + 2 * i + 1];
  std::copy(from + grouped, from + n, to + grouped);
}
template <bool PAIRS, typename T> inline void from_halves(int64_t n, const T* from, T* to) {
  const int64_t grouped = PAIRS ? n / GROUP * GROUP : 0;
  for (int64_t c = 0; c < grouped; c += GROUP)
    for (int i = 0; i < LANES; ++i) to[c + 2 * i] = from[c + i], to[c + 2 * i + 1] = from[c + LANES + i];
  std::copy(from + grouped, from + n, to + grouped);
}

}  // namespace
