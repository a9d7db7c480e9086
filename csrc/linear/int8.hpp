// Matrix products of int8 rows with an int8 weight. The sums are int32 and exact, so that a row's bits depend neither
// on the level, nor on what is beside it, nor on the threads; the only roundings are those of
//
//   out[r][o] = float(sum over k of x[r][k] * w[o][k]) * row_scale[r] * scale[o]
//
//   panel   16 outputs, [groups][16][4]: four inputs of an output stand together, as VPDPBUSD takes them, and past the
//           last input or output there are zeros; a packed weight is [num_panels][groups][16][4]
//   rows    quantised, in the row tiles of linear/gemm.hpp, each [groups][rows of the tile][4]
//
// No value is -128. VPDPBUSD wants one operand unsigned: rows are stored as x + 128 where it is used, and the sums
// start at -128 * (sum of the output's weights). Without it, VPMADDUBSW of |w| and x with w's sign: two products of at
// most 127 * 127 fit its int16.
#pragma once

#include "linear/gemm.hpp"

SPCT_BEGIN_LEVEL

constexpr int kGroup = 4;
constexpr int kGroupBytes = kPanel * kGroup;

#if defined(__AVX512VNNI__)
constexpr int32_t kRowOffset = 128;
#else
constexpr int32_t kRowOffset = 0;
#endif

SPCT_INLINE int64_t num_groups(int64_t depth) { return (depth + kGroup - 1) / kGroup; }

/// A weight [outputs, depth]: w[o][k] * scale[o]; sums[o] is the sum of w[o], with a number for every padded output.
struct Int8Weight {
  const int8_t* panels;
  const float* scale;
  const int32_t* sums;
  int64_t outputs, depth;

  /// The panels from `panel` on, as a weight of their own.
  Int8Weight from(int64_t panel) const {
    const int64_t first = panel * kPanel;
    return {panels + first * num_groups(depth) * kGroup, scale + first, sums + first, outputs - first, depth};
  }
};

/// Quantised rows and their scales, in memory of int8_rows_words(rows, depth) words.
struct Int8Rows {
  float* scale;
  int8_t* bytes;

  Int8Rows(float* memory, int64_t rows) : scale(memory), bytes(reinterpret_cast<int8_t*>(memory + rows)) {}
};

SPCT_INLINE int64_t int8_rows_words(int64_t rows, int64_t depth) { return rows * (1 + num_groups(depth)); }

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

/// One row: nearest even of x * (127 / largest), its words of four at `to`, `stride` bytes apart; returns largest /
/// 127. A row whose largest magnitude is below 127 * 2^-126 counts as zeros (127 / largest would overflow), scale 0; a
/// row with NaN or Inf becomes zeros with the scale NaN, so that all of its outputs are NaN.
template <class T>
float quantise_row(const T* x, int64_t depth, int8_t* to, int64_t stride) {
  constexpr float smallest = 127.0f * 1.17549435e-38f;
  const int32_t bits = largest_bits(x, depth);
  const float largest = bits_as<float>(bits);
  const bool finite = bits < 0x7f800000;
  const bool counts = finite && largest >= smallest;
  const vf inverse = splat(counts ? 127.0f / largest : 0.0f);
  for_vectors(depth, [&](int64_t k, int count) {
    const vi value = counts ? to_int(round_small(load_some(x + k, count) * inverse)) : vi{};
    const vi8 bytes = __builtin_convertvector(value + kRowOffset, vi8);
    for (int word = 0; word * kGroup < count; ++word) {
      __builtin_memcpy(to + (k / kGroup + word) * stride, reinterpret_cast<const int8_t*>(&bytes) + word * kGroup,
                       kGroup);
    }
  });
  return !finite ? __builtin_nanf("") : counts ? largest / 127.0f : 0.0f;
}

/// Quantises tiles [first, last) of x [rows, depth] (row stride `x_row`).
template <class T>
void quantise_row_tiles(const T* x, int64_t x_row, int64_t rows, int64_t depth, int64_t first, int64_t last,
                        Int8Rows to) {
  for (int64_t tile = first; tile < last; ++tile) {
    const int64_t begin = tile_begin(rows, tile), height = tile_begin(rows, tile + 1) - begin;
    int8_t* bytes = to.bytes + begin * num_groups(depth) * kGroup;
    for (int64_t m = 0; m < height; ++m) {
      to.scale[begin + m] = quantise_row(x + (begin + m) * x_row, depth, bytes + m * kGroup, height * kGroup);
    }
  }
}

// ---- Products ----

/// Panels of one task: enough to ask for the next ones in time, few enough to share them among the threads.
SPCT_INLINE int64_t task_panels(int64_t num_panels, int64_t num_threads) {
  return num_panels >= 16 * kMaxPanels * num_threads ? 4 * kMaxPanels : kMaxPanels;
}

/// sums[m][v] += four products for every output of P panels; rows [M][4], panel p's group at panels + p * panel_bytes.
template <int M, int P>
SPCT_INLINE void add_group(vi (&sums)[M][P * kPanelVectors], const int8_t* rows, const int8_t* panels,
                           int64_t panel_bytes) {
#if defined(__AVX512VNNI__)
  __m512i w[P];
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) w[p] = _mm512_loadu_si512(panels + p * panel_bytes);
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
    const __m512i x = _mm512_set1_epi32(load_vector<int32_t>(rows + m * kGroup));
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) sums[m][p] = bits_as<vi>(_mm512_dpbusd_epi32(bits_as<__m512i>(sums[m][p]), x, w[p]));
  }
#elif defined(__AVX512BW__)
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) {
    const __m512i w = _mm512_loadu_si512(panels + p * panel_bytes);
    const __m512i magnitude = _mm512_abs_epi8(w);
    const __mmask64 negative = _mm512_movepi8_mask(w);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const __m512i x = _mm512_set1_epi32(load_vector<int32_t>(rows + m * kGroup));
      const __m512i flipped = _mm512_mask_sub_epi8(x, negative, _mm512_setzero_si512(), x);
      const __m512i pairs = _mm512_maddubs_epi16(magnitude, flipped);
      sums[m][p] = sums[m][p] + bits_as<vi>(_mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
    }
  }
#elif defined(__AVX2__)
#pragma GCC unroll 8
  for (int v = 0; v < P * kPanelVectors; ++v) {
    const int8_t* from = panels + v / kPanelVectors * panel_bytes + v % kPanelVectors * 32;
    const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    const __m256i magnitude = _mm256_abs_epi8(w);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const __m256i x = _mm256_set1_epi32(load_vector<int32_t>(rows + m * kGroup));
      const __m256i pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(x, w));
      sums[m][v] = sums[m][v] + bits_as<vi>(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
  }
#else
  for (int v = 0; v < P * kPanelVectors; ++v) {
    const int8_t* w = panels + v / kPanelVectors * panel_bytes + v % kPanelVectors * kWidth * kGroup;
    for (int m = 0; m < M; ++m) {
      const int8_t* x = rows + m * kGroup;
      vi products;
      for (int lane = 0; lane < kWidth; ++lane) {
        const int8_t* four = w + lane * kGroup;
        products[lane] = x[0] * four[0] + x[1] * four[1] + x[2] * four[2] + x[3] * four[3];
      }
      sums[m][v] = sums[m][v] + products;
    }
  }
#endif
}

// A weight is asked for (into L2) while what stands before it is multiplied: the next panels in full, where the thread
// goes on to read them and they leave room in L2; else kAhead bytes ahead in each panel, as the CPU's own prefetchers
// stop at every 4 KiB. Without this a weight that comes from memory is read and multiplied in turns.
constexpr int64_t kAhead = 2048;
constexpr int64_t kMaxAhead = int64_t{1} << 18;

/// out[m * out_row + 16 p + j]: M quantised rows times the first P panels; the weight is prefetched `ahead` bytes
/// ahead.
template <int M, int P>
[[gnu::noinline]] void multiply_int8_tile(const int8_t* rows, const float* row_scale, const Int8Weight& weight,
                                          int64_t ahead, float* out, int64_t out_row) {
  constexpr int V = P * kPanelVectors;
  const int64_t groups = num_groups(weight.depth), panel_bytes = groups * kGroupBytes;
  vi sums[M][V];
  for (int v = 0; v < V; ++v) {
    const vi start = kRowOffset == 0
                         ? vi{}
                         : bits_as<vi>(splat(0u) - load_vector<vu>(weight.sums + v * kWidth) * uint32_t{kRowOffset});
    for (int m = 0; m < M; ++m) sums[m][v] = start;
  }
  for (int64_t group = 0; group < groups; ++group) {
    const int8_t* panels = weight.panels + group * kGroupBytes;
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) __builtin_prefetch(panels + p * panel_bytes + ahead, 0, 2);
    add_group<M, P>(sums, rows + group * M * kGroup, panels, panel_bytes);
  }
  for (int v = 0; v < V; ++v) {
    const int64_t valid = weight.outputs - v * kWidth;
    const vf scale = valid >= kWidth ? load(weight.scale + v * kWidth)
                     : valid > 0     ? load_first(weight.scale + v * kWidth, static_cast<int>(valid))
                                     : vf{};
    for (int m = 0; m < M; ++m)
      store(out + m * out_row + v * kWidth, to_float(sums[m][v]) * splat(row_scale[m]) * scale);
  }
}

template <int M>
void multiply_int8_row_tile(const int8_t* rows, const float* row_scale, const Int8Weight& weight, int64_t num_panels,
                            int64_t num_readable, float* out, int64_t out_row) {
  constexpr int P = panels_for(M);
  const int64_t next = P * num_groups(weight.depth) * kGroupBytes;
  int64_t panel = 0;
  for (; panel + P <= num_panels; panel += P) {
    const int64_t ahead = panel + 2 * P <= num_readable && next <= kMaxAhead ? next : kAhead;
    multiply_int8_tile<M, P>(rows, row_scale, weight.from(panel), ahead, out + panel * kPanel, out_row);
  }
  for (; panel < num_panels; ++panel) {
    multiply_int8_tile<M, 1>(rows, row_scale, weight.from(panel), kAhead, out + panel * kPanel, out_row);
  }
}

/// Products of row tile `tile` with the weight's first `num_panels` panels; out points at the tile's first row. The
/// calling thread reads the first `num_readable` panels, soon.
[[maybe_unused]] static void multiply_int8_tile_panels(const Int8Rows& quantised, int64_t rows, int64_t tile,
                                                       const Int8Weight& weight, int64_t num_panels,
                                                       int64_t num_readable, float* out, int64_t out_row) {
  const int64_t begin = tile_begin(rows, tile);
  const int8_t* from = quantised.bytes + begin * num_groups(weight.depth) * kGroup;
  const float* row_scale = quantised.scale + begin;
  with_height(tile_begin(rows, tile + 1) - begin, [&]<int M>() {
    multiply_int8_row_tile<M>(from, row_scale, weight, num_panels, num_readable, out, out_row);
  });
}

/// out[r * out_row + 16 p + j] for all quantised rows and p < num_panels. `out` needs 16 * num_panels columns: those
/// past the weight's last output get 0 (NaN in a row that is not finite).
[[maybe_unused]] static void multiply_int8_panels(const Int8Rows& quantised, int64_t rows, const Int8Weight& weight,
                                                  int64_t num_panels, float* out, int64_t out_row) {
  const int64_t tiles = rows > 0 ? num_row_tiles(rows) : 0;
  // Groups of panels outermost, as in multiply_panels.
  for (int64_t panel = 0; panel < num_panels; panel += kMaxPanels) {
    const int64_t count = num_panels - panel < kMaxPanels ? num_panels - panel : kMaxPanels;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      multiply_int8_tile_panels(quantised, rows, tile, weight.from(panel), count, num_panels - panel,
                                out + tile_begin(rows, tile) * out_row + panel * kPanel, out_row);
    }
  }
}

SPCT_END_LEVEL
