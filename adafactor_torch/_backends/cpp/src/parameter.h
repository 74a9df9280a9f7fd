// The phases of one parameter with every option of the recipe.

#pragma once

#include <vector>

#include "parallel.h"
#include "task.h"

namespace {

// A chunk is CHUNK columns of a row; of small matrices, one element each of CHUNK of them (ACROSS).
template <typename Compute, bool ACROSS = false> struct Parameter {
  using T = Compute;
  static constexpr int ALONG = ACROSS ? 1 : 3;  // the axis of a chunk
  static constexpr bool ONE_PASS = false;       // whether phase 2 reads g once more
  static constexpr SumOrder SUM_ORDER = ACROSS ? ACROSS_MATRICES : BY_CHUNKS;
  struct Unit { int64_t b, l0, l1, r0, r1; };
  struct Written { double before = 0, after = 0; };     // sums of p^2 of one unit
  struct Step { T alpha, clip; };                       // of one batch index
  struct Kept { T v[CHUNK], v_max[CHUNK], m[CHUNK]; };  // what a chunk leaves to be stored

  const Task& k;
  const int threads;
  const int64_t B = k.size[0], L = k.size[1], R = k.size[2], C = k.size[3];
  const bool split = R * C > UNIT;
  const int64_t unit_rows = std::max(UNIT_ROWS, UNIT / std::max<int64_t>(C, 1));
  const int64_t per_matrix = split ? (R + unit_rows - 1) / unit_rows : 1;
  const int64_t unit_matrices = split ? 1 : std::max<int64_t>(1, UNIT / std::max<int64_t>(R * C, 1));
  const int64_t per_batch = split ? L * per_matrix : (L + unit_matrices - 1) / unit_matrices;
  const int64_t units = B * per_batch;
  const bool measures = k.telemetry;
  const bool decoupled = k.decay == BY_STEP || k.decay == BY_ONE;
  const bool inverse_columns = !k.eps1_is_floor && !k.amsgrad;  // u = g / sqrt(C) / sqrt(R / mean(R)), one by one
  const T floor = T(k.eps1), added = k.eps1_is_floor ? T(0) : T(k.eps1);

  Unit unit(int64_t i) const {
    const int64_t b = i / per_batch, j = i % per_batch;
    if (split) {
      const int64_t r0 = j % per_matrix * unit_rows;
      return {b, j / per_matrix, j / per_matrix + 1, r0, std::min(R, r0 + unit_rows)};
    }
    return {b, j * unit_matrices, std::min(L, (j + 1) * unit_matrices), 0, R};
  }

  // f(i) for i < n: every thread has the same part at every call, and goes through it forwards or backwards, so that a
  // phase begins with what the one before has left in the thread's cache.
  template <typename F> void each(int64_t n, F f, bool backwards = false) const {
    on_threads(n > 1 ? threads : 1, [&](int t) {
      const int64_t parts = n > 1 ? threads : 1, first = n * t / parts, end = n * (t + 1) / parts;
      for (int64_t i = first; i < end; ++i) f(backwards ? first + end - 1 - i : i);
    });
  }

  template <typename F> void chunks(const Unit& at, int64_t l, F f) const {
    for (int64_t r = at.r0; r < at.r1; ++r)
      for (int64_t c = 0; c < C; c += ACROSS ? 1 : CHUNK)
        f(at.b, l, r, c, int(ACROSS ? matrices(at, l) : std::min<int64_t>(CHUNK, C - c)));
  }
  // From the first of a unit's matrices on, one after the other or as many as a chunk takes.
  static constexpr int64_t STEP_OF_L = ACROSS ? CHUNK : 1;
  static int64_t matrices(const Unit& at, int64_t l) { return std::min(STEP_OF_L, at.l1 - l); }

  // The weight; with a compensation the sum of the two.
  void weight(int64_t b, int64_t l, int64_t r, int64_t c, int n, T* p) const {
    load(k.p, k.p.at(b, l, r, c), k.p.stride[ALONG], n, p);
    if (k.rounding == KAHAN) {
      T rest[CHUNK];
      load(k.compensation, k.compensation.at(b, l, r, c), k.compensation.stride[ALONG], n, rest);
      for (int i = 0; i < n; ++i) p[i] += rest[i];
    }
  }

  void gradient(int64_t b, int64_t l, int64_t r, int64_t c, int n, T* g) const {
    load(k.g, k.g.at(b, l, r, c), k.g.stride[ALONG], n, g);
    if (k.inverse_grad_scale != 1.0 || k.maximize) {
      const T factor = T(k.maximize ? -k.inverse_grad_scale : k.inverse_grad_scale);
      for (int i = 0; i < n; ++i) g[i] *= factor;
    }
    if (k.decay == BY_GRAD) {
      T p[CHUNK];
      weight(b, l, r, c, n, p);
      for (int i = 0; i < n; ++i) g[i] += T(k.weight_decay) * p[i];
    }
  }

  // The first moment with x in it: x becomes the average that is used, `kept` the one to store.
  void average(int64_t at, int n, T* x, T* kept) const {
    T m[CHUNK];
    load(k.m, at, k.m.stride[ALONG], n, m);
    const T beta = T(k.beta1), complement = T(k.beta1_complement), narrow = T(k.narrow1);
    if (k.momentum_rounding == USE) {
      for (int i = 0; i < n; ++i) {
        const T y = rounded(x[i], k.m.dtype), d = y - m[i];
        kept[i] = rounded(k.beta1_complement < 0.5 ? m[i] + complement * d : y - beta * d, k.m.dtype);
      }
    } else if (k.momentum_rounding == DECAY) {
      for (int i = 0; i < n; ++i) kept[i] = rounded(narrow * m[i], k.m.dtype) + complement * x[i];
    } else {
      for (int i = 0; i < n; ++i) kept[i] = beta * m[i] + complement * x[i];
    }
    for (int i = 0; i < n; ++i) x[i] = kept[i];
    if (k.debias)
      for (int i = 0; i < n; ++i) x[i] /= T(k.bias1);
  }

  // Phase 1 of a unit: R, and the sums for C (of a split matrix; else C itself). `rows(l, r0, r1, columns)` adds the
  // squares of some rows to the columns', and writes those rows' R.
  template <typename F> void statistics(const Unit& at, double* sums, F rows) const {
    std::vector<T> columns(C);
    std::vector<double> total(C);
    for (int64_t l = at.l0; l < at.l1; ++l) {
      std::fill(total.begin(), total.end(), 0.0);
      for (int64_t r = at.r0; r < at.r1; r += T_ROWS) {
        std::fill(columns.begin(), columns.end(), T(0));
        rows(l, r, std::min(at.r1, r + T_ROWS), columns.data());
        for (int64_t c = 0; c < C; ++c) total[c] += double(columns[c]);
      }
      if (split)
        std::copy(total.begin(), total.end(), sums);
      else
        col_means(at.b, l, 0, C, total.data());
    }
  }

  void statistics(const Unit& at, double* sums) const {
    if constexpr (ACROSS) return statistics_across(at);
    statistics(at, sums, [&](int64_t l, int64_t r0, int64_t r1, T* columns) {
      double row = 0;
      chunks({at.b, l, l + 1, r0, r1}, l, [&](int64_t b, int64_t l, int64_t r, int64_t c, int n) {
        T x[CHUNK];
        gradient(b, l, r, c, n, x);
        for (int i = 0; i < n; ++i) columns[c + i] += x[i] * x[i];
        row += square_sum<T>(x, n);
        if (c + n == C) {
          row_mean(b, l, r, row);
          row = 0;
        }
      });
    });
  }

  void statistics_across(const Unit& at) const {
    std::vector<T> columns(C * CHUNK);
    T x[CHUNK];
    for (int64_t l = at.l0; l < at.l1; l += STEP_OF_L) {
      const int n = int(matrices(at, l));
      std::fill(columns.begin(), columns.end(), T(0));
      for (int64_t r = 0; r < R; ++r) {
        T row[CHUNK] = {};
        for (int64_t c = 0; c < C; ++c) {
          T* column = columns.data() + c * CHUNK;
          gradient(at.b, l, r, c, n, x);
          for (int i = 0; i < n; ++i) row[i] += x[i] * x[i];
          for (int i = 0; i < n; ++i) column[i] += x[i] * x[i];
        }
        if (k.row_means)
          means_across(k.row_means, at.b * L + l, R, r, n, row, T(C), T(k.all_cols));
        else
          moments(k.v_row, k.v_row.at(at.b, l, r, 0), n, row, T(C));
      }
      for (int64_t c = 0; c < C; ++c) {
        const T* column = columns.data() + c * CHUNK;
        if (k.col_means)
          means_across(k.col_means, at.b * L + l, C, c, n, column, T(R), T(k.all_rows));
        else
          moments(k.v_col, k.v_col.at(at.b, l, 0, c), n, column, T(R));
      }
    }
  }

  // What is done with the sums of the squares of a row or of columns: they go into R or C, or wait for other processes'.
  void row_mean(int64_t b, int64_t l, int64_t r, double sum) const {
    if (k.row_means)
      as_T(k.row_means)[(b * L + l) * R + r] = T((sum + double(added) * double(C)) / k.all_cols);
    else
      moment(k.v_row, k.v_row.at(b, l, r, 0), sum / double(C));
  }
  void col_means(int64_t b, int64_t l, int64_t first, int64_t last, const double* sums) const {
    if (k.col_means)
      for (int64_t c = first; c < last; ++c)
        as_T(k.col_means)[(b * L + l) * C + c] = T((sums[c - first] + double(added) * double(R)) / k.all_rows);
    else
      for (int64_t c = first; c < last; c += CHUNK) {
        const int n = int(std::min<int64_t>(CHUNK, last - c));
        const int64_t at = k.v_col.at(b, l, 0, c);
        T x[CHUNK];
        load(k.v_col, at, k.v_col.stride[3], n, x);
        for (int i = 0; i < n; ++i)
          x[i] = T(k.beta2) * x[i] + T(k.beta2_complement) * T(sums[c - first + i] / double(R) + double(added));
        store(k.v_col, at, k.v_col.stride[3], n, x);
      }
  }
  // The place `at` among `size` of n matrices, from sums of `count` of `all` squares.
  void means_across(char* means, int64_t matrix, int64_t size, int64_t at, int n, const T* sums, T count, T all) const {
    for (int i = 0; i < n; ++i) as_T(means)[(matrix + i) * size + at] = sums[i] / all + added * (count / all);
  }
  static T* as_T(char* data) { return reinterpret_cast<T*>(data); }

  // R or C of some matrices, from sums of `count` squares.
  void moments(const Array& a, int64_t at, int n, const T* sums, T count) const {
    T x[CHUNK];
    load(a, at, a.stride[ALONG], n, x);
    const T beta = T(k.beta2), complement = T(k.beta2_complement);
    for (int i = 0; i < n; ++i) x[i] = beta * x[i] + complement * (sums[i] / count + added);
    store(a, at, a.stride[ALONG], n, x);
  }

  double squares_of_p(const Unit& at) const {
    double sum = 0;
    for (int64_t l = at.l0; l < at.l1; l += STEP_OF_L)
      chunks(at, l, [&](int64_t b, int64_t l, int64_t r, int64_t c, int n) {
        T p[CHUNK];
        weight(b, l, r, c, n, p);
        sum += square_sum<T>(p, n);
      });
    return sum;
  }

  // R or C with a new mean of g^2 in it; what is stored is what is used.
  void moment(const Array& a, int64_t at, double mean) const { put_moment(a, at, T(mean + double(added))); }
  void put_moment(const Array& a, int64_t at, T mean) const {
    const T x = with_mean(a, at, mean);
    store(a, at, 1, 1, &x);
  }
  T with_mean(const Array& a, int64_t at, T mean) const {
    return T(k.beta2) * element<T>(a, at) + T(k.beta2_complement) * mean;
  }

  // sqrt(mean(R)) of a matrix.
  T norm(int64_t b, int64_t l) const {
    double sum = 0;
    for (int64_t r = 0; r < R; ++r) sum += double(element<T>(k.v_row, k.v_row.at(b, l, r, 0)));
    return root_of_mean(T(sum / double(R)));
  }
  T root_of_mean(T mean) const { return std::sqrt(k.eps1_is_floor && mean < floor ? floor : mean); }

  T row_root(int64_t b, int64_t l, int64_t r, T norm) const {
    return std::sqrt(element<T>(k.v_row, k.v_row.at(b, l, r, 0))) / norm;
  }

  void column_roots(int64_t b, int64_t l, T* roots) const {
    load(k.v_col, k.v_col.at(b, l, 0, 0), k.v_col.stride[3], C, roots);
    for (int64_t c = 0; c < C; ++c) roots[c] = std::sqrt(roots[c]);
    if (inverse_columns)
      for (int64_t c = 0; c < C; ++c) roots[c] = T(1) / roots[c];
  }

  // The same of n matrices, behind each other.
  void roots_across(int64_t b, int64_t l, int n, T* rows, T* columns) const {
    T norm[CHUNK] = {};
    for (int64_t r = 0; r < R; ++r) {
      T* row = rows + r * CHUNK;
      load(k.v_row, k.v_row.at(b, l, r, 0), k.v_row.stride[ALONG], n, row);
      for (int i = 0; i < n; ++i) norm[i] += row[i] / T(R);
    }
    for (int i = 0; i < n; ++i) norm[i] = std::sqrt(k.eps1_is_floor && norm[i] < floor ? floor : norm[i]);
    if (k.norms) std::copy_n(as_T(k.norms) + b * L + l, n, norm);
    for (int64_t r = 0; r < R; ++r)
      for (int i = 0; i < n; ++i) rows[r * CHUNK + i] = std::sqrt(rows[r * CHUNK + i]) / norm[i];
    for (int64_t c = 0; c < C; ++c) {
      T* column = columns + c * CHUNK;
      load(k.v_col, k.v_col.at(b, l, 0, c), k.v_col.stride[ALONG], n, column);
      for (int i = 0; i < n; ++i) column[i] = std::sqrt(column[i]);
      if (inverse_columns)
        for (int i = 0; i < n; ++i) column[i] = T(1) / column[i];
    }
  }

  // u of one chunk.
  void direction(int64_t b, int64_t l, int64_t r, int64_t c, int n, const T* rows, const T* columns, T* u,
                 Kept& kept) const {
    T root[CHUNK];
    gradient(b, l, r, c, n, u);
    if (!k.factored) {
      load(k.v, k.v.at(b, l, r, c), k.v.stride[ALONG], n, root);
      const T beta = T(k.beta2), complement = T(k.beta2_complement);
      for (int i = 0; i < n; ++i) kept.v[i] = rounded(beta * root[i] + complement * (u[i] * u[i] + added), k.v.dtype);
      for (int i = 0; i < n; ++i) root[i] = std::sqrt(kept.v[i]);
    }
    if (k.momentum == GRAD) average(k.m.at(b, l, r, c), n, u, kept.m);
    if (k.factored) {
      if (inverse_columns) {
        for (int i = 0; i < n; ++i) u[i] = u[i] * columns[i] / rows[i];
        return;
      }
      for (int i = 0; i < n; ++i) root[i] = rows[i] * columns[i];
    }
    if (k.eps1_is_floor)
      for (int i = 0; i < n; ++i) root[i] = root[i] < floor ? floor : root[i];
    if (!k.amsgrad) {
      for (int i = 0; i < n; ++i) u[i] /= root[i];
      return;
    }
    load(k.v_max, k.v_max.at(b, l, r, c), k.v_max.stride[ALONG], n, kept.v_max);
    for (int i = 0; i < n; ++i) {
      const T square = root[i] * root[i], old = kept.v_max[i];
      kept.v_max[i] = rounded(old >= square || old != old ? old : square, k.v_max.dtype);
      u[i] /= std::sqrt(kept.v_max[i] / T(k.bias2)) + T(k.eps1);
    }
  }

  // Every chunk of a unit with its u.
  template <typename F> void directions(const Unit& at, const T* norms, F f) const {
    std::vector<T> rows(ACROSS ? R * CHUNK : CHUNK), columns(ACROSS ? C * CHUNK : k.factored ? C : 0);
    T u[CHUNK];
    Kept kept;
    for (int64_t l = at.l0; l < at.l1; l += STEP_OF_L) {
      if constexpr (ACROSS)
        roots_across(at.b, l, int(matrices(at, l)), rows.data(), columns.data());
      else if (k.factored)
        column_roots(at.b, l, columns.data());
      chunks(at, l, [&](int64_t b, int64_t l, int64_t r, int64_t c, int n) {
        const int64_t row = ACROSS ? r * CHUNK : 0, column = ACROSS ? c * CHUNK : c;
        if (!ACROSS && k.factored) std::fill(rows.begin(), rows.begin() + n, row_root(b, l, r, norms[b * L + l]));
        direction(b, l, r, c, n, rows.data() + row, columns.data() + column, u, kept);
        f(b, l, r, c, n, u, kept);
      });
    }
  }

  // Phase 2 of a unit: the sum of u^2.
  double squares_of_u(const Unit& at, const T* norms) const {
    double sum = 0;
    directions(at, norms, [&](int64_t, int64_t, int64_t, int64_t, int n, T* u, Kept&) { sum += square_sum<T>(u, n); });
    return sum;
  }

  // alpha and the clip factor of a batch index.
  Step scale(int64_t b, double p_mean, double u_mean) const {
    const T p_rms = T(std::sqrt(p_mean)), u_rms = T(std::sqrt(u_mean));
    T of = k.decay_before_scale ? p_rms * T(std::fabs(1.0 - k.weight_decay)) : p_rms, clip = u_rms / T(k.clipping_threshold);
    of = of < T(k.eps2) ? T(k.eps2) : of;
    of = of > T(k.max_parameter_scale) ? T(k.max_parameter_scale) : of;
    clip = !k.clips || clip < T(1) ? T(1) : clip;
    const T alpha = k.multiply_by_parameter_scale ? T(k.rho) * of : T(k.rho);
    if (k.telemetry) {
      const float recorded[] = {float(alpha), float(u_rms), float(clip), float(p_rms)};
      std::copy(recorded, recorded + 4, k.telemetry + 4 * b);
    }
    return {alpha, clip};
  }

  // Phase 3 of a unit: clip, scale, average, decay, round once, write.
  Written apply(const Unit& at, const T* norms, const Step& step) const {
    const T decay = T(k.weight_decay) * (k.decay == BY_STEP ? step.alpha : T(1));
    Written sum;
    directions(at, norms, [&](int64_t b, int64_t l, int64_t r, int64_t c, int n, T* u, Kept& kept) {
      T p[CHUNK];
      for (int i = 0; i < n; ++i) u[i] /= step.clip;
      if (k.momentum == UPDATE) average(k.m.at(b, l, r, c), n, u, kept.m);
      for (int i = 0; i < n; ++i) u[i] *= step.alpha;
      if (k.momentum == STEP) average(k.m.at(b, l, r, c), n, u, kept.m);
      weight(b, l, r, c, n, p);
      if (k.has_square_sum) sum.before += square_sum<T>(p, n);
      if (decoupled)
        for (int i = 0; i < n; ++i) u[i] += decay * p[i];
      for (int i = 0; i < n; ++i) p[i] -= u[i];
      write(b, l, r, c, n, p);
      if (!k.factored) store(k.v, k.v.at(b, l, r, c), k.v.stride[ALONG], n, kept.v);
      if (k.amsgrad) store(k.v_max, k.v_max.at(b, l, r, c), k.v_max.stride[ALONG], n, kept.v_max);
      if (k.momentum != NONE) store(k.m, k.m.at(b, l, r, c), k.m.stride[ALONG], n, kept.m);
      if (k.multiply_by_parameter_scale) {
        weight(b, l, r, c, n, p);
        sum.after += square_sum<T>(p, n);
      }
    });
    return sum;
  }

  uint32_t index(int64_t at) const {
    return k.element.data ? reinterpret_cast<const uint32_t*>(k.element.data)[at] : uint32_t(at);
  }

  void write(int64_t b, int64_t l, int64_t r, int64_t c, int n, T* p) const {
    const int64_t to = k.p.at(b, l, r, c), stride = k.element.stride[ALONG];
    const int64_t first = k.first + k.element.at(b, l, r, c);
    if (k.rounding == STOCHASTIC)
      for (int i = 0; i < n; ++i)
        p[i] = T(stochastic(float(p[i]), mix(index(first + i * stride) ^ uint32_t(k.key)), k.p.dtype));
    store(k.p, to, k.p.stride[ALONG], n, p);
    if (k.rounding == KAHAN) {
      T kept[CHUNK];
      load(k.p, to, k.p.stride[ALONG], n, kept);
      for (int i = 0; i < n; ++i) kept[i] = p[i] - kept[i];
      store(k.compensation, k.compensation.at(b, l, r, c), k.compensation.stride[ALONG], n, kept);
    }
  }

  // The columns of split matrices, CHUNK at a time.
  struct ColumnChunk { int64_t b, l, first, last; };
  const int64_t chunks_of_row = (C + CHUNK - 1) / CHUNK, column_chunks = B * L * chunks_of_row;
  ColumnChunk column_chunk(int64_t i) const {
    const int64_t matrix = i / chunks_of_row, first = i % chunks_of_row * CHUNK;
    return {matrix / L, matrix % L, first, std::min(C, first + CHUNK)};
  }

  // What the units of the matrix have summed of these columns, in their order.
  void add_units(const ColumnChunk& at, const double* sums, double* sum) const {
    std::fill(sum, sum + CHUNK, 0.0);
    for (int64_t j = 0; j < per_matrix; ++j)
      for (int64_t c = at.first; c < at.last; ++c)
        sum[c - at.first] += sums[((at.b * L + at.l) * per_matrix + j) * C + c];
  }

  // C of CHUNK columns of a split matrix.
  void columns_of(int64_t i, const double* sums) const {
    const ColumnChunk at = column_chunk(i);
    double sum[CHUNK];
    add_units(at, sums, sum);
    col_means(at.b, at.l, at.first, at.last, sum);
  }

  // What the units of a batch index have summed, in their order.
  double total(const std::vector<double>& of_unit, int64_t b) const {
    double sum = 0;
    for (int64_t i = b * per_batch; i < (b + 1) * per_batch; ++i) sum += of_unit[i];
    return sum;
  }
};

}  // namespace
