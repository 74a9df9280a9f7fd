// The phases of parameters of which this process holds a part. Between them stand sums over all processes of what a phase
// has written to the shares that a task points to. A library of its own: who shares nothing need not wait for the
// compiler here, which besides inlines more, and better, of what a file has one use for.

#include "phases.h"

namespace {

// This process's shares of the mean over the rows of R.
template <typename K> void share_of_norm(const K& of, int64_t b, int64_t l) {
  using T = typename K::T;
  const Task& k = of.k;
  const int64_t matrix = b * of.L + l;
  const T* found = K::as_T(k.row_means) + matrix * of.R;
  double mean = 0, square = 0;
  for (int64_t r = 0; r < of.R; ++r) {
    const int64_t at = k.v_row.at(b, l, r, 0);
    if (k.square_means) {
      mean += double(element<T>(k.v_row, at));
      square += double(found[r]);
    } else {
      mean += double(rounded(of.with_mean(k.v_row, at, found[r]), k.v_row.dtype));
    }
  }
  K::as_T(k.means)[matrix] = T(mean / k.all_rows);
  if (k.square_means) K::as_T(k.square_means)[matrix] = T(square / k.all_rows);
}

// R, C and sqrt(mean(R)) of a matrix, from means over all processes.
template <typename K> void take_means(const K& of, int64_t b, int64_t l) {
  using T = typename K::T;
  const Task& k = of.k;
  const int64_t matrix = b * of.L + l;
  const T *rows = K::as_T(k.row_means) + matrix * of.R, *cols = K::as_T(k.col_means) + matrix * of.C;
  for (int64_t r = 0; r < of.R; ++r) of.put_moment(k.v_row, k.v_row.at(b, l, r, 0), rows[r]);
  for (int64_t c = 0; c < of.C; ++c) of.put_moment(k.v_col, k.v_col.at(b, l, 0, c), cols[c]);
  T& norm = K::as_T(k.norms)[matrix];
  if (k.square_means)
    norm = of.root_of_mean(T(k.beta2) * K::as_T(k.means)[matrix] + T(k.beta2_complement) * K::as_T(k.square_means)[matrix]);
  else
    norm = k.means ? of.root_of_mean(K::as_T(k.means)[matrix]) : of.norm(b, l);
}

// Sums of squares that units find, as shares of the means of all processes.
template <typename K, typename F> void share_of_squares(const K& of, char* means, double* sums, F squares) {
  std::vector<double> of_units(of.units);
  of.each(of.units, [&](int64_t i) { of_units[i] = squares(of.unit(i)); }, true);
  for (int64_t b = 0; b < of.B; ++b) {
    const double sum = of.total(of_units, b);
    K::as_T(means)[b] = typename K::T(sum / of.k.all);
    if (sums) sums[b] = sum;
  }
}

// Until the first sum over processes: nothing is written but shares.
template <typename K> void begin(const K& of, double* room) {
  using T = typename K::T;
  const Task& k = of.k;
  if (k.factored) {
    statistics(of, room);
    if (k.means) of.each(of.B * of.L, [&](int64_t i) { share_of_norm(of, i / of.L, i % of.L); });
  }
  if (k.has_square_sum)
    for (int64_t b = 0; b < of.B; ++b) K::as_T(k.p_means)[b] = T(k.squares[b] / k.all);
  else if (k.p_means)
    share_of_squares(of, k.p_means, k.squares, [&](const typename K::Unit& at) { return of.squares_of_p(at); });
}

// Until the second.
template <typename K> void middle(const K& of) {
  const Task& k = of.k;
  if (k.skip) return;
  if (k.factored) of.each(of.B * of.L, [&](int64_t i) { take_means(of, i / of.L, i % of.L); });
  const typename K::T* norms = K::as_T(k.norms);
  if (k.u_means)
    share_of_squares(of, k.u_means, nullptr, [&](const typename K::Unit& at) { return of.squares_of_u(at, norms); });
}

template <typename K> void end(const K& of) {
  const Task& k = of.k;
  if (k.skip) return;
  std::vector<typename K::Step> steps(of.B);
  const auto mean = [&](const char* means, int64_t b) {
    return means ? double(reinterpret_cast<const typename K::T*>(means)[b]) : 0.0;
  };
  for (int64_t b = 0; b < of.B; ++b) steps[b] = of.scale(b, mean(k.p_means, b), mean(k.u_means, b));
  apply(of, K::as_T(k.norms), steps);
}

enum Phase : int64_t { BEGIN, MIDDLE, END };

}  // namespace

// Takes every task through a phase.
extern "C" void adafactor_phase(Task* tasks, int64_t count, int64_t threads, double* room, int64_t phase) {
  of_all(tasks, count, threads, [&](const auto& of) {
    if (phase == BEGIN) begin(of, room);
    if (phase == MIDDLE) middle(of);
    if (phase == END) end(of);
  });
}
