// Matrix products of bf16 rows with a bf16 weight by dot products of pairs (VDPBF16PS, TDPBF16PS) with fp32 sums. The
// weight is that of gemm.hpp, [panels][depth][16]: two neighbouring inputs of a panel are 64 bytes, which one
// permutation turns into 16 pairs.
//
// A row's arithmetic, whoever is computed beside it: without AMX, pair after pair in order; with it, blocks of 32
// inputs in order, within which the instruction sums even and odd places each by itself. What lies past the last input
// is zero on both sides. There are no partial sums over chunks as in gemm.hpp: rows and outputs have 8 bits, so that
// the rounding of a longer fp32 chain counts less. Both instructions flush subnormal numbers to zero and round to
// nearest, whatever the processor's mode.
#pragma once

#include "common/scratch.hpp"
#include "common/tiles.hpp"
#include "linear/gemm.hpp"
#include "linear/store.hpp"

#if defined(__AVX512BF16__)

SPCT_BEGIN_LEVEL

typedef uint32_t Pair;  // two bf16 of neighbouring inputs

#if defined(__AMX_BF16__)
constexpr int kPairRows = 2 * kTileRows;
constexpr int64_t kBlockPairs = kTileWords;
#else
constexpr int kPairRows = kMaxRows;
constexpr int64_t kBlockPairs = 1;
#endif

/// Pairs of a row or a panel of `depth` inputs: whole blocks.
SPCT_INLINE int64_t num_pairs(int64_t depth) { return (depth + 2 * kBlockPairs - 1) / (2 * kBlockPairs) * kBlockPairs; }

/// Packs tiles [first, last) of x [rows, depth]: [blocks][rows of the tile][kBlockPairs], zeros past the last input.
[[maybe_unused]] static void pack_pair_tiles(const BFloat16* x, int64_t rows, int64_t depth, int64_t first,
                                             int64_t last, Pair* packed) {
  constexpr int64_t block = 2 * kBlockPairs;
  const int64_t pairs = num_pairs(depth);
  for (int64_t tile = first; tile < last; ++tile) {
    const int64_t begin = tile_begin<kPairRows>(rows, tile), height = tile_begin<kPairRows>(rows, tile + 1) - begin;
    Pair* to = packed + begin * pairs;
    for (int64_t m = 0; m < height; ++m) {
      const BFloat16* row = x + (begin + m) * depth;
      for (int64_t k = 0; k < depth; k += block) {
        Pair* at = to + (k / block * height + m) * kBlockPairs;
        if (k + block <= depth) {
          __builtin_memcpy(at, row + k, block * sizeof(BFloat16));
        } else {
          __builtin_memset(at, 0, block * sizeof(BFloat16));
          __builtin_memcpy(at, row + k, static_cast<size_t>(depth - k) * sizeof(BFloat16));
        }
      }
    }
  }
}

// A weight is asked for (into L2) so many bytes ahead: the CPU's own prefetchers stop at every 4 KiB, and without this
// a weight that comes from memory is read and multiplied in turns.
constexpr int64_t kPairsAhead = 4096;

/// Inputs k and k + 1 of a panel, as 16 pairs; k + 1 is zero where it is not there.
SPCT_INLINE __m512i load_pairs(const BFloat16* panel, int64_t k, int64_t depth) {
  alignas(64) static constexpr uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                     8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __mmask32 present = k + 1 < depth ? 0xffffffffu : 0xffffu;
  const BFloat16* from = panel + k * kPanel;
  __builtin_prefetch(reinterpret_cast<const char*>(from) + kPairsAhead, 0, 2);
  return _mm512_permutexvar_epi16(_mm512_load_si512(order), _mm512_maskz_loadu_epi16(present, from));
}

#if defined(__AMX_BF16__)

/// out[m * out_row + 16 p + j]: packed rows times `num_panels` panels of pairs, at most 4, or 2 for more than one tile
/// of rows.
template <bool TwoTiles>
[[gnu::noinline]] void multiply_bf16_tiles(const Pair* rows, int64_t height, const Pair* panels, int64_t pairs,
                                           int64_t num_panels, float* out, int64_t out_row) {
  constexpr int P = TwoTiles ? 2 : 4;
  const int64_t second = (height + 1) / 2;  // the second tile's first row
  // Panels that are not there are the last one again, and their sums are left.
  const Pair* from[P];
  for (int p = 0; p < P; ++p) from[p] = panels + (p < num_panels ? p : num_panels - 1) * pairs * kPanel;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t pair = 0; pair < pairs; pair += kBlockPairs) {
    const Pair* x = rows + pair * height;
    const int64_t at = pair * kPanel;
    _tile_loadd(4, x, kTileBytes);
    _tile_loadd(6, from[0] + at, kTileBytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, from[1] + at, kTileBytes);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (TwoTiles) {
      _tile_loadd(5, x + second * kTileWords, kTileBytes);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    } else {
      _tile_loadd(6, from[2] + at, kTileBytes);
      _tile_dpbf16ps(2, 4, 6);
      _tile_loadd(7, from[3] + at, kTileBytes);
      _tile_dpbf16ps(3, 4, 7);
    }
  }
  alignas(64) float sums[kPairRows * 2 * kPanel];
  constexpr int64_t stride = P * kPanel * sizeof(float);
  const int64_t others = (TwoTiles ? second * P : 2) * kPanel;
  _tile_stored(0, sums, stride);
  _tile_stored(1, sums + kPanel, stride);
  _tile_stored(2, sums + others, stride);
  _tile_stored(3, sums + others + kPanel, stride);
  for (int64_t m = 0; m < height; ++m) {
    __builtin_memcpy(out + m * out_row, sums + m * P * kPanel,
                     static_cast<size_t>(num_panels * kPanel) * sizeof(float));
  }
}

typedef Pair PanelElement;

/// What rows are multiplied with: panels of pairs [num_panels][pairs][16] in scratch of the thread, made once for all
/// row tiles of a task.
[[maybe_unused]] static const Pair* prepare_panels(const BFloat16* panels, int64_t num_panels, int64_t depth) {
  const int64_t pairs = num_pairs(depth);
  Pair* to = scratch<Pair>(Scratch::kPanel, static_cast<size_t>(num_panels * pairs * kPanel));
  for (int64_t panel = 0; panel < num_panels; ++panel) {
    const BFloat16* from = panels + panel * depth * kPanel;
    Pair* at = to + panel * pairs * kPanel;
    for (int64_t k = 0; k < 2 * pairs; k += 2) {
      _mm512_storeu_si512(at + k / 2 * kPanel, k < depth ? load_pairs(from, k, depth) : _mm512_setzero_si512());
    }
  }
  return to;
}

/// out[m * out_row + 16 p + j] for a tile of `height` packed rows.
[[maybe_unused]] static void multiply_bf16_rows(TileShapes& shapes, const Pair* rows, int64_t height,
                                                const Pair* panels, int64_t num_panels, int64_t depth, float* out,
                                                int64_t out_row) {
  const bool two = height > kTileRows;
  const int64_t pairs = num_pairs(depth), P = two ? 2 : 4;
  shapes.set(static_cast<int>(two ? (height + 1) / 2 : height), static_cast<int>(two ? height / 2 : 0), kTileWords);
  finish_stores();
  for (int64_t panel = 0; panel < num_panels; panel += P) {
    const int64_t count = num_panels - panel < P ? num_panels - panel : P;
    const auto multiply = two ? multiply_bf16_tiles<true> : multiply_bf16_tiles<false>;
    multiply(rows, height, panels + panel * pairs * kPanel, pairs, count, out + panel * kPanel, out_row);
  }
}

#else

/// out[m * out_row + 16 p + j]: M packed rows times P panels.
template <int M, int P>
[[gnu::noinline]] void multiply_bf16_pairs(const Pair* rows, const BFloat16* panels, int64_t depth, float* out,
                                           int64_t out_row) {
  __m512 sums[M][P];
  for (int m = 0; m < M; ++m) {
    for (int p = 0; p < P; ++p) sums[m][p] = _mm512_setzero_ps();
  }
  for (int64_t k = 0; k < depth; k += 2) {
    __m512bh w[P];
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) w[p] = bits_as<__m512bh>(load_pairs(panels + p * depth * kPanel, k, depth));
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const auto x = bits_as<__m512bh>(_mm512_set1_epi32(static_cast<int>(rows[k / 2 * M + m])));
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) sums[m][p] = _mm512_dpbf16_ps(sums[m][p], x, w[p]);
    }
  }
  for (int m = 0; m < M; ++m) {
    for (int p = 0; p < P; ++p) _mm512_storeu_ps(out + m * out_row + p * kPanel, sums[m][p]);
  }
}

typedef BFloat16 PanelElement;

/// What rows are multiplied with: the panels themselves, whose pairs are made as they are read.
SPCT_INLINE const BFloat16* prepare_panels(const BFloat16* panels, int64_t, int64_t) { return panels; }

/// out[m * out_row + 16 p + j] for a tile of `height` packed rows.
[[maybe_unused]] static void multiply_bf16_rows(TileShapes&, const Pair* rows, int64_t height, const BFloat16* panels,
                                                int64_t num_panels, int64_t depth, float* out, int64_t out_row) {
  with_height<kPairRows>(height, [&]<int M>() {
    constexpr int P = panels_for(M);
    int64_t panel = 0;
    for (; panel + P <= num_panels; panel += P) {
      multiply_bf16_pairs<M, P>(rows, panels + panel * depth * kPanel, depth, out + panel * kPanel, out_row);
    }
    for (; panel < num_panels; ++panel) {
      multiply_bf16_pairs<M, 1>(rows, panels + panel * depth * kPanel, depth, out + panel * kPanel, out_row);
    }
  });
}

#endif

/// For linear.kernel.cpp: how rows are packed and multiplied with a few panels.
class PairProducts {
 public:
  typedef Pair Packed;
  static constexpr int kRows = kPairRows;
  static constexpr int64_t kBlockTiles = 192 / kRows;  // 192 rows of 1,024 inputs: 384 KiB
  static int64_t row_length(int64_t depth) { return num_pairs(depth); }

  static void pack(const BFloat16* x, int64_t rows, int64_t depth, int64_t first, int64_t last, Pair* packed) {
    pack_pair_tiles(x, rows, depth, first, last, packed);
  }

  PairProducts(const BFloat16* panels, int64_t count, int64_t depth, int64_t)
      : panels_(prepare_panels(panels, count, depth)), depth_(depth) {}

  void multiply(TileShapes& shapes, const Pair* packed, int64_t rows, int64_t tile, int64_t count, float* out) const {
    const int64_t begin = tile_begin<kRows>(rows, tile), height = tile_begin<kRows>(rows, tile + 1) - begin;
    multiply_bf16_rows(shapes, packed + begin * num_pairs(depth_), height, panels_, count, depth_, out, kTileRow);
  }

 private:
  const PanelElement* panels_;
  int64_t depth_;
};

SPCT_END_LEVEL

#endif
