// The online softmax of a few rows over one key tile, in base 2: p = 2^(c score - base), where base is the largest
// c score so far and c = scale / ln 2, so that each exponent is one fma.
//
// A row's arithmetic, whoever is computed beside it: the tile's maximum; p; the sum of p in kWidth lanes by key, then
// over the lanes in one fixed order. Keys that the row does not see have p = 0 exactly.
#pragma once

#include "attention/attention.hpp"
#include "attention/walk.hpp"
#include "common/math.hpp"
#include "linear/gemm.hpp"

SPCT_BEGIN_LEVEL

constexpr int kMaxTileKeys = 64;
constexpr double kLog2E = 1.4426950408889634;
constexpr double kLn2 = 0.6931471805599453;

/// State of a task's rows; flattened row f = (row - first row) * G + g. The vectors have room for kWidth more.
struct RowState {
  void* q;  // as the arithmetic wants them
  int64_t q_stride;
  float* out;      // [rows][Dv], not yet divided by `sum`
  float* maximum;  // [rows]: the largest c * score, -inf at first
  float* sum;      // [rows]
};

/// What the rows of a register tile see of a key tile: `keys` holds every row's own range; `rows` is null where all of
/// them see all of `keys`.
struct View {
  KeyRange keys;
  const KeyRange* rows;
};

/// How a row's scores q.k become exponents: score * `factor`, after `scale` and the soft cap where they can't be left
/// to it (soft cap 0: none).
struct ScoreRule {
  float scale, softcap, factor;
  bool plain;

  explicit ScoreRule(const AttentionArgs& args)
      : scale(args.scale),
        softcap(args.softcap),
        factor(static_cast<float>(kLog2E)),
        plain(args.softcap == 0.0f && args.scale > 0.0f) {
    if (plain) factor = static_cast<float>(args.scale * kLog2E);
  }

  [[gnu::always_inline]] inline vf apply(vf s) const {
    s = s * splat(scale);
    return softcap == 0.0f ? s : tanh(s / splat(softcap)) * splat(softcap);
  }
};

/// 2^t for t <= 0 (or a little above it): 2^0 is 1 exactly, below 2^-127 it is 0 exactly, NaN stays. Relative error
/// 8e-8 with six terms, 1.6e-7 with five.
template <int Terms>
SPCT_INLINE vf exp2_negative(vf t) {
  const vf clamped = max(splat(-127.0f), t);  // NaN passes as the second operand
  const vf magic = splat(12583039.0f);        // 1.5 * 2^23 + 127: the sum's low bits are the biased exponent
  const vf shifted = clamped + magic;
  const vf f = clamped - (shifted - magic);
  // (2^f - 1) / f on |f| <= 1/2: our own minimax fits
  vf p;
  if constexpr (Terms == 6) {
    p = splat(1.5353362e-4f);
    p = fma(p, f, splat(1.33988739e-3f));
    p = fma(p, f, splat(9.61843692e-3f));
    p = fma(p, f, splat(5.55033237e-2f));
    p = fma(p, f, splat(2.40226477e-1f));
    p = fma(p, f, splat(6.93147182e-1f));
  } else {
    static_assert(Terms == 5);
    p = splat(1.32647273e-3f);
    p = fma(p, f, splat(9.67151299e-3f));
    p = fma(p, f, splat(5.55073358e-2f));
    p = fma(p, f, splat(2.40222424e-1f));
    p = fma(p, f, splat(6.93147004e-1f));
  }
  p = fma(p, f, splat(1.0f));
  return p * bits_as<vf>(bits_as<vu>(shifted) << 23);
}

/// Lane m of the result combines the lanes of rows[m], m < M, in the order of `reduce`: the rows' trees are computed
/// side by side. Other lanes are of no meaning.
template <int M, class Combine>
SPCT_INLINE vf reduce_rows(const vf (&rows)[M], const Combine& combine) {
  static_assert(M <= kWidth);
  vf parts[kWidth];
#pragma GCC unroll 16
  for (int m = 0; m < kWidth; ++m) parts[m] = rows[m < M ? m : 0];
#pragma GCC unroll 4
  for (int half = kWidth / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i) {
      if (i >= M) continue;
      vf low, high;
      interleave(parts[i], parts[i + half], low, high);
      parts[i] = combine(low, high);
    }
  }
  return parts[0];
}

/// Brings a row's scores into the form that `ScoreRule::factor` takes, masks what it does not see; returns the largest
/// ones by lane.
SPCT_INLINE vf finish_scores(const ScoreRule& rule, float* scores, KeyRange panels, KeyRange seen) {
  vf highest = splat(-__builtin_inff());
  for (int key = panels.begin; key < panels.end; key += kWidth) {
    vf s = load(scores + key);
    const bool whole = key >= seen.begin && key + kWidth <= seen.end;
    if (!rule.plain) s = rule.apply(s);
    if (!whole) {
      const vi lanes = iota() + key;
      s = ((lanes >= seen.begin) & (lanes < seen.end)) ? s : splat(-__builtin_inff());
    }
    if (!whole || !rule.plain) store(scores + key, s);
    highest = max(s, highest);
  }
  return highest;
}

/// The keys of a view, out to the panels' edges.
SPCT_INLINE KeyRange panel_range(KeyRange keys) {
  return {keys.begin / kPanel * kPanel, (keys.end + kPanel - 1) / kPanel * kPanel};
}

/// Finishes the scores of M rows from `row` on and moves their maxima. base[m] is what row m subtracts from its
/// exponents; alpha[m] the factor of what it has so far: 1 exactly where its maximum stays.
template <int M, int Terms>
SPCT_INLINE void move_maxima(const ScoreRule& rule, const RowState& state, int64_t row, const View& view,
                             float (&scores)[M][kMaxTileKeys], float* base, float* alpha) {
  vf highest[M];
  const KeyRange panels = panel_range(view.keys);
  for (int m = 0; m < M; ++m) {
    highest[m] = finish_scores(rule, scores[m], panels, view.rows == nullptr ? view.keys : view.rows[m]);
  }
  const vf tile = reduce_rows<M>(highest, [](vf a, vf b) { return max(a, b); }) * splat(rule.factor);
  const vf before = load(state.maximum + row);
  const vf updated = tile > before ? tile : before;
  const vf subtracted = updated == -__builtin_inff() ? vf{} : updated;
  store_some(state.maximum + row, updated, M);
  store(base, subtracted);
  store(alpha, exp2_negative<Terms>(before - subtracted));
}

/// Adds the tile's probabilities, summed by lane in totals[m], to the rows' sums.
template <int M>
SPCT_INLINE void move_sums(const RowState& state, int64_t row, const vf (&totals)[M], const float* alpha) {
  const vf sums = reduce_rows<M>(totals, [](vf a, vf b) { return a + b; });
  store_some(state.sum + row, load(state.sum + row) * load(alpha) + sums, M);
}

SPCT_END_LEVEL
