// Products of a tile of quantised rows with int8 panels by AMX (TDPBSSD).
#pragma once

#include "linear/int8_products.hpp"

#if defined(__AMX_INT8__)

SPCT_BEGIN_LEVEL

/// out[m * out_row + 16 p + j]: rows [blocks][height][64] times the first `num_panels` panels, at most 4, or 2 for more
/// than one tile of rows; the weight is prefetched `ahead` bytes ahead unless that is 0.
template <bool TwoTiles>
[[gnu::noinline]] void multiply_int8_pair(const int8_t* rows, int64_t height, const float* row_scale,
                                          const Int8Weight& weight, int64_t num_panels, int64_t ahead, float* out,
                                          int64_t out_row) {
  constexpr int P = TwoTiles ? 2 : 4;
  const int64_t groups = num_groups(weight.depth), last = groups < kTileWords ? 0 : groups - kTileWords;
  const int64_t second = (height + 1) / 2;  // the second tile's first row
  // Panels that are not there are the last one again, and their sums are left.
  const int8_t* panels[P];
  for (int p = 0; p < P; ++p) panels[p] = weight.panels + (p < num_panels ? p : num_panels - 1) * groups * kGroupBytes;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t group = 0; group < groups; group += kTileWords) {
    const int64_t at = (group < last ? group : last) * kGroupBytes;
    const int8_t* x = rows + group * kGroup * height;
    for (int p = 0; p < P && ahead != 0; ++p) {
#pragma GCC unroll 16
      for (int word = 0; word < kTileWords; ++word) {
        __builtin_prefetch(panels[p] + at + ahead + word * kGroupBytes, 0, 2);
      }
    }
    _tile_loadd(4, x, kTileBytes);
    _tile_loadd(6, panels[0] + at, kGroupBytes);
    _tile_dpbssd(0, 4, 6);
    _tile_loadd(7, panels[1] + at, kGroupBytes);
    _tile_dpbssd(1, 4, 7);
    if constexpr (TwoTiles) {
      _tile_loadd(5, x + second * kTileBytes, kTileBytes);
      _tile_dpbssd(2, 5, 6);
      _tile_dpbssd(3, 5, 7);
    } else {
      _tile_loadd(6, panels[2] + at, kGroupBytes);
      _tile_dpbssd(2, 4, 6);
      _tile_loadd(7, panels[3] + at, kGroupBytes);
      _tile_dpbssd(3, 4, 7);
    }
  }
  alignas(64) int32_t sums[kInt8Rows * 2 * kPanel];
  const int64_t others = (TwoTiles ? second * P : 2) * kPanel;
  _tile_stored(0, sums, P * kGroupBytes);
  _tile_stored(1, sums + kPanel, P * kGroupBytes);
  _tile_stored(2, sums + others, P * kGroupBytes);
  _tile_stored(3, sums + others + kPanel, P * kGroupBytes);
  for (int64_t p = 0; p < num_panels; ++p) {
    const vf scale = weight.scales(p * kPanel);
    for (int64_t m = 0; m < height; ++m) {
      const vf sum = to_float(load_vector<vi>(sums + (m * P + p) * kPanel));
      store(out + m * out_row + p * kPanel, sum * splat(row_scale[m]) * scale);
    }
  }
}

/// out[m * out_row + 16 p + j]: a tile of rows [blocks][height][64] times `num_panels` panels, of which the thread goes
/// on to read `num_readable`; they are prefetched unless they were read just before.
[[maybe_unused]] static void multiply_int8_many(TileShapes& shapes, const int8_t* rows, int64_t height,
                                                const float* row_scale, const Int8Weight& weight, int64_t num_panels,
                                                int64_t num_readable, bool are_cached, float* out, int64_t out_row) {
  const bool two = height > kTileRows;
  const int64_t groups = num_groups(weight.depth), P = two ? 2 : 4, next = P * groups * kGroupBytes;
  const int words = groups == 0 ? 1 : groups < kTileWords ? static_cast<int>(groups) : kTileWords;
  shapes.set(static_cast<int>(two ? (height + 1) / 2 : height), static_cast<int>(two ? height / 2 : 0), words);
  finish_stores();
  for (int64_t panel = 0; panel < num_panels; panel += P) {
    const bool whole = panel + 2 * P <= num_readable && next <= kMaxAhead;
    const int64_t ahead = are_cached ? 0 : whole ? next : kAhead;
    const int64_t count = num_panels - panel < P ? num_panels - panel : P;
    const auto multiply = two ? multiply_int8_pair<true> : multiply_int8_pair<false>;
    multiply(rows, height, row_scale, weight.from(panel), count, ahead, out + panel * kPanel, out_row);
  }
}

SPCT_END_LEVEL

#endif
