// Matrix products of int8 rows with an int8 weight. The sums are int32 and exact, so that a row's bits depend neither
// on the level, nor on what is beside it, nor on the threads; the only roundings are those of
//
//   out[r][o] = float(sum over k of x[r][k] * w[o][k]) * row_scale[r] * scale[o]
//
//   panel   16 outputs, [groups][16][4]: four inputs of an output stand together, as VPDPBUSD and TDPBSSD take them,
//           and past the last input or output there are zeros; a packed weight is [num_panels][groups][16][4]
//   rows    quantised, in tiles of up to kInt8Rows rows: [groups][rows of the tile][4]; where AMX multiplies the tile
//           [blocks][rows of the tile][64], a block holding 16 groups; the last one ends with the last group, and what
//           it shares with the block before it is zero there
//
// No value is -128. VPDPBUSD wants one operand unsigned: rows are stored as x + 128 where it is used, and the sums
// start at -128 * (sum of the output's weights). AMX does not; and without both, VPMADDUBSW of |w| and x with w's sign:
// two products of at most 127 * 127 fit its int16.
#pragma once

#include "linear/int8_tiles.hpp"

SPCT_BEGIN_LEVEL

constexpr int kBlockBytes = 64;

/// Quantised rows and their scales, in memory of int8_rows_words(rows, depth) words.
struct Int8Rows {
  float* scale;
  int8_t* bytes;

  Int8Rows(float* memory, int64_t rows) : scale(memory), bytes(reinterpret_cast<int8_t*>(memory + rows)) {}
};

/// True where a tile of so many rows is multiplied by AMX.
SPCT_INLINE bool takes_tiles(int64_t height) { return height > kVectorRows; }

/// Bytes that a row takes, in whole blocks where AMX may multiply it.
SPCT_INLINE int64_t int8_row_bytes(int64_t depth) {
  constexpr int64_t block = kInt8Rows > kVectorRows ? kBlockBytes : kGroup;
  return (depth + block - 1) / block * block;
}

SPCT_INLINE int64_t int8_rows_words(int64_t rows, int64_t depth) { return rows * (1 + int8_row_bytes(depth) / 4); }

// ---- Rows to int8 ----

/// Largest magnitude, as bits: these compare as the numbers do, with Inf and then NaN above all.
template <class T>
SPCT_INLINE int32_t largest_bits(const T* x, int64_t depth) {
  vi largest{};
  for_vectors(depth, [&](int64_t k, int count) {
    const vi bits = bits_as<vi>(load_some(x + k, count)) & 0x7fffffff;
    largest = largest > bits ? largest : bits;
  });
  int32_t result = 0;
  for (int lane = 0; lane < kWidth; ++lane) result = largest[lane] > result ? largest[lane] : result;
  return result;
}

/// Moves the groups of a row's last block to its end, behind zeros; a row of one block stays as it is.
SPCT_INLINE void align_last_block(int64_t depth, int8_t* block) {
  const size_t rest = static_cast<size_t>(num_groups(depth) * kGroup % kBlockBytes);
  if (rest == 0 || depth <= kBlockBytes) return;
  std::memmove(block + kBlockBytes - rest, block, rest);
  std::memset(block, 0, kBlockBytes - rest);
}

/// One row: nearest even of x * (127 / largest) + Offset, its blocks of `Block` bytes at `to`, `stride` bytes apart;
/// returns largest / 127. A row whose largest magnitude is below 127 * 2^-126 counts as zeros (127 / largest would
/// overflow), scale 0; a row with NaN or Inf becomes zeros with the scale NaN, so that all of its outputs are NaN.
template <int Block, int32_t Offset, class T>
float quantise_row(const T* x, int64_t depth, int8_t* to, int64_t stride) {
  constexpr float smallest = 127.0f * 1.17549435e-38f;
  const int32_t bits = largest_bits(x, depth);
  const float largest = bits_as<float>(bits);
  const bool finite = bits < 0x7f800000;
  const bool counts = finite && largest >= smallest;
  const vf inverse = splat(counts ? 127.0f / largest : 0.0f);
  for_vectors(depth, [&](int64_t k, int count) {
    const vi value = counts ? to_int(round_small(load_some(x + k, count) * inverse)) : vi{};
    const vi8 bytes = narrow(value + Offset);
    if constexpr (Block >= kWidth) {
      __builtin_memcpy(to + k / Block * stride + k % Block, &bytes, kWidth);
    } else {
      for (int word = 0; word * kGroup < count; ++word) {
        __builtin_memcpy(to + (k / kGroup + word) * stride, reinterpret_cast<const int8_t*>(&bytes) + word * kGroup,
                         kGroup);
      }
    }
  });
  if constexpr (Block > kGroup) align_last_block(depth, to + (depth - 1) / Block * stride);
  return !finite ? __builtin_nanf("") : counts ? largest / 127.0f : 0.0f;
}

/// Quantises tiles [first, last) of x [rows, depth] (row stride `x_row`).
template <class T>
void quantise_row_tiles(const T* x, int64_t x_row, int64_t rows, int64_t depth, int64_t first, int64_t last,
                        Int8Rows to) {
  for (int64_t tile = first; tile < last; ++tile) {
    const int64_t begin = tile_begin<kInt8Rows>(rows, tile), height = tile_begin<kInt8Rows>(rows, tile + 1) - begin;
    int8_t* bytes = to.bytes + begin * int8_row_bytes(depth);
    const bool tiles = takes_tiles(height);
    for (int64_t m = 0; m < height; ++m) {
      const T* row = x + (begin + m) * x_row;
      to.scale[begin + m] =
          tiles ? quantise_row<kBlockBytes, 0>(row, depth, bytes + m * kBlockBytes, height * kBlockBytes)
                : quantise_row<kGroup, kRowOffset>(row, depth, bytes + m * kGroup, height * kGroup);
    }
  }
}

// ---- Products ----

/// Panels of one task: enough to ask for the next ones in time, few enough to share them among the threads.
SPCT_INLINE int64_t task_panels(int64_t num_panels, int64_t num_threads) {
  return num_panels >= 16 * kMaxPanels * num_threads ? 4 * kMaxPanels : kMaxPanels;
}

/// Products of row tile `tile` with the weight's first `num_panels` panels; out points at the tile's first row. The
/// calling thread reads the first `num_readable` panels, soon; or it has just read them, if `are_cached`.
[[maybe_unused]] static void multiply_int8_tile_panels([[maybe_unused]] TileShapes& shapes, const Int8Rows& quantised,
                                                       int64_t rows, int64_t tile, const Int8Weight& weight,
                                                       int64_t num_panels, int64_t num_readable,
                                                       [[maybe_unused]] bool are_cached, float* out, int64_t out_row) {
  const int64_t begin = tile_begin<kInt8Rows>(rows, tile), height = tile_begin<kInt8Rows>(rows, tile + 1) - begin;
  const int8_t* bytes = quantised.bytes + begin * int8_row_bytes(weight.depth);
  const float* row_scale = quantised.scale + begin;
#if defined(__AMX_INT8__)
  if (takes_tiles(height)) {
    return multiply_int8_many(shapes, bytes, height, row_scale, weight, num_panels, num_readable, are_cached, out,
                              out_row);
  }
#endif
  multiply_int8_few(bytes, height, row_scale, weight, num_panels, num_readable, out, out_row);
}

/// out[r * out_row + 16 p + j] for all quantised rows and p < num_panels. `out` needs 16 * num_panels columns: those
/// past the weight's last output get 0 (NaN in a row that is not finite).
[[maybe_unused]] static void multiply_int8_panels(const Int8Rows& quantised, int64_t rows, const Int8Weight& weight,
                                                  int64_t num_panels, float* out, int64_t out_row) {
  const int64_t tiles = rows > 0 ? num_row_tiles<kInt8Rows>(rows) : 0;
  TileShapes shapes;
  // Groups of panels outermost, as in multiply_panels.
  for (int64_t panel = 0; panel < num_panels; panel += kMaxPanels) {
    const int64_t count = num_panels - panel < kMaxPanels ? num_panels - panel : kMaxPanels;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      multiply_int8_tile_panels(shapes, quantised, rows, tile, weight.from(panel), count, num_panels - panel, tile > 0,
                                out + tile_begin<kInt8Rows>(rows, tile) * out_row + panel * kPanel, out_row);
    }
  }
  shapes.release();
}

SPCT_END_LEVEL
