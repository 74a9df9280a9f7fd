// One step of Adafactor on a CPU: the three phases of `_phases.py` over row blocks, every option of the recipe.
//
// A parameter is seen as [batch, lead, rows, columns] (`_canonical.py`): RMS(p) and RMS(u) are of a batch index, the
// factors of a (batch, lead) matrix. A unit is a block of rows of one matrix, or several small matrices; what a unit
// sums goes to its own place and is added in order, so the result does not depend on the number of threads.
// Squares are added as T within T_ROWS of a column and CHUNK elements of a row, as double beyond: in float32,
// gradients up to 1e18 do not overflow. Comparisons are written so that a NaN stays one.

#include "phases.h"

namespace {

// The three phases of one parameter; K is `Parameter` or `Plain`. `room` is as large as `adafactor_room` says.
template <typename K> void step(const K& of, double* room) {
  using T = typename K::T;
  const Task& k = of.k;
  std::vector<T> norms(k.factored && !(K::ALONG == 1) ? of.B * of.L : 0);
  const T* norm = norms.data();
  if (k.factored) {
    statistics(of, room);
    of.each(norms.size(), [&](int64_t i) { norms[i] = of.norm(i / of.L, i % of.L); });
  }
  std::vector<double> p_squares(of.units), u_squares(of.units);
  const bool of_p = !k.known && (k.scales || of.measures), of_u = k.clips || of.measures;
  const auto measure = [&](int64_t i) {
    if (of_u) u_squares[i] = of.squares_of_u(of.unit(i), norm);
    if (of_p) p_squares[i] = of.squares_of_p(of.unit(i));
  };
  if (of_p || of_u) of.each(of.units, measure, true);
  std::vector<typename K::Step> steps(of.B);
  const double count = std::max(double(of.L * of.R * of.C), 1.0);
  for (int64_t b = 0; b < of.B; ++b)
    steps[b] = of.scale(b, (k.known ? k.squares[b] : of.total(p_squares, b)) / count, of.total(u_squares, b) / count);
  apply(of, norm, steps);
}

}  // namespace

// Steps every task.
extern "C" void adafactor_step(const Task* tasks, int64_t count, int64_t threads, double* room) {
  of_all(tasks, count, threads, [&](const auto& of) { step(of, room); });
}
