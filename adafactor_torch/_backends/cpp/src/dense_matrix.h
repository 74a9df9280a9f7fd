// The phases of common matrices, with their loops fused and vectorised and nothing copied: weights and gradients in float32
// or bfloat16 whose columns are adjacent, without options that ask for more than g, p and a float32 momentum.
//
// RMS(u) needs no pass over g of its own. With u_ij = g_ij / sqrt(R_i / mean(R) * C_j),
//
//     sum_ij u_ij^2 = mean(R) * sum_j (sum_i g_ij^2 / R_i) / C_j
//
// where R and C are those of this step. R_i is known as soon as row i has been read, so phase 1 adds up g_ij^2 / R_i for each
// column in the same pass as g_ij^2 (the "weighted" sums). Phase 2 then only divides those by C. g_ij^2 / R_i is at most the
// number of columns by 1 - beta2, so that float32 holds it whatever the size of the gradient.
//
// A part of a parameter, whose R and C are known only once all processes have added up, reads g for RMS(u) (`squares_of_u`).

#pragma once

#include <type_traits>

#include "parameter.h"
#include "writes.h"

namespace {

inline bool is_dense_matrix(const Task& k) {
  const bool narrow = (k.p.dtype == F32 || k.p.dtype == BF16) && (k.g.dtype == F32 || k.g.dtype == BF16);
  const bool adjacent = k.p.stride[3] == 1 && k.g.stride[3] == 1;
  const bool momentum = k.momentum != GRAD && k.momentum_rounding == STORE && k.m.dtype == F32 && k.m.stride[3] == 1;
  const bool in_order = !k.element.data && k.element.stride[3] == 1;
  const bool rounds = k.rounding == NEAREST || (k.rounding == STOCHASTIC && k.p.dtype == BF16 && in_order);
  return narrow && adjacent && (momentum || k.momentum == NONE) && k.factored && !k.eps1_is_floor && !k.amsgrad &&
         k.decay != BY_GRAD && rounds && k.inverse_grad_scale == 1.0 && !k.maximize;
}

constexpr int FEW = 4;              // rows at a time
constexpr int64_t WIDE_ROW = 2048;  // with more columns, what is kept of them does not stay in the first-level cache

// The phases of `Parameter`, for weights of type P and gradients of type G.
template <typename P, typename G> struct DenseMatrix : Parameter<float> {
  using T = float;
  static constexpr bool ONE_PASS = true, PAIRS = sizeof(P) == 2 && sizeof(G) == 2;
  static constexpr SumOrder SUM_ORDER = PAIRS ? BY_HALVES_OF_PAIRS : BY_HALVES;
  static constexpr int64_t LINE = 64 / sizeof(G);  // elements of a cache line
  const int64_t grouped = C / GROUP * GROUP;       // columns in whole groups
  const bool wide = C > WIDE_ROW;

  template <typename S> static S* row_of(const Array& a, int64_t b, int64_t l, int64_t r) {
    return reinterpret_cast<S*>(a.data) + a.at(b, l, r, 0);
  }

  // f(N, first row, distance) for all rows of a unit, N at a time. Phase 3 and `squares_of_p` both go through p like this,
  // so that the sum of p^2 that one step hands to the next has the bits of the one that a resumed run computes.
  template <typename F> void rows_of_unit(const Unit& at, F f) const {
    const int64_t quarter = wide ? (at.r1 - at.r0) / FEW : 0;
    for (int64_t r = at.r0; r < at.r0 + quarter; ++r) f(std::integral_constant<int, FEW>(), r, quarter);
    for (int64_t r = at.r0 + FEW * quarter; r < at.r1; ++r) f(std::integral_constant<int, 1>(), r, 1);
  }

  double squares_of_p(const Unit& at) const {
    Sum sum;
    for (int64_t l = at.l0; l < at.l1; ++l)
      rows_of_unit(at, [&](auto n, int64_t r, int64_t distance) {
        const P* p[n()];
        for (int q = 0; q < n(); ++q) p[q] = row_of<const P>(k.p, at.b, l, r + q * distance);
        for (int64_t c = 0; c < grouped; c += CHUNK / 2) {
          Lanes lanes;
          const int64_t end = std::min(grouped, c + CHUNK / 2);
          for (int64_t i = c; i < end; i += GROUP)
            for (int q = 0; q < n(); ++q)
              for (int j = 0; j < PER; ++j) lanes.square(j, get<PAIRS>(p[q] + i, j));
          sum += lanes;
        }
        for (int q = 0; q < n(); ++q)
          for (int64_t i = grouped; i < C; ++i) sum.square(value(p[q][i]));
      });
    return sum.all();
  }

  // --- phase 1, and what phase 2 needs of g --------------------------------------------------------------------------

  // Adds N rows of g that are `distance` apart: first each row's own sum, and with it R, then their columns' sums.
  // Adjacent rows are summed one after the other; while their columns are, memory brings the `more` rows behind them. Rows
  // that are FAR from each other are summed side by side, so that memory is read in N streams.
  template <int N, bool FAR, bool WEIGHTED>
  void sum_rows(const Unit& at, int64_t l, int64_t r, int64_t distance, bool more, T* columns, T* weighted) const {
    constexpr int TOGETHER = FAR ? N : 1;
    const G* g[N];
    T root[N] = {};  // 1 / sqrt(R)
    Sum sums[N];
    for (int q = 0; q < N; ++q) g[q] = row_of<const G>(k.g, at.b, l, r + q * distance);
    for (int first = 0; first < N; first += TOGETHER)
      for (int64_t c = 0; c < grouped; c += CHUNK) {
        Lanes lanes[TOGETHER];
        const int64_t end = std::min(grouped, c + CHUNK);
        for (int64_t i = c; i < end; i += GROUP)
          for (int q = 0; q < TOGETHER; ++q)
            for (int j = 0; j < PER; ++j) lanes[q].square(j, get<PAIRS>(g[first + q] + i, j));
        for (int q = 0; q < TOGETHER; ++q) sums[first + q] += lanes[q];
      }
    for (int q = 0; q < N; ++q) {
      for (int64_t i = grouped; i < C; ++i) sums[q].square(value(g[q][i]));
      row_mean(at.b, l, r + q * distance, sums[q].all());
      if (WEIGHTED) root[q] = T(1) / std::sqrt(element<T>(k.v_row, k.v_row.at(at.b, l, r + q * distance, 0)));
    }
    const int64_t next = more && !FAR ? N * k.g.stride[2] : 0;
    for (int64_t i = 0; i < grouped; i += GROUP) {
      if (next)
        for (int64_t e = 0; e < N * GROUP; e += LINE) __builtin_prefetch(g[0] + next + N * i + e, 0, 2);
      for (int j = 0; j < PER; ++j) {
        Two column = get<false>(columns + i, j), weight = {};
        if (WEIGHTED) weight = get<false>(weighted + i, j);
        for (int q = 0; q < N; ++q) {
          const Two x = get<PAIRS>(g[q] + i, j);
          column.first += x.first * x.first;
          column.second += x.second * x.second;
          if (WEIGHTED) {
            const Floats y = x.first * root[q], z = x.second * root[q];  // divided before it is squared: no overflow
            weight.first += y * y;
            weight.second += z * z;
          }
        }
        set_floats<false>(columns + i, j, column);
        if (WEIGHTED) set_floats<false>(weighted + i, j, weight);
      }
    }
    for (int64_t i = grouped; i < C; ++i)
      for (int q = 0; q < N; ++q) {
        const T x = value(g[q][i]), y = x * root[q];
        columns[i] += x * x;
        if (WEIGHTED) weighted[i] += y * y;
      }
  }

  // The sums of the columns of one matrix of a unit, in the order of halves: as T over T_ROWS rows, as double beyond.
  template <bool WEIGHTED>
  void sum_unit(const Unit& at, int64_t l, T* columns, T* weighted, double* total, double* total_weighted) const {
    const auto flush = [&] {
      for (int64_t c = 0; c < C; ++c) total[c] += double(columns[c]);
      std::fill(columns, columns + C, T(0));
      if (!WEIGHTED) return;
      for (int64_t c = 0; c < C; ++c) total_weighted[c] += double(weighted[c]);
      std::fill(weighted, weighted + C, T(0));
    };
    const int64_t quarter = (at.r1 - at.r0) / FEW;
    for (int64_t i = 0; i < quarter; ++i) {
      if (wide)
        sum_rows<FEW, true, WEIGHTED>(at, l, at.r0 + i, quarter, false, columns, weighted);
      else
        sum_rows<FEW, false, WEIGHTED>(at, l, at.r0 + FEW * i, 1, i + 1 < quarter, columns, weighted);
      if ((i + 1) % (T_ROWS / FEW) == 0) flush();
    }
    for (int64_t r = at.r0 + FEW * quarter; r < at.r1; ++r)
      sum_rows<1, false, WEIGHTED>(at, l, r, 1, false, columns, weighted);
    flush();
  }

  // Phase 1 of a unit, as in `Parameter`, and with `for_u` what phase 2 needs: of a split matrix the weighted sums of its
  // columns, which go to `weighted`; of whole matrices the sum of u^2, which is returned.
  double statistics(const Unit& at, double* sums, double* weighted = nullptr, bool for_u = false) const {
    const int64_t padded = (C + LANES - 1) / LANES * LANES;
    const Aligned<T> rows(2 * padded);
    std::vector<double> total(C), total_weighted(for_u ? C : 0), in_order(split ? 0 : C);
    double squares = 0;
    std::fill(rows.data, rows.data + 2 * padded, T(0));
    for (int64_t l = at.l0; l < at.l1; ++l) {
      std::fill(total.begin(), total.end(), 0.0);
      std::fill(total_weighted.begin(), total_weighted.end(), 0.0);
      if (for_u)
        sum_unit<true>(at, l, rows.data, rows.data + padded, total.data(), total_weighted.data());
      else
        sum_unit<false>(at, l, rows.data, nullptr, total.data(), nullptr);
      if (split) {
        from_halves<PAIRS>(C, total.data(), sums);
        if (for_u) from_halves<PAIRS>(C, total_weighted.data(), weighted);
        continue;
      }
      from_halves<PAIRS>(C, total.data(), in_order.data());
      col_means(at.b, l, 0, C, in_order.data());
      if (!for_u) continue;
      from_halves<PAIRS>(C, total_weighted.data(), in_order.data());
      const double root = double(norm(at.b, l));
      squares += root * root * weighted_by_columns(at.b, l, 0, C, in_order.data());
    }
    return squares;
  }

  // The sum over some columns of their weighted sums by C: the sum of u^2 by mean(R).
  double weighted_by_columns(int64_t b, int64_t l, int64_t first, int64_t last, const double* weighted) const {
    double sum[LANES] = {}, all = 0;
    for (int64_t c = first; c < last; c += CHUNK) {
      const int n = int(std::min<int64_t>(CHUNK, last - c));
      T x[CHUNK];
      double y[CHUNK] = {};
      load(k.v_col, k.v_col.at(b, l, 0, c), k.v_col.stride[3], n, x);
      for (int i = 0; i < n; ++i) y[i] = weighted[c - first + i] / double(x[i]);
      for (int i = 0; i < CHUNK; i += LANES)
        for (int j = 0; j < LANES; ++j) sum[j] += y[i + j];
    }
    for (int j = 0; j < LANES; ++j) all += sum[j];
    return all;
  }

  // Of CHUNK columns of a split matrix: C, and with the `weighted` sums of its units what they add to the sum of u^2 by
  // mean(R).
  double columns_of(int64_t i, const double* sums, const double* weighted = nullptr) const {
    const ColumnChunk at = column_chunk(i);
    double sum[CHUNK];
    add_units(at, sums, sum);
    col_means(at.b, at.l, at.first, at.last, sum);
    if (!weighted) return 0;
    add_units(at, weighted, sum);
    return weighted_by_columns(at.b, at.l, at.first, at.last, sum);
  }

  // --- phase 2 of a part ---------------------------------------------------------------------------------------------

  // 1 / sqrt(C) of a matrix, in the order of halves; `in_order` is room for as many.
  void column_roots_in_halves(int64_t b, int64_t l, T* in_order, T* roots) const {
    column_roots(b, l, PAIRS ? in_order : roots);
    if (PAIRS) to_halves<PAIRS>(C, in_order, roots);
  }

  double squares_of_u(const Unit& at, const T* norms) const {
    const Aligned<T> roots(C), in_order(PAIRS ? C : 0);
    const T* columns = roots.data;
    double sum = 0;
    for (int64_t l = at.l0; l < at.l1; ++l) {
      column_roots_in_halves(at.b, l, in_order.data, roots.data);
      for (int64_t r = at.r0; r < at.r1; ++r) {
        const G* g = row_of<const G>(k.g, at.b, l, r);
        const double root = double(row_root(at.b, l, r, norms[at.b * L + l]));
        Sum row;
        for (int64_t c = 0; c < grouped; c += CHUNK) {
          Lanes lanes;
          const int64_t end = std::min(grouped, c + CHUNK);
          for (int64_t i = c; i < end; i += GROUP)
            for (int j = 0; j < PER; ++j) {
              const Two x = get<PAIRS>(g + i, j), y = get<false>(columns + i, j);
              lanes.square(j, {x.first * y.first, x.second * y.second});
            }
          row += lanes;
        }
        for (int64_t i = grouped; i < C; ++i) row.square(value(g[i]) * columns[i]);
        sum += row.all() / (root * root);
      }
    }
    return sum;
  }

  // --- phase 3 -------------------------------------------------------------------------------------------------------

  template <int N> struct Rows {
    const G* g[N];
    P* p[N];
    T* m[N];
    T ahead[N], factor[N];  // of g / sqrt(C): to what is averaged, and to the step
    uint32_t index[N];      // of the row's first element
  };

  Written apply(const Unit& at, const T* norms, const Step& step) const {
    if constexpr (std::is_same_v<P, bfloat16>)
      if (k.rounding == STOCHASTIC)
        return apply(at, norms, step, [key = uint32_t(k.key)](uint32_t index) { return Stochastic<PAIRS>{index, key}; });
    return apply(at, norms, step, [](uint32_t) { return Nearest<PAIRS>(); });
  }

  template <typename W> Written apply(const Unit& at, const T* norms, const Step& step, W writer) const {
    const Aligned<T> roots(C), in_order(PAIRS ? C : 0);
    Sum before, after;
    for (int64_t l = at.l0; l < at.l1; ++l) {
      column_roots_in_halves(at.b, l, in_order.data, roots.data);
      rows_of_unit(at, [&](auto n, int64_t r, int64_t distance) {
        const Rows<n()> rows = rows_from<n()>(at.b, l, r, distance, norms[at.b * L + l], step);
        apply_rows(rows, roots.data, step, writer, before, after);
      });
    }
    return {before.all(), after.all()};
  }

  template <int N>
  Rows<N> rows_from(int64_t b, int64_t l, int64_t first, int64_t distance, T norm, const Step& step) const {
    Rows<N> rows;
    for (int q = 0; q < N; ++q) {
      const int64_t r = first + q * distance;
      const T row = row_root(b, l, r, norm);
      rows.g[q] = row_of<const G>(k.g, b, l, r);
      rows.p[q] = row_of<P>(k.p, b, l, r);
      rows.m[q] = k.momentum == NONE ? nullptr : row_of<T>(k.m, b, l, r);
      rows.ahead[q] = (k.momentum == STEP ? step.alpha : T(1)) / step.clip / row;
      rows.factor[q] = rows.ahead[q] * step.alpha;
      rows.index[q] = uint32_t(k.first + k.element.at(b, l, r, 0));
    }
    return rows;
  }

  template <int N, typename W>
  void apply_rows(const Rows<N>& rows, const T* columns, const Step& step, W writer, Sum& before, Sum& after) const {
    const T decay = decoupled ? T(k.weight_decay) * (k.decay == BY_STEP ? step.alpha : T(1)) : T(0);
    const T beta = T(k.beta1), complement = T(k.beta1_complement), bias = k.debias ? T(k.bias1) : T(1);
    const T behind = (k.momentum == STEP ? T(1) : step.alpha) / bias;
    if (k.momentum == NONE && !decoupled)
      sweep<N, false>(rows, columns, writer, before, after,
                      [](auto x, auto u, auto&, T, T factor) { return x - u * factor; });
    else if (k.momentum == NONE)
      sweep<N, false>(rows, columns, writer, before, after,
                      [decay](auto x, auto u, auto&, T, T factor) { return x - (u * factor + decay * x); });
    else if (!decoupled)  // 0 * x would be NaN where x is infinite
      sweep<N, true>(rows, columns, writer, before, after,
                     [beta, complement, behind](auto x, auto u, auto& m, T ahead, T) {
                       m = beta * m + complement * (u * ahead);
                       return x - m * behind;
                     });
    else
      sweep<N, true>(rows, columns, writer, before, after,
                     [decay, beta, complement, behind](auto x, auto u, auto& m, T ahead, T) {
                       m = beta * m + complement * (u * ahead);
                       return x - (m * behind + decay * x);
                     });
  }

  // N rows of p become next(p, g / sqrt(C), m, ahead, factor), with the sums of squares before and after.
  template <int N, bool AVERAGES, typename W, typename F>
  void sweep(const Rows<N> rows, const T* columns, const W writer, Sum& before, Sum& after, F next) const {
    const int64_t grouped = this->grouped;
    for (int64_t c = 0; c < grouped; c += CHUNK / 2) {
      Lanes old, made;
      const int64_t end = std::min(grouped, c + CHUNK / 2);
      for (int64_t i = c; i < end; i += GROUP)
        for (int q = 0; q < N; ++q)
          for (int j = 0; j < PER; ++j) {
            const Two x = get<PAIRS>(rows.p[q] + i, j), y = get<PAIRS>(rows.g[q] + i, j);
            const Two column = get<false>(columns + i, j);
            Two m = {};
            if (AVERAGES) m = get_floats<PAIRS>(rows.m[q] + i, j);
            old.square(j, x);
            const Two z = {next(x.first, y.first * column.first, m.first, rows.ahead[q], rows.factor[q]),
                           next(x.second, y.second * column.second, m.second, rows.ahead[q], rows.factor[q])};
            if (AVERAGES) set_floats<PAIRS>(rows.m[q] + i, j, m);
            made.square(j, writer(rows.index[q])(rows.p[q] + i, i, j, z));
          }
      before += old;
      after += made;
    }
    for (int q = 0; q < N; ++q)
      for (int64_t i = grouped; i < C; ++i) {
        P& p = rows.p[q][i];
        T m = AVERAGES ? rows.m[q][i] : T(0);
        before.square(value(p));
        const T x = next(value(p), value(rows.g[q][i]) * columns[i], m, rows.ahead[q], rows.factor[q]);
        put(p, writer(rows.index[q]).one(x, i));
        if (AVERAGES) rows.m[q][i] = m;
        after.square(value(p));
      }
  }
};

}  // namespace
