// fp32 arithmetic on caches of any type: loading a key tile's keys (transposed into panels of 16) and values, scores
// and outputs of a few rows over it.
//
// A row's arithmetic, whoever is computed beside it: score = q.k, one fma per dimension in order; softmax.hpp; out =
// out * alpha, then one fma per key in order. Keys that the row does not see add exactly nothing, so that reserved
// slots leave no trace either.
#pragma once

#include "attention/softmax.hpp"
#include "common/tiles.hpp"

SPCT_BEGIN_LEVEL

/// Asks for heads [head_begin, head_end) of some slots ahead of time: hardware does not foresee how they lie.
template <class T>
SPCT_INLINE void prefetch_slots(const CacheView& cache, int64_t head_begin, int64_t head_end, int64_t dim,
                                const int32_t* slots, KeyRange keys) {
  const bool dense = cache.head_stride == dim;
  const int64_t runs = dense ? 1 : head_end - head_begin, length = dense ? (head_end - head_begin) * dim : dim;
  for (int64_t run = 0; run < runs; ++run) {
    const T* base = static_cast<const T*>(cache.data) + (head_begin + run) * cache.head_stride;
    for (int key = keys.begin; key < keys.end; ++key) {
      const char* row = reinterpret_cast<const char*>(base + slots[key] * cache.slot_stride);
      for (int64_t byte = 0; byte < length * static_cast<int64_t>(sizeof(T)); byte += 64)
        __builtin_prefetch(row + byte);
    }
  }
}

SPCT_INLINE float stored_scale(const CacheView& cache, int64_t head, int64_t slot) {
  return cache.scale == nullptr ? 1.0f : cache.scale[slot * cache.scale_slot_stride + head * cache.scale_head_stride];
}

template <class T>
struct WideTile {
  using Element = T;
  // Maxima and sums of a tile's rows are the lanes of one vector.
  static constexpr int kHeight = kMaxRows < kWidth ? kMaxRows : kWidth;
  static constexpr int kTerms = 6;

  float* k;  // [B/16 panels][D][16]
  float* v;  // [B][Dv]

  static size_t bytes(const AttentionArgs& args, int tile_keys) {
    return static_cast<size_t>(tile_keys * (args.key_dim + args.value_dim)) * sizeof(float);
  }

  static WideTile at(void* memory, const AttentionArgs& args, int tile_keys, TileShapes&) {
    float* k = static_cast<float*>(memory);
    return {k, k + tile_keys * args.key_dim};
  }

  /// Queries are kept transposed, [D][stride] fp32, so that a tile's rows are neighbours.
  static int64_t query_stride(const AttentionArgs&, int64_t rows) {
    // Never a power of two: columns would share cache sets.
    return (rows + kWidth - 1) / kWidth * kWidth + kWidth;
  }
  static size_t query_bytes(const AttentionArgs& args, int64_t rows) {
    return static_cast<size_t>(query_stride(args, rows) * args.key_dim) * sizeof(float);
  }

  template <class Q>
  static void load_query_as(const AttentionArgs& args, int64_t index, const RowState& state, int64_t flat) {
    const Q* from = static_cast<const Q*>(args.q) + index * args.key_dim;
    float* to = static_cast<float*>(state.q) + flat;
    for (int64_t d = 0; d < args.key_dim; d += kWidth) {
      float values[kWidth];
      store(values, load(from + d));
      for (int lane = 0; lane < kWidth; ++lane) to[(d + lane) * state.q_stride] = values[lane];
    }
  }
  static void load_query(const AttentionArgs& args, int64_t index, const RowState& state, int64_t flat) {
    SPCT_FLOAT_DTYPES(args.q_dtype, load_query_as<Scalar>(args, index, state, flat))
  }

  /// Keys [keys.begin, keys.end); a vector of keys that is partly outside holds zeros there.
  void load_keys(const CacheView& cache, int64_t head, int64_t dim, const int32_t* slots, KeyRange keys) const {
    const T* base = static_cast<const T*>(cache.data) + head * cache.head_stride;
    for (int group = keys.begin / kPanel * kPanel; group < keys.end; group += kWidth) {
      float* panel = k + group / kPanel * dim * kPanel + group % kPanel;
      const T* rows[kWidth];
      float scale[kWidth];
      for (int j = 0; j < kWidth; ++j) {
        const bool inside = group + j >= keys.begin && group + j < keys.end;
        rows[j] = inside ? base + slots[group + j] * cache.slot_stride : nullptr;
        scale[j] = inside ? stored_scale(cache, head, slots[group + j]) : 0.0f;
      }
      const bool whole = group >= keys.begin && group + kWidth <= keys.end && cache.scale == nullptr;
      for (int64_t d = 0; d < dim; d += kWidth) {
        vf block[kWidth];
        if (whole) {
#pragma GCC unroll 16
          for (int j = 0; j < kWidth; ++j) block[j] = load(rows[j] + d);
        } else {
#pragma GCC unroll 16
          for (int j = 0; j < kWidth; ++j) block[j] = rows[j] != nullptr ? load(rows[j] + d) * splat(scale[j]) : vf{};
        }
        transpose(block);
#pragma GCC unroll 16
        for (int j = 0; j < kWidth; ++j) store(panel + (d + j) * kPanel, block[j]);
      }
    }
  }

  /// Values of the keys; false if one of them is NaN or Inf.
  bool load_values(const CacheView& cache, int64_t head, int64_t dim, const int32_t* slots, KeyRange keys) const {
    const T* base = static_cast<const T*>(cache.data) + head * cache.head_stride;
    vi largest{};
    for (int key = keys.begin; key < keys.end; ++key) {
      const T* row = base + slots[key] * cache.slot_stride;
      const vf scale = splat(stored_scale(cache, head, slots[key]));
      for (int64_t d = 0; d < dim; d += kWidth) {
        const vf x = load(row + d) * scale;
        const vi magnitude = bits_as<vi>(x) & 0x7fffffff;
        largest = magnitude > largest ? magnitude : largest;
        store(v + key * dim + d, x);
      }
    }
    return !any(largest >= 0x7f800000);
  }

  /// scores[m][key] of M rows for the panels that hold `keys`.
  template <int M>
  [[gnu::always_inline]] void score(const AttentionArgs& args, const RowState& state, int64_t row, KeyRange keys,
                                    float (&scores)[M][kMaxTileKeys]) const {
    constexpr int P = panels_for(M);
    const int64_t dim = args.key_dim;
    const float* q = static_cast<const float*>(state.q) + row;
    const int last = (keys.end + kPanel - 1) / kPanel;
    int panel = keys.begin / kPanel;
    const auto compute = [&]<int Panels>() {
      vf sums[M][Panels * kPanelVectors];
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
        for (int i = 0; i < Panels * kPanelVectors; ++i) sums[m][i] = vf{};
      }
      multiply_add<M, Panels>(sums, q, 1, state.q_stride, k + panel * dim * kPanel, kPanel, dim * kPanel, dim);
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
        for (int i = 0; i < Panels * kPanelVectors; ++i) store(scores[m] + panel * kPanel + i * kWidth, sums[m][i]);
      }
      panel += Panels;
    };
    while (panel + P <= last) compute.template operator()<P>();
    if constexpr (P > 2) {
      if (panel + 2 <= last) compute.template operator()<2>();
    }
    while (panel < last) compute.template operator()<1>();
  }

  /// M rows from `row` on.
  template <int M>
  [[gnu::noinline]] void attend(const AttentionArgs& args, const ScoreRule& rule, const RowState& state, int64_t row,
                                const View& view) const {
    alignas(64) float scores[M][kMaxTileKeys];
    alignas(64) float base[kWidth], alpha[kWidth];
    const KeyRange keys = view.keys, panels = panel_range(keys);
    score<M>(args, state, row, keys, scores);
    move_maxima<M, kTerms>(rule, state, row, view, scores, base, alpha);
    vf totals[M];
    for (int m = 0; m < M; ++m) {
      vf total{};
      for (int key = panels.begin; key < panels.end; key += kWidth) {
        const vf p = exp2_negative<kTerms>(fma(load(scores[m] + key), splat(rule.factor), splat(-base[m])));
        total = total + p;
        store(scores[m] + key, p);
      }
      totals[m] = total;
    }
    move_sums<M>(state, row, totals, alpha);
    constexpr int P = panels_for(M);
    const int64_t dim = args.value_dim;
    const auto accumulate = [&]<int Panels>(int64_t d) {
      float* out = state.out + row * dim + d;
      vf sums[M][Panels * kPanelVectors];
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
        for (int i = 0; i < Panels * kPanelVectors; ++i) {
          sums[m][i] = load(out + m * dim + i * kWidth) * splat(alpha[m]);
        }
      }
      multiply_add<M, Panels>(sums, scores[0] + keys.begin, kMaxTileKeys, 1, v + keys.begin * dim + d, dim, kPanel,
                              keys.end - keys.begin);
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
        for (int i = 0; i < Panels * kPanelVectors; ++i) store(out + m * dim + i * kWidth, sums[m][i]);
      }
    };
    int64_t d = 0;
    for (; d + P * kPanel <= dim; d += P * kPanel) accumulate.template operator()<P>(d);
    if constexpr (P > 2) {
      if (d + 2 * kPanel <= dim) {
        accumulate.template operator()<2>(d);
        d += 2 * kPanel;
      }
    }
    for (; d < dim; d += kPanel) accumulate.template operator()<1>(d);
  }
};

SPCT_END_LEVEL
