// One key tile: loading its keys (transposed into panels of 16) and values, and the online softmax of a few rows over
// it.
//
// A row's arithmetic, whoever is computed beside it: score = q.k, one fma per dimension in order; the tile's maximum;
// p = e^(score - maximum so far); the sum of p in 16 lanes by key, then over the lanes; out = out * alpha, then one fma
// per seen key in order. Keys that the row does not see add exactly nothing, so that reserved slots leave no trace
// either.
#pragma once

#include "attention/attention.hpp"
#include "attention/walk.hpp"
#include "common/math.hpp"
#include "linear/gemm.hpp"

SPCT_BEGIN_LEVEL

constexpr int kMaxTileKeys = 64;

/// B: by the layer's shape only, so that a tile's K and V (fp32) stay within 64 KiB.
SPCT_INLINE int tile_keys_for(int64_t key_dim, int64_t value_dim) { return key_dim > 128 || value_dim > 128 ? 32 : 64; }

/// State of a task's rows; flattened row f = (row - first row) * G + g.
struct RowState {
  float* q;  // [D][stride]: queries transposed, so that a tile's rows are neighbours
  int64_t stride;
  float* out;      // [rows][Dv], not yet divided by `sum`
  float* maximum;  // [rows], -inf at first
  float* sum;      // [rows]
};

struct KeyTile {
  float* k;  // [B/16 panels][D][16]
  float* v;  // [B][Dv]
};

/// Asks for a tile's keys and values ahead of time: the rows of a cache lie scattered, which hardware does not foresee.
template <class T>
void prefetch_tile(const CacheView& cache, int64_t head, int64_t dim, const int32_t* slots, KeyRange keys) {
  const T* base = static_cast<const T*>(cache.data) + head * cache.head_stride;
  for (int key = keys.begin; key < keys.end; ++key) {
    const char* row = reinterpret_cast<const char*>(base + slots[key] * cache.slot_stride);
    for (int64_t byte = 0; byte < dim * static_cast<int64_t>(sizeof(T)); byte += 64) __builtin_prefetch(row + byte);
  }
}

SPCT_INLINE float stored_scale(const CacheView& cache, int64_t head, int64_t slot) {
  return cache.scale == nullptr ? 1.0f : cache.scale[slot * cache.scale_slot_stride + head * cache.scale_head_stride];
}

/// Keys [keys.begin, keys.end), transposed into panels; a vector of keys that is partly outside holds zeros there.
template <class T>
void load_keys(const CacheView& cache, int64_t head, int64_t dim, const int32_t* slots, KeyRange keys, float* k) {
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

template <class T>
void load_values(const CacheView& cache, int64_t head, int64_t dim, const int32_t* slots, KeyRange keys, float* v) {
  const T* base = static_cast<const T*>(cache.data) + head * cache.head_stride;
  for (int key = keys.begin; key < keys.end; ++key) {
    const T* row = base + slots[key] * cache.slot_stride;
    const vf scale = splat(stored_scale(cache, head, slots[key]));
    for (int64_t d = 0; d < dim; d += kWidth) store(v + key * dim + d, load(row + d) * scale);
  }
}

/// scores[m][key] of M rows for the panels that hold `keys`.
template <int M>
SPCT_INLINE void score_rows(const AttentionArgs& args, const RowState& state, int64_t row, const KeyTile& tile,
                            KeyRange keys, float (&scores)[M][kMaxTileKeys]) {
  constexpr int P = panels_for(M);
  const int64_t dim = args.key_dim;
  const int last = (keys.end + kPanel - 1) / kPanel;
  int panel = keys.begin / kPanel;
  const auto compute = [&]<int Panels>() {
    vf sums[M][Panels * kPanelVectors] = {};
    multiply_add<M, Panels>(sums, state.q + row, 1, state.stride, tile.k + panel * dim * kPanel, kPanel, dim * kPanel,
                            dim);
    for (int m = 0; m < M; ++m) {
      for (int v = 0; v < Panels * kPanelVectors; ++v) store(scores[m] + panel * kPanel + v * kWidth, sums[m][v]);
    }
    panel += Panels;
  };
  while (panel + P <= last) compute.template operator()<P>();
  if constexpr (P > 2) {
    if (panel + 2 <= last) compute.template operator()<2>();
  }
  while (panel < last) compute.template operator()<1>();
}

/// Scales, caps and masks a row's scores in place; returns the largest.
SPCT_INLINE float finish_scores(const AttentionArgs& args, float* scores, KeyRange keys) {
  vf highest = splat(-__builtin_inff());
  for (int key = keys.begin / kWidth * kWidth; key < keys.end; key += kWidth) {
    vf s = load(scores + key) * splat(args.scale);
    if (args.softcap != 0.0f) s = tanh(s / splat(args.softcap)) * splat(args.softcap);
    if (key < keys.begin || key + kWidth > keys.end) {
      const vi lanes = iota() + key;
      s = ((lanes >= keys.begin) & (lanes < keys.end)) ? s : splat(-__builtin_inff());
    }
    highest = max(s, highest);
    store(scores + key, s);
  }
  return reduce_max(highest);
}

/// Scores to e^(score - base) in place; returns their sum.
SPCT_INLINE float exponentials(float* scores, KeyRange keys, float base) {
  vf total{};
  for (int key = keys.begin / kWidth * kWidth; key < keys.end; key += kWidth) {
    const vf p = exp(load(scores + key) - splat(base));
    total = total + p;
    store(scores + key, p);
  }
  return reduce_add(total);
}

/// The online softmax of M rows: scores to probabilities in place; moves the rows' maxima and sums. alpha[m] is the
/// factor of what row m has so far: 1 exactly where its maximum stays.
template <int M>
SPCT_INLINE void softmax_rows(const AttentionArgs& args, const RowState& state, int64_t row, KeyRange keys,
                              float (&scores)[M][kMaxTileKeys], float* alpha) {
  float base[M];
  for (int m = 0; m < M; ++m) {
    const float before = state.maximum[row + m], tile_maximum = finish_scores(args, scores[m], keys);
    const float updated = tile_maximum > before ? tile_maximum : before;
    base[m] = updated == -__builtin_inff() ? 0.0f : updated;
    alpha[m] = before - base[m];
    state.maximum[row + m] = updated;
  }
  for_vectors(M, [&](int64_t m, int count) { store_some(alpha + m, exp(load_some(alpha + m, count)), count); });
  for (int m = 0; m < M; ++m) {
    state.sum[row + m] = state.sum[row + m] * alpha[m] + exponentials(scores[m], keys, base[m]);
  }
}

/// M flattened rows from `row` over keys `keys` of a tile.
template <int M>
[[gnu::noinline]] void attend_rows(const AttentionArgs& args, const RowState& state, int64_t row, const KeyTile& tile,
                                   KeyRange keys) {
  alignas(64) float scores[M][kMaxTileKeys];
  float alpha[M];
  score_rows<M>(args, state, row, tile, keys, scores);
  softmax_rows<M>(args, state, row, keys, scores, alpha);
  constexpr int P = panels_for(M);
  const int64_t dim = args.value_dim;
  const auto accumulate = [&]<int Panels>(int64_t d) {
    float* out = state.out + row * dim + d;
    vf sums[M][Panels * kPanelVectors];
    for (int m = 0; m < M; ++m) {
      for (int v = 0; v < Panels * kPanelVectors; ++v) sums[m][v] = load(out + m * dim + v * kWidth) * splat(alpha[m]);
    }
    multiply_add<M, Panels>(sums, scores[0] + keys.begin, kMaxTileKeys, 1, tile.v + keys.begin * dim + d, dim, kPanel,
                            keys.end - keys.begin);
    for (int m = 0; m < M; ++m) {
      for (int v = 0; v < Panels * kPanelVectors; ++v) store(out + m * dim + v * kWidth, sums[m][v]);
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

/// Flattened rows [begin, end) over keys `keys` of a tile, a register tile at a time.
SPCT_INLINE void attend(const AttentionArgs& args, const RowState& state, int64_t begin, int64_t end,
                        const KeyTile& tile, KeyRange keys) {
  const int64_t rows = end - begin, tiles = num_row_tiles(rows);
  for (int64_t index = 0; index < tiles; ++index) {
    const int64_t row = begin + tile_begin(rows, index);
    switch (begin + tile_begin(rows, index + 1) - row) {
#define SPCT_ROWS(M)                                                           \
  case M:                                                                      \
    if constexpr (M <= kMaxRows) attend_rows<M>(args, state, row, tile, keys); \
    break;
      SPCT_ROWS(1)
      SPCT_ROWS(2)
      SPCT_ROWS(3)
      SPCT_ROWS(4)
      SPCT_ROWS(5)
      SPCT_ROWS(6)
      SPCT_ROWS(7)
      SPCT_ROWS(8)
      SPCT_ROWS(9)
      SPCT_ROWS(10)
      SPCT_ROWS(11)
      SPCT_ROWS(12)
#undef SPCT_ROWS
    }
  }
}

SPCT_END_LEVEL
