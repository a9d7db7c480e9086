// Matrix products whose every element is summed in one fixed order, so that a row's bits depend neither on how many
// rows there are, nor on where it stands, nor on the threads: for out[r][o], partial sums over chunks of kChunk inputs,
// each one fma after the other in order of the inputs, are added in order. What varies with the shape is only which
// elements are computed side by side.
//
//   panel        16 outputs: W panel[depth][16], zero-padded in the last one; a packed weight is
//   [num_panels][depth][16] packed rows  tiles of up to kMaxRows rows, each float tile[depth][rows of the tile]: the
//   micro-kernel reads it in sequence
//
// For the output head: pack_rows once, then multiply_panels per range of panels, from several threads. From a plain [V,
// E] tensor, pack_panel makes one panel at a time (16 * E elements, stays in L1/L2); the bits are the same.
#pragma once

#include "common/simd.hpp"

SPCT_BEGIN_LEVEL

constexpr int kPanel = 16;
constexpr int kPanelVectors = kPanel / kWidth;
constexpr int64_t kChunk = 128;

// Accumulators fill the register file: 12 rows x 2 panels = 24 of 32 (AVX-512), 6 x 1 panel of two vectors = 12 of 16
// (AVX2), 6 x 1 panel of four = 24 of 32 (NEON).
#if defined(__AVX512F__)
constexpr int kMaxRows = 12;
constexpr int panels_for(int rows) { return rows <= 4 ? 4 : 2; }
#elif defined(__AVX2__)
constexpr int kMaxRows = 6;
constexpr int panels_for(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }
#elif defined(SPCT_NEON)
constexpr int kMaxRows = 6;
constexpr int panels_for(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }
#else
constexpr int kMaxRows = 4;
constexpr int panels_for(int) { return 1; }
#endif
constexpr int kMaxPanels = 4;

/// sums[m][v] += sum over k < depth of a[m * a_row + k * a_k] * w[...], one fma per k in order. Panel p's 16 outputs of
/// input k stand at w + p * w_panel + k * w_k.
template <int M, int P, class W>
SPCT_INLINE void multiply_add(vf (&sums)[M][P * kPanelVectors], const float* a, int64_t a_row, int64_t a_k, const W* w,
                              int64_t w_k, int64_t w_panel, int64_t depth) {
  for (int64_t k = 0; k < depth; ++k) {
    vf b[P * kPanelVectors];
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
      for (int v = 0; v < kPanelVectors; ++v) b[p * kPanelVectors + v] = load(w + p * w_panel + k * w_k + v * kWidth);
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const vf x = splat(a[m * a_row + k * a_k]);
#pragma GCC unroll 16
      for (int v = 0; v < P * kPanelVectors; ++v) sums[m][v] = fma(x, b[v], sums[m][v]);
    }
  }
}

/// out[m * out_row + 16 p + j]: M packed rows times P panels.
template <int M, int P, class W>
[[gnu::noinline]] void multiply_tile(const float* rows, const W* panels, int64_t depth, float* out, int64_t out_row) {
  constexpr int V = P * kPanelVectors;
  vf totals[M][V];
  for (int64_t begin = 0; begin == 0 || begin < depth; begin += kChunk) {
    const int64_t length = depth - begin < kChunk ? depth - begin : kChunk;
    vf sums[M][V] = {};
    multiply_add<M, P>(sums, rows + begin * M, 1, M, panels + begin * kPanel, kPanel, depth * kPanel, length);
    for (int m = 0; m < M; ++m) {
      for (int v = 0; v < V; ++v) totals[m][v] = begin == 0 ? sums[m][v] : totals[m][v] + sums[m][v];
    }
  }
  for (int m = 0; m < M; ++m) {
    for (int v = 0; v < V; ++v) store(out + m * out_row + v * kWidth, totals[m][v]);
  }
}

template <int M, class W>
void multiply_row_tile(const float* rows, const W* panels, int64_t num_panels, int64_t depth, float* out,
                       int64_t out_row) {
  constexpr int P = panels_for(M);
  int64_t panel = 0;
  for (; panel + P <= num_panels; panel += P) {
    multiply_tile<M, P>(rows, panels + panel * depth * kPanel, depth, out + panel * kPanel, out_row);
  }
  for (; panel < num_panels; ++panel) {
    multiply_tile<M, 1>(rows, panels + panel * depth * kPanel, depth, out + panel * kPanel, out_row);
  }
}

// ---- Row tiles: `rows` rows make num_row_tiles(rows) tiles of nearly the same height, at most Most ----

template <int Most = kMaxRows>
SPCT_INLINE int64_t num_row_tiles(int64_t rows) {
  return (rows + Most - 1) / Most;
}

/// First row of a tile; tile_begin(rows, num_row_tiles(rows)) is `rows`.
template <int Most = kMaxRows>
SPCT_INLINE int64_t tile_begin(int64_t rows, int64_t tile) {
  const int64_t tiles = num_row_tiles<Most>(rows), height = rows / tiles, higher = rows % tiles;
  return tile * height + (tile < higher ? tile : higher);
}

/// f.operator()<M>() for a row tile of height M, from 1 to Most.
template <int Most = kMaxRows, int M = 1, class F>
SPCT_INLINE void with_height(int64_t height, const F& f) {
  if (height == M) {
    f.template operator()<M>();
  } else if constexpr (M < Most) {
    with_height<Most, M + 1>(height, f);
  }
}

/// Packs tiles [first, last) of x [rows, depth] (row stride `x_row`) into `packed` (rows * depth floats in all).
template <class T>
void pack_row_tiles(const T* x, int64_t x_row, int64_t rows, int64_t depth, int64_t first, int64_t last,
                    float* packed) {
  for (int64_t tile = first; tile < last; ++tile) {
    const int64_t begin = tile_begin(rows, tile), height = tile_begin(rows, tile + 1) - begin;
    float* to = packed + begin * depth;
    for (int64_t m = 0; m < height; ++m) {
      const T* from = x + (begin + m) * x_row;
      for_vectors(depth, [&](int64_t k, int count) {
        float values[kWidth];
        store(values, load_some(from + k, count));
        for (int lane = 0; lane < count; ++lane) to[(k + lane) * height + m] = values[lane];
      });
    }
  }
}

/// Packs x [rows, depth] (row stride `x_row`) into `packed`, rows * depth floats.
template <class T>
void pack_rows(const T* x, int64_t x_row, int64_t rows, int64_t depth, float* packed) {
  if (rows > 0) pack_row_tiles(x, x_row, rows, depth, 0, num_row_tiles(rows), packed);
}

/// Products of row tile `tile` with `num_panels` panels; out points at the tile's first row.
template <class W>
void multiply_tile_panels(const float* packed, int64_t rows, int64_t tile, int64_t depth, const W* panels,
                          int64_t num_panels, float* out, int64_t out_row) {
  const int64_t begin = tile_begin(rows, tile);
  const float* from = packed + begin * depth;
  with_height(tile_begin(rows, tile + 1) - begin,
              [&]<int M>() { multiply_row_tile<M>(from, panels, num_panels, depth, out, out_row); });
}

/// out[r * out_row + 16 p + j] = sum over k of x[r][k] * panels[p][k][j], for all packed rows and p < num_panels. `out`
/// needs 16 * num_panels columns: those past the weight's last output get 0.
template <class W>
void multiply_panels(const float* packed, int64_t rows, int64_t depth, const W* panels, int64_t num_panels, float* out,
                     int64_t out_row) {
  const int64_t tiles = rows > 0 ? num_row_tiles(rows) : 0;
  // Groups of panels outermost: a group comes from memory once and stays in cache for all row tiles.
  for (int64_t panel = 0; panel < num_panels; panel += kMaxPanels) {
    const int64_t count = num_panels - panel < kMaxPanels ? num_panels - panel : kMaxPanels;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      multiply_tile_panels(packed, rows, tile, depth, panels + panel * depth * kPanel, count,
                           out + tile_begin(rows, tile) * out_row + panel * kPanel, out_row);
    }
  }
}

/// One panel from rows of a plain weight [outputs, depth] (row stride `weight_row`), outputs <= 16.
template <class W>
void pack_panel(const W* weight, int64_t weight_row, int64_t outputs, int64_t depth, W* panel) {
  for (int64_t k = 0; k < depth; ++k) {
    for (int64_t j = 0; j < kPanel; ++j) panel[k * kPanel + j] = j < outputs ? weight[j * weight_row + k] : W{};
  }
}

SPCT_END_LEVEL
