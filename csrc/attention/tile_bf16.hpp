// bf16 arithmetic, fp32 sums (VDPBF16PS), for bf16 queries on bf16 caches: what torch's attention in bf16 computes.
//
// A row's arithmetic, whoever is computed beside it: score = q.k, one dot product of two after the other, pairs of
// dimensions in order; softmax.hpp in fp32; p rounded to bf16 (its sum is that of the unrounded ones); out = out *
// alpha, then the dot products of pairs of keys in order. Pairs are aligned to the tile. A key that the row does not
// see has p = 0, and its value is finite or zero, so it adds nothing, beside a seen partner too. The instruction
// flushes subnormal numbers to zero and rounds to nearest, whatever the processor's mode.
#pragma once

#include "attention/softmax.hpp"
#include "attention/tile.hpp"

#if defined(__AVX512BF16__)

SPCT_BEGIN_LEVEL

SPCT_INLINE vf dot_pairs(vf sum, vu a, vu b) {
  return _mm512_dpbf16_ps(sum, bits_as<__m512bh>(a), bits_as<__m512bh>(b));
}

/// sums[m][p] += over k < depth: a[m * a_row + k] . b[p * 16 + k * b_k + lane], each word a pair of bf16.
template <int M, int P>
SPCT_INLINE void multiply_pairs(vf (&sums)[M][P], const uint32_t* a, int64_t a_row, const uint32_t* b, int64_t b_k,
                                int64_t b_panel, int64_t depth) {
  for (int64_t k = 0; k < depth; ++k) {
    vu words[P];
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) words[p] = load_vector<vu>(b + p * b_panel + k * b_k);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const vu x = splat(a[m * a_row + k]);
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) sums[m][p] = dot_pairs(sums[m][p], x, words[p]);
    }
  }
}

struct PairTile {
  using Element = BFloat16;
  static constexpr int kHeight = kMaxRows;
  static constexpr int kTerms = 5;
  // Rows that share their operands in registers: 6 rows x 4 panels = 24 accumulators of 32.
  static constexpr int kRows = 6;

  uint32_t* k;  // [B/16 panels][D/2][16]: pairs of dimensions
  uint32_t* v;  // [B/2][Dv]: pairs of keys

  static size_t bytes(const AttentionArgs& args, int tile_keys) {
    return static_cast<size_t>(tile_keys * (args.key_dim + args.value_dim)) * sizeof(BFloat16);
  }
  static PairTile at(void* memory, const AttentionArgs& args, int tile_keys, TileShapes&) {
    uint32_t* k = static_cast<uint32_t*>(memory);
    return {k, k + tile_keys * args.key_dim / 2};
  }

  /// Queries as they are, [rows][D].
  static int64_t query_stride(const AttentionArgs& args, int64_t) { return args.key_dim / 2; }
  static size_t query_bytes(const AttentionArgs& args, int64_t rows) {
    return static_cast<size_t>(rows * args.key_dim) * sizeof(BFloat16);
  }
  static void load_query(const AttentionArgs& args, int64_t index, const RowState& state, int64_t flat) {
    const size_t bytes = static_cast<size_t>(args.key_dim) * sizeof(BFloat16);
    std::memcpy(static_cast<char*>(state.q) + flat * bytes, static_cast<const char*>(args.q) + index * bytes, bytes);
  }

  static vu load_words(const BFloat16* row, int64_t d, int64_t dim) {
    if (d + 32 <= dim) return load_vector<vu>(row + d);
    return bits_as<vu>(_mm512_maskz_loadu_epi32(0xff, row + d));
  }

  /// Keys [keys.begin, keys.end), transposed by pairs of dimensions; the panels' other keys are zeros.
  void load_keys(const CacheView& cache, int64_t head, int64_t dim, const int32_t* slots, KeyRange keys) const {
    const BFloat16* base = static_cast<const BFloat16*>(cache.data) + head * cache.head_stride;
    for (int group = keys.begin / kPanel * kPanel; group < keys.end; group += kPanel) {
      uint32_t* panel = k + group * (dim / 2);
      const BFloat16* rows[kPanel];
      for (int j = 0; j < kPanel; ++j) {
        const bool inside = group + j >= keys.begin && group + j < keys.end;
        rows[j] = inside ? base + slots[group + j] * cache.slot_stride : nullptr;
      }
      const bool whole = group >= keys.begin && group + kPanel <= keys.end;
      for (int64_t d = 0; d < dim; d += 32) {
        vf block[kPanel];
        if (whole) {
#pragma GCC unroll 16
          for (int j = 0; j < kPanel; ++j) block[j] = bits_as<vf>(load_words(rows[j], d, dim));
        } else {
#pragma GCC unroll 16
          for (int j = 0; j < kPanel; ++j) block[j] = rows[j] ? bits_as<vf>(load_words(rows[j], d, dim)) : vf{};
        }
        transpose(block);
        const int words = dim - d < 32 ? 8 : 16;
        float* to = reinterpret_cast<float*>(panel) + d / 2 * kPanel;
#pragma GCC unroll 16
        for (int j = 0; j < 16; ++j) {
          if (j < words) store(to + j * kPanel, block[j]);
        }
      }
    }
  }

  /// Values of the keys, pair by pair; a partner outside is zero. False if one of them is NaN or Inf.
  bool load_values(const CacheView& cache, int64_t head, int64_t dim, const int32_t* slots, KeyRange keys) const {
    const BFloat16* base = static_cast<const BFloat16*>(cache.data) + head * cache.head_stride;
    const __m512i first = bits_as<__m512i>((iota() & 15) | ((iota() + 32) << 16));
    const __m512i second = bits_as<__m512i>((iota() + 16) | ((iota() + 48) << 16));
    __m512i largest = _mm512_setzero_si512();
    for (int pair = keys.begin / 2; 2 * pair < keys.end; ++pair) {
      const bool even = 2 * pair >= keys.begin, odd = 2 * pair + 1 < keys.end;
      const BFloat16* low = base + slots[2 * pair + !even] * cache.slot_stride;
      const BFloat16* high = base + slots[2 * pair + odd] * cache.slot_stride;
      const __mmask16 low_mask = even ? 0xffff : 0, high_mask = odd ? 0xffff : 0;
      uint32_t* to = v + pair * dim;
      for (int64_t d = 0; d < dim; d += 32) {
        const __mmask16 there = dim - d < 32 ? 0xff : 0xffff;
        const __m512i a = _mm512_maskz_loadu_epi32(low_mask & there, low + d);
        const __m512i b = _mm512_maskz_loadu_epi32(high_mask & there, high + d);
        _mm512_storeu_si512(to + d, _mm512_permutex2var_epi16(a, first, b));
        if (there == 0xffff) _mm512_storeu_si512(to + d + 16, _mm512_permutex2var_epi16(a, second, b));
        const __m512i magnitude = _mm512_set1_epi16(0x7fff);
        largest = _mm512_max_epu16(largest, _mm512_and_si512(a, magnitude));
        largest = _mm512_max_epu16(largest, _mm512_and_si512(b, magnitude));
      }
    }
    return _mm512_cmpge_epu16_mask(largest, _mm512_set1_epi16(0x7f80)) == 0;
  }

  /// scores[m][key] of M rows for the panels that hold `keys`.
  template <int M, int P>
  [[gnu::always_inline]] void score_panels(const AttentionArgs& args, const uint32_t* q, int64_t q_stride, int panel,
                                           float* scores) const {
    const int64_t words = args.key_dim / 2;
    vf sums[M][P];
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) sums[m][p] = vf{};
    }
    multiply_pairs<M, P>(sums, q, q_stride, k + panel * words * kPanel, kPanel, words * kPanel, words);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) store(scores + m * kMaxTileKeys + (panel + p) * kPanel, sums[m][p]);
    }
  }

  template <int M>
  [[gnu::always_inline]] void score(const AttentionArgs& args, const RowState& state, int64_t row, KeyRange panels,
                                    float* scores) const {
    const uint32_t* q = static_cast<const uint32_t*>(state.q) + row * state.q_stride;
    int panel = panels.begin / kPanel;
    const int last = panels.end / kPanel;
    if (panel + 4 <= last) {
      score_panels<M, 4>(args, q, state.q_stride, panel, scores);
      panel += 4;
    }
    if (panel + 2 <= last) {
      score_panels<M, 2>(args, q, state.q_stride, panel, scores);
      panel += 2;
    }
    if (panel < last) score_panels<M, 1>(args, q, state.q_stride, panel, scores);
  }

  /// out[m][d:d+16P] = out * alpha[m] + p . v
  template <int M, int P>
  [[gnu::always_inline]] void accumulate_panels(const uint32_t* p, const float* alpha, float* out, int64_t dim,
                                                KeyRange pairs) const {
    vf sums[M][P];
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
      for (int i = 0; i < P; ++i) sums[m][i] = load(out + m * dim + i * kPanel) * splat(alpha[m]);
    }
    multiply_pairs<M, P>(sums, p + pairs.begin, kMaxTileKeys / 2, v + pairs.begin * dim, dim, kPanel,
                         pairs.end - pairs.begin);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
      for (int i = 0; i < P; ++i) store(out + m * dim + i * kPanel, sums[m][i]);
    }
  }

  template <int M>
  [[gnu::always_inline]] void accumulate(const AttentionArgs& args, const RowState& state, int64_t row,
                                         const uint32_t* p, const float* alpha, KeyRange keys) const {
    const int64_t dim = args.value_dim;
    const KeyRange pairs{keys.begin / 2, (keys.end + 1) / 2};
    float* out = state.out + row * dim;
    int64_t d = 0;
    for (; d + 4 * kPanel <= dim; d += 4 * kPanel)
      PairTile{k, v + d}.accumulate_panels<M, 4>(p, alpha, out + d, dim, pairs);
    if (d + 2 * kPanel <= dim) {
      PairTile{k, v + d}.accumulate_panels<M, 2>(p, alpha, out + d, dim, pairs);
      d += 2 * kPanel;
    }
    if (d < dim) PairTile{k, v + d}.accumulate_panels<M, 1>(p, alpha, out + d, dim, pairs);
  }

  /// Scores of one row to p: fp32 summed by lane, bf16 stored, a panel's or two panels' worth at a time.
  static vf probabilities(const ScoreRule& rule, const float* scores, float base, KeyRange panels, uint32_t* to) {
    const vf factor = splat(rule.factor), negative = splat(-base);
    BFloat16* p = reinterpret_cast<BFloat16*>(to);
    vf total{};
    int key = panels.begin;
    for (; key + 2 * kPanel <= panels.end; key += 2 * kPanel) {
      const vf low = exp2_negative<kTerms>(fma(load(scores + key), factor, negative));
      const vf high = exp2_negative<kTerms>(fma(load(scores + key + kPanel), factor, negative));
      total = total + low;
      total = total + high;
      const __m512bh both = _mm512_cvtne2ps_pbh(high, low);
      std::memcpy(p + key, &both, sizeof(both));
    }
    if (key < panels.end) {
      const vf low = exp2_negative<kTerms>(fma(load(scores + key), factor, negative));
      total = total + low;
      const __m256bh half = _mm512_cvtneps_pbh(low);
      std::memcpy(p + key, &half, sizeof(half));
    }
    return total;
  }

  /// M rows from `row` on.
  template <int M>
  [[gnu::noinline]] void attend(const AttentionArgs& args, const ScoreRule& rule, const RowState& state, int64_t row,
                                const View& view) const {
    alignas(64) float scores[M][kMaxTileKeys];
    alignas(64) uint32_t p[M][kMaxTileKeys / 2];
    alignas(64) float base[kWidth], alpha[kWidth];
    constexpr int First = M <= kRows ? M : (M + 1) / 2, Second = M - First;
    const KeyRange panels = panel_range(view.keys);
    score<First>(args, state, row, panels, scores[0]);
    if constexpr (Second > 0) score<Second>(args, state, row + First, panels, scores[First]);
    move_maxima<M, kTerms>(rule, state, row, view, scores, base, alpha);
    vf totals[M];
    for (int m = 0; m < M; ++m) totals[m] = probabilities(rule, scores[m], base[m], panels, p[m]);
    move_sums<M>(state, row, totals, alpha);
    accumulate<First>(args, state, row, p[0], alpha, view.keys);
    if constexpr (Second > 0) accumulate<Second>(args, state, row + First, p[First], alpha + First, view.keys);
  }
};

SPCT_END_LEVEL

#endif
