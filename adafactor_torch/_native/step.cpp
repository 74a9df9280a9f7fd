// One step of Adafactor on a CPU: the three phases of `_phases.py` over row blocks, every option of the recipe.
//
// A parameter is seen as [batch, lead, rows, columns] (`_canonical.py`): RMS(p) and RMS(u) are of a batch index, the
// factors of a (batch, lead) matrix. A unit is a block of rows of one matrix, or several small matrices; what a unit
// sums goes to its own place and is added in order, so the result does not depend on the number of threads.
// Squares are added as T within T_ROWS of a column and CHUNK elements of a row, as double beyond: in float32,
// gradients up to 1e18 do not overflow. Comparisons are written so that a NaN stays one.

#include "plain.h"

namespace {

// The three phases of one parameter; K is `Parameter` or `Plain`. `room` is as large as `adafactor_room` says.
template <typename K> void step(const K& of, double* room) {
  using T = typename K::T;
  const Task& k = of.k;
  std::vector<T> norms(k.factored && !(K::ALONG == 1) ? of.B * of.L : 0);
  const T* norm = norms.data();
  if (k.factored) {
    of.each(of.units, [&](int64_t i) { of.statistics(of.unit(i), room + (of.split ? i * of.C : 0)); });
    if (of.split) of.each(of.B * of.L * ((of.C + CHUNK - 1) / CHUNK), [&](int64_t i) { of.columns_of(i, room); });
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
  for (int64_t b = 0; b < of.B; ++b)
    steps[b] = of.scale(b, k.known ? k.squares[b] : of.total(p_squares, b), of.total(u_squares, b));
  of.each(of.units, [&](int64_t i) {
    const typename K::Written sum = of.apply(of.unit(i), norm, steps[i / of.per_batch]);
    u_squares[i] = sum.before;
    p_squares[i] = sum.after;
  });
  for (int64_t b = 0; b < of.B; ++b) {
    const double before = of.total(u_squares, b), both_nan = before != before && k.squares[b] != k.squares[b];
    if (k.known && before != k.squares[b] && !both_nan) *k.surprised = 1;
    k.squares[b] = of.total(p_squares, b);
  }
}

// Kernels of convolutions, say: what is done for a matrix counts more than what is done for its few elements.
bool is_small_matrices(const Task& k) { return k.factored && k.size[2] * k.size[3] <= 64 && k.size[1] >= 16; }

void run(const Task& k, int threads, double* room) {
  const bool plain = is_plain(k), wide_p = k.p.dtype == F32, wide_g = k.g.dtype == F32;
  if (is_small_matrices(k)) {
    if (k.p.dtype == F64) return step(Parameter<double, true>{k, threads}, room);
    return step(Parameter<float, true>{k, threads}, room);
  }
  if (k.p.dtype == F64) return step(Parameter<double>{k, threads}, room);
  if (!plain) return step(Parameter<float>{k, threads}, room);
  if (wide_p && wide_g) return step(Plain<float, float>{{k, threads}}, room);
  if (wide_p) return step(Plain<float, bfloat16>{{k, threads}}, room);
  if (wide_g) return step(Plain<bfloat16, float>{{k, threads}}, room);
  return step(Plain<bfloat16, bfloat16>{{k, threads}}, room);
}

bool small(const Task& k) { return k.size[0] * k.size[1] * k.size[2] * k.size[3] <= UNIT; }

}  // namespace

// Bytes of a task, which whoever writes a table must agree on.
extern "C" int64_t adafactor_task() { return sizeof(Task); }

// Bytes that `adafactor_step` needs to work in: the column sums of the largest split parameter.
extern "C" int64_t adafactor_room(const Task* tasks, int64_t count) {
  int64_t most = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Parameter<float> p{tasks[i], 1};
    if (p.split && tasks[i].factored) most = std::max(most, p.units * p.C * int64_t(sizeof(double)));
  }
  return most;
}

// Steps every task: small ones side by side, one thread each, the others one after the other on all threads.
extern "C" void adafactor_step(const Task* tasks, int64_t count, int64_t threads, double* room) {
#pragma omp parallel for schedule(dynamic, 8) num_threads(threads) if (threads > 1)
  for (int64_t i = 0; i < count; ++i)
    if (small(tasks[i])) run(tasks[i], 1, room);
  for (int64_t i = 0; i < count; ++i)
    if (!small(tasks[i])) run(tasks[i], int(threads), room);
}
