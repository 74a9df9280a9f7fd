// What whole parameters (whole.cpp) and parts of them (shard.cpp) have in common: phases, and who takes a task.

#pragma once

#include "dense_matrix.h"

namespace {

// Phase 1: R and C of a whole parameter, or the shares of their means.
template <typename K> void statistics(const K& of, double* room) {
  of.each(of.units, [&](int64_t i) { of.statistics(of.unit(i), room + (of.split ? i * of.C : 0)); });
  if (of.split) of.each(of.column_chunks, [&](int64_t i) { of.columns_of(i, room); });
}

// Phase 3: p, and the sum of its squares, after a look at what was thought to be that.
template <typename K> void apply(const K& of, const typename K::T* norms, const std::vector<typename K::Step>& steps) {
  const Task& k = of.k;
  std::vector<double> before(of.units), after(of.units);
  of.each(of.units, [&](int64_t i) {
    const typename K::Written sum = of.apply(of.unit(i), norms, steps[i / of.per_batch]);
    before[i] = sum.before;
    after[i] = sum.after;
  });
  for (int64_t b = 0; b < of.B; ++b) {
    const double found = of.total(before, b), both_nan = found != found && k.squares[b] != k.squares[b];
    if (k.has_square_sum && found != k.squares[b] && !both_nan) *k.stale_square_sum = 1;
    k.squares[b] = of.total(after, b);
  }
}

// Kernels of convolutions, say: what is done for a matrix counts more than what is done for its few elements.
bool is_small_matrices(const Task& k) { return k.factored && k.size[2] * k.size[3] <= 64 && k.size[1] >= 16; }

// f(K of a task). The sum of p^2 that the step before has left is used only where K adds in the same order: a run that goes
// on from a checkpoint adds anew, in this order, and is to have the same bits.
template <typename K, typename F> void with_kind(Task& k, int threads, F f) {
  k.has_square_sum = k.has_square_sum && *k.sum_order == K::SUM_ORDER;
  *k.sum_order = K::SUM_ORDER;
  f(K{k, threads});
}

// f(the `Parameter` or `DenseMatrix` of a task).
template <typename F> void with_kind(Task& k, int threads, F f) {
  const bool plain = is_dense_matrix(k), wide_p = k.p.dtype == F32, wide_g = k.g.dtype == F32;
  if (is_small_matrices(k)) {
    if (k.p.dtype == F64) return with_kind<Parameter<double, true>>(k, threads, f);
    return with_kind<Parameter<float, true>>(k, threads, f);
  }
  if (k.p.dtype == F64) return with_kind<Parameter<double>>(k, threads, f);
  if (!plain) return with_kind<Parameter<float>>(k, threads, f);
  if (wide_p && wide_g) return with_kind<DenseMatrix<float, float>>(k, threads, f);
  if (wide_p) return with_kind<DenseMatrix<float, bfloat16>>(k, threads, f);
  if (wide_g) return with_kind<DenseMatrix<bfloat16, float>>(k, threads, f);
  return with_kind<DenseMatrix<bfloat16, bfloat16>>(k, threads, f);
}

bool small(const Task& k) { return k.size[0] * k.size[1] * k.size[2] * k.size[3] <= UNIT; }

// f of every task: of small ones side by side, one thread each, of the others one after the other on all threads.
template <typename F> void of_all(Task* tasks, int64_t count, int64_t threads, F f) {
  std::atomic<int64_t> next{0};
  on_threads(int(std::min<int64_t>(threads, (count + 7) / 8)), [&](int) {
    for (int64_t i; (i = next.fetch_add(8, std::memory_order_relaxed)) < count;)
      for (int64_t j = i; j < std::min(count, i + 8); ++j)
        if (small(tasks[j])) with_kind(tasks[j], 1, f);
  });
  for (int64_t i = 0; i < count; ++i)
    if (!small(tasks[i])) with_kind(tasks[i], int(threads), f);
}

}  // namespace

// Bytes of a task, which whoever writes a table must agree on.
extern "C" int64_t adafactor_task() { return sizeof(Task); }

// Bytes that a step needs to work in: both sums of the columns of the largest split parameter.
extern "C" int64_t adafactor_room(const Task* tasks, int64_t count) {
  int64_t most = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Parameter<float> p{tasks[i], 1};
    if (p.split && tasks[i].factored) most = std::max(most, 2 * p.units * p.C * int64_t(sizeof(double)));
  }
  return most;
}
