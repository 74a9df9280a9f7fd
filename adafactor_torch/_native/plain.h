// The common case with its loops fused and nothing copied: float32 or bfloat16 matrices whose columns are adjacent,
// rounded to nearest, without options that ask for more than g, p and a float32 momentum.

#pragma once

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
        moment(k.v_row, k.v_row.at(at.b, l, r, 0), row / double(C));
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

  // p becomes next(i, p): in one pass over memory, and others over what that has left in the first-level cache.
  template <typename F> void sweep(P* p, int n, Written& sum, F next) const {
    P made[CHUNK];
    for (int i = 0; i < n; ++i) put(made[i], next(i, value(p[i])));
    if (k.known) sum.before += square_sum<T>(p, n);
    std::memcpy(p, made, n * sizeof(P));
    if (k.scales) sum.after += square_sum<T>(made, n);
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
