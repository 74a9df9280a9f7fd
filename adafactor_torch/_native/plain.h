// The common case with its loops fused and nothing copied: float32 or bfloat16 matrices whose columns are adjacent,
// rounded to nearest, without options that ask for more than g, p and a float32 momentum.

#pragma once

#include <type_traits>

#include "parameter.h"

namespace {

inline bool is_plain(const Task& k) {
  const bool narrow = (k.p.dtype == F32 || k.p.dtype == BF16) && (k.g.dtype == F32 || k.g.dtype == BF16);
  const bool adjacent = k.p.stride[3] == 1 && k.g.stride[3] == 1;
  const bool momentum = k.momentum != GRAD && k.momentum_rounding == STORE && k.m.dtype == F32 && k.m.stride[3] == 1;
  return narrow && adjacent && (momentum || k.momentum == NONE) && k.factored && !k.floors && !k.amsgrad &&
         k.decay != BY_GRAD && k.rounding == NEAREST && k.unscale == 1.0 && !k.maximize;
}

// The phases of `Parameter`, for weights of type P and gradients of type G.
template <typename P, typename G> struct Plain : Parameter<float> {
  using T = float;

  template <typename S> static S* row_of(const Array& a, int64_t b, int64_t l, int64_t r) {
    return reinterpret_cast<S*>(a.data) + a.at(b, l, r, 0);
  }

  void statistics(const Unit& at, double* sums) const {
    Parameter::statistics(at, sums, [&](int64_t l, int64_t r0, int64_t r1, T* columns) {
      for (int64_t r = r0; r < r1; ++r) {
        const G* g = row_of<const G>(k.g, at.b, l, r);
        double row = 0;
        for (int64_t c = 0; c < C; c += CHUNK) {
          T lanes[LANES] = {};
          const int64_t end = std::min(C, c + CHUNK), even = c + (end - c) / LANES * LANES;
          for (int64_t i = c; i < even; i += LANES)
            for (int j = 0; j < LANES; ++j) {
              const T x = value(g[i + j]), square = x * x;
              lanes[j] += square;
              columns[i + j] += square;
            }
          for (int64_t i = even; i < end; ++i) {
            const T x = value(g[i]);
            columns[i] += x * x;
            row += double(x) * double(x);
          }
          for (int j = 0; j < LANES; ++j) row += double(lanes[j]);
        }
        row_mean(at.b, l, r, row);
      }
    });
  }

  double squares_of_p(const Unit& at) const {
    double sum = 0;
    for (int64_t l = at.l0; l < at.l1; ++l)
      chunks(at, l, [&](int64_t b, int64_t l, int64_t r, int64_t c, int n) {
        sum += square_sum<T>(row_of<const P>(k.p, b, l, r) + c, n);
      });
    return sum;
  }

  double squares_of_u(const Unit& at, const T* norms) const {
    std::vector<T> columns(C);
    double sum = 0;
    for (int64_t l = at.l0; l < at.l1; ++l) {
      column_roots(at.b, l, columns.data());
      for (int64_t r = at.r0; r < at.r1; ++r) {
        const G* g = row_of<const G>(k.g, at.b, l, r);
        const double root = double(row_root(at.b, l, r, norms[at.b * L + l]));
        double row = 0;
        for (int64_t c = 0; c < C; c += CHUNK) {
          T lanes[LANES] = {};
          const int64_t end = std::min(C, c + CHUNK), even = c + (end - c) / LANES * LANES;
          for (int64_t i = c; i < even; i += LANES)
            for (int j = 0; j < LANES; ++j) {
              const T x = value(g[i + j]) * columns[i + j];
              lanes[j] += x * x;
            }
          for (int64_t i = even; i < end; ++i) row += double(value(g[i]) * columns[i]) * double(value(g[i]) * columns[i]);
          for (int j = 0; j < LANES; ++j) row += double(lanes[j]);
        }
        sum += row / (root * root);
      }
    }
    return sum;
  }

  // p becomes next(i, p), with the sums of squares before and after, in the order of `square_sum`. Few elements at a
  // time, so that what is added is still in registers and memory has something to do meanwhile.
  template <typename F> static void sweep(P* p, int n, Written& sum, F next) {
    const int even = n / LANES * LANES;
    T before[LANES] = {}, after[LANES] = {};
    Written own;
    const auto few = [&](int i, auto count) {
      P made[count()];
      for (int j = 0; j < count(); ++j) put(made[j], next(i + j, value(p[i + j])));
      for (int j = 0; j < count(); j += LANES)
        for (int q = 0; q < LANES; ++q) before[q] += value(p[i + j + q]) * value(p[i + j + q]);
      for (int j = 0; j < count(); j += LANES)
        for (int q = 0; q < LANES; ++q) after[q] += value(made[j + q]) * value(made[j + q]);
      std::memcpy(p + i, made, count() * sizeof(P));
    };
    int first = 0;
    for (; first + 4 * LANES <= even; first += 4 * LANES) few(first, std::integral_constant<int, 4 * LANES>());
    for (; first < even; first += LANES) few(first, std::integral_constant<int, LANES>());
    for (int i = even; i < n; ++i) {
      own.before += double(value(p[i])) * double(value(p[i]));
      put(p[i], next(i, value(p[i])));
      own.after += double(value(p[i])) * double(value(p[i]));
    }
    for (int q = 0; q < LANES; ++q) own.before += double(before[q]), own.after += double(after[q]);
    sum.before += own.before;
    sum.after += own.after;
  }

  Written apply(const Unit& at, const T* norms, const Step& step) const {
    const T decay = decoupled ? T(k.weight_decay) * (k.decay == BY_STEP ? step.alpha : T(1)) : T(0);
    const T beta = T(k.beta1), complement = T(k.complement1), bias = k.debias ? T(k.bias1) : T(1);
    std::vector<T> columns(C);
    Written sum;
    for (int64_t l = at.l0; l < at.l1; ++l) {
      column_roots(at.b, l, columns.data());
      chunks(at, l, [&](int64_t b, int64_t l, int64_t r, int64_t c, int n) {
        const G* g = row_of<const G>(k.g, b, l, r) + c;
        const T *column = columns.data() + c, row = row_root(b, l, r, norms[b * L + l]);
        P* p = row_of<P>(k.p, b, l, r) + c;
        const T before = k.momentum == STEP ? step.alpha / step.clip / row : T(1) / step.clip / row;
        const T after = k.momentum == STEP ? T(1) / bias : step.alpha / bias;
        if (k.momentum == NONE && !decoupled) {
          const T factor = before * after;
          sweep(p, n, sum, [&](int i, T x) { return x - value(g[i]) * column[i] * factor; });
        } else if (k.momentum == NONE) {
          const T factor = before * after;
          sweep(p, n, sum, [&](int i, T x) { return x - (value(g[i]) * column[i] * factor + decay * x); });
        } else {
          T* m = row_of<T>(k.m, b, l, r) + c;
          sweep(p, n, sum, [&](int i, T x) {
            m[i] = beta * m[i] + complement * (value(g[i]) * column[i] * before);
            return x - (m[i] * after + decay * x);
          });
        }
      });
    }
    return sum;
  }
};

}  // namespace
