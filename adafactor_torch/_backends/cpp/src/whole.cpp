// One step of Adafactor on a CPU: the three phases of `reference.py` over row blocks, every option of the recipe.
//
// A parameter is seen as [batch, lead, rows, columns] (`matrix_view.py`): RMS(p) and RMS(u) are of a batch index, the
// factors of a (batch, lead) matrix. A unit is a block of rows of one matrix, or several small matrices; what a unit
// sums goes to its own place and is added in order, so the result does not depend on the number of threads.
// Squares are added as T within T_ROWS of a column and CHUNK elements of a row, as double beyond: in float32,
// gradients up to 1e18 do not overflow. Comparisons are written so that a NaN stays one.

#include "phases.h"

namespace {

// Phase 1 of a parameter, and sqrt(mean(R)) of each matrix.
template <typename K> void first_pass(const K& of, double* room, std::vector<typename K::T>& norms) {
  statistics(of, room);
  of.each(norms.size(), [&](int64_t i) { norms[i] = of.norm(i / of.L, i % of.L); });
}

// The same, and phase 2: the sum of u^2 of each batch index, without another pass over g (see dense_matrix.h).
template <typename K>
void only_pass(const K& of, double* room, std::vector<typename K::T>& norms, std::vector<double>& u_squares) {
  double* weighted = room + of.units * of.C;
  std::vector<double> squares(of.split ? of.column_chunks : of.units);
  of.each(of.units, [&](int64_t i) {
    const int64_t own = of.split ? i * of.C : 0;
    const double sum = of.statistics(of.unit(i), room + own, weighted + own, true);
    if (!of.split) squares[i] = sum;
  });
  if (of.split) of.each(of.column_chunks, [&](int64_t i) { squares[i] = of.columns_of(i, room, weighted); });
  of.each(norms.size(), [&](int64_t i) { norms[i] = of.norm(i / of.L, i % of.L); });
  for (int64_t b = 0; b < of.B; ++b) {
    if (!of.split) u_squares[b] = of.total(squares, b);
    for (int64_t matrix = b * of.L; of.split && matrix < (b + 1) * of.L; ++matrix) {
      double sum = 0;
      for (int64_t i = 0; i < of.chunks_of_row; ++i) sum += squares[matrix * of.chunks_of_row + i];
      u_squares[b] += sum * double(norms[matrix]) * double(norms[matrix]);
    }
  }
}

// The three phases of one parameter; K is `Parameter` or `DenseMatrix`. `room` is as large as `adafactor_room` says.
template <typename K> void step(const K& of, double* room) {
  using T = typename K::T;
  const Task& k = of.k;
  std::vector<T> norms(k.factored && !(K::ALONG == 1) ? of.B * of.L : 0);
  const T* norm = norms.data();
  const bool for_p = !k.has_square_sum && (k.multiply_by_parameter_scale || of.measures), for_u = k.clips || of.measures;
  std::vector<double> p_squares(of.B), u_squares(of.B);
  if (K::ONE_PASS && for_u) {
    if constexpr (K::ONE_PASS) only_pass(of, room, norms, u_squares);
  } else if (k.factored) {
    first_pass(of, room, norms);
  }
  const bool reads_g = for_u && !K::ONE_PASS;
  std::vector<double> p_units(of.units), u_units(of.units);
  const auto measure = [&](int64_t i) {
    if (reads_g) u_units[i] = of.squares_of_u(of.unit(i), norm);
    if (for_p) p_units[i] = of.squares_of_p(of.unit(i));
  };
  if (for_p || reads_g) of.each(of.units, measure, true);
  for (int64_t b = 0; b < of.B; ++b) {
    if (reads_g) u_squares[b] = of.total(u_units, b);
    p_squares[b] = k.has_square_sum ? k.squares[b] : of.total(p_units, b);
  }
  std::vector<typename K::Step> steps(of.B);
  const double count = std::max(double(of.L * of.R * of.C), 1.0);
  for (int64_t b = 0; b < of.B; ++b) steps[b] = of.scale(b, p_squares[b] / count, u_squares[b] / count);
  apply(of, norm, steps);
}

}  // namespace

// Steps every task.
extern "C" void adafactor_step(Task* tasks, int64_t count, int64_t threads, double* room) {
  of_all(tasks, count, threads, [&](const auto& of) { step(of, room); });
}
