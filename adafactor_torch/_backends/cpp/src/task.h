// What a step is recorded of one parameter, and the sizes in which it works.

#pragma once

#include "formats.h"

namespace {

constexpr int CHUNK = 512;         // elements in flight: their buffers stay in the first-level cache
constexpr int LANES = 16;          // independent sums, so that the compiler may use vectors
constexpr int64_t UNIT = 1 << 16;  // elements of a unit, about
constexpr int64_t UNIT_ROWS = 128;  // fewest rows of a split matrix's unit: its two sums of columns take 1/32 of its memory
constexpr int64_t T_ROWS = 64;      // most rows of which squares are added as T

enum Momentum : int64_t { NONE, GRAD, UPDATE, STEP };
enum MomentumRounding : int64_t { STORE, USE, DECAY };
enum Decay : int64_t { NO_DECAY, BY_GRAD, BY_STEP, BY_ONE };
enum Rounding : int64_t { NEAREST, STOCHASTIC, KAHAN };
// The orders in which the squares of p are added: of `Parameter` and of `DenseMatrix`.
enum SumOrder : int64_t { UNKNOWN, BY_CHUNKS, ACROSS_MATRICES, BY_HALVES, BY_HALVES_OF_PAIRS };

struct Task {  // the fields, in this order, of `TASK` in record.py; all of 8 bytes
  int64_t size[4];
  Array p, g, v_row, v_col, v, v_max, m, compensation;
  Array element;  // the index of an element in C order: int32, or without data its strides
  int64_t factored, eps1_is_floor, amsgrad, clips, momentum, debias, momentum_rounding, multiply_by_parameter_scale,
      decay, decay_before_scale, maximize, rounding, key;
  double rho, beta2, beta2_complement, bias2, beta1, beta1_complement, narrow1, bias1, weight_decay, eps1, eps2,
      max_parameter_scale, clipping_threshold, inverse_grad_scale;
  double* squares;      // per batch index: the sum of p^2, before the step where `has_square_sum`, after it at the end
  int64_t has_square_sum;
  int64_t* sum_order;   // in which `squares` were added; in another one they would have other last bits
  int64_t* stale_square_sum;   // made 1 where the sum of what was written over is not the known one
  float* telemetry;     // per batch index: alpha, RMS(u), clip factor, RMS(p); null where nobody asks

  // Of the whole tensor, where a task is the part of one that this process holds: rows, columns and the elements of a
  // batch index, and the index of the part's first element, to which `element` is relative.
  double all_rows, all_cols, all;
  int64_t first;
  // A part's shares of means, as T, which are replaced by the sums over all processes; else null. `row_means` [B, L, R]
  // and `col_means` [B, L, C] of g^2 + eps1, `means` [B, L] of new R, or with `square_means` of old R and of g^2 + eps1,
  // `p_means` and `u_means` [B] of p^2 and u^2. `norms` [B, L] are this process's own: sqrt(mean(R)).
  char *row_means, *col_means, *means, *square_means, *p_means, *u_means, *norms;
  int64_t skip;         // a part that is to stay as it is
};

// The sum of x^2 over CHUNK elements at most: as T in each lane, as double beyond. A square is one of T everywhere, so that
// what is infinite does not depend on its place.
template <typename T, typename S> double square_sum(const S* x, int n) {
  T lanes[LANES] = {};
  int i = 0;
  for (; i + LANES <= n; i += LANES)
    for (int l = 0; l < LANES; ++l) lanes[l] += T(value(x[i + l])) * T(value(x[i + l]));
  double sum = 0;
  for (; i < n; ++i) sum += double(T(value(x[i])) * T(value(x[i])));
  for (int l = 0; l < LANES; ++l) sum += double(lanes[l]);
  return sum;
}

}  // namespace
