// How a vectorised step writes a group of new weights, rounded once: to nearest or stochastically.
//
// A writer is called with the address of the group, the column in which that begins, the number j of the vector, and the
// two vectors of new weights. It returns the weights as they have been written, for the sum of their squares.

#pragma once

#include "vectors.h"

namespace {

// Words with a bfloat16 in their upper halves.
template <bool PAIRS> inline Two write_upper_halves(bfloat16* p, int j, Words first, Words second) {
  if constexpr (PAIRS) {
    const Words both = (first >> 16) | second;
    std::memcpy(p + 2 * j * WIDE, &both, sizeof both);
  } else {
    set(p + j * WIDE, first);
    set(p + LANES + j * WIDE, second);
  }
  return {Floats(first), Floats(second)};
}

template <bool PAIRS> struct Nearest {
  Two operator()(float* p, int64_t, int j, Two x) const { return set_floats<false>(p, j, x), x; }
  Two operator()(bfloat16* p, int64_t, int j, Two x) const {
    return write_upper_halves<PAIRS>(p, j, nearest(x.first), nearest(x.second));
  }
  float one(float x, int64_t) const { return x; }
};

// The same bits as `stochastic`. Random bits are added to the 16 that are cut off, and what they carry rounds up.
template <bool PAIRS> struct Stochastic {
  uint32_t index, key;  // the index of the row's first element, and the step's key

  Words round(Floats v, Words element) const {
    Words x = element ^ key;
    x ^= x >> 16; x *= 0x7feb352du;
    x ^= x >> 15; x *= 0x846ca68bu;
    x ^= x >> 16;
    const Words b = Words(v), finite = Words((b & 0x7F800000) != 0x7F800000);
    return ((b + ((x >> 16) & finite)) & 0xFFFF0000u) | (Words(v != v) & 0x400000);
  }
  Two operator()(bfloat16* p, int64_t c, int j, Two x) const {
    constexpr int apart = PAIRS ? 2 : 1;  // the elements of a vector
    Words elements = {};
    for (int q = 0; q < WIDE; ++q) elements[q] = uint32_t(apart * q);
    const Words first = elements + (index + uint32_t(c) + uint32_t(apart * j * WIDE));
    return write_upper_halves<PAIRS>(p, j, round(x.first, first), round(x.second, first + (PAIRS ? 1 : LANES)));
  }
  float one(float x, int64_t c) const { return stochastic(x, mix((index + uint32_t(c)) ^ key), BF16); }
};

}  // namespace
