// Products of one tile of quantised rows with int8 panels: in vector registers, or by AMX tiles. See int8.hpp for the
// layouts; sums are exact, so that both give the same bits.
#pragma once

#include "common/tiles.hpp"
#include "linear/gemm.hpp"

SPCT_BEGIN_LEVEL

constexpr int kGroup = 4;
constexpr int kGroupBytes = kPanel * kGroup;

// Rows of a tile at most; rows of one that is multiplied in vector registers, likewise: AMX takes longer for these few,
// and NEON without dot products needs a register for every row.
#if defined(__AMX_INT8__)
constexpr int kInt8Rows = 2 * kTileRows, kVectorRows = 4;
#elif defined(SPCT_NEON) && !defined(__ARM_FEATURE_DOTPROD)
constexpr int kInt8Rows = 4, kVectorRows = 4;
#else
constexpr int kInt8Rows = kMaxRows, kVectorRows = kMaxRows;
#endif

// What is added to stored rows that are multiplied in vector registers.
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

  /// Scales of outputs [first, first + kWidth), zeros past the last one.
  vf scales(int64_t first) const {
    const int64_t valid = outputs - first;
    return valid >= kWidth ? load(scale + first)
           : valid > 0     ? load_first(scale + first, static_cast<int>(valid))
                           : vf{};
  }
};

// A weight is asked for (into L2) while what stands before it is multiplied: the next panels in full, where the thread
// goes on to read them and they leave room in L2; else kAhead bytes ahead in each panel, as the CPU's own prefetchers
// stop at every 4 KiB. Without this a weight that comes from memory is read and multiplied in turns.
constexpr int64_t kAhead = 2048;
constexpr int64_t kMaxAhead = int64_t{1} << 18;

#if defined(__ARM_FEATURE_DOTPROD)
/// A group of up to four rows [Rows][4] in one register.
template <int Rows>
SPCT_INLINE int8x16_t load_groups(const int8_t* rows) {
  if constexpr (Rows >= 4) {
    return vld1q_s8(rows);
  } else if constexpr (Rows == 1) {
    return bits_as<int8x16_t>(splat(load_vector<int32_t>(rows)));
  } else {
    const int8x8_t two = vld1_s8(rows);
    if constexpr (Rows == 2) return vcombine_s8(two, two);
    return vcombine_s8(two, bits_as<int8x8_t>(vdup_n_s32(load_vector<int32_t>(rows + 2 * kGroup))));
  }
}
#endif

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
#elif defined(__ARM_FEATURE_DOTPROD)
  // Four rows in a register, of which SDOT takes one: 24 sums, 4 of weights and 2 of rows fit the register file.
  constexpr int kQuads = (M + 3) / 4;
  int8x16_t x[2];
  x[0] = load_groups<M>(rows);
  if constexpr (kQuads == 2) x[1] = load_groups<M - 4>(rows + 4 * kGroup);
#pragma GCC unroll 16
  for (int v = 0; v < P * kPanelVectors; ++v) {
    const int8x16_t w = vld1q_s8(panels + v / kPanelVectors * panel_bytes + v % kPanelVectors * 16);
#pragma GCC unroll 2
    for (int quad = 0; quad < kQuads; ++quad) {
      const int m = 4 * quad;
      sums[m][v] = vdotq_laneq_s32(sums[m][v], w, x[quad], 0);
      if (m + 1 < M) sums[m + 1][v] = vdotq_laneq_s32(sums[m + 1][v], w, x[quad], 1);
      if (m + 2 < M) sums[m + 2][v] = vdotq_laneq_s32(sums[m + 2][v], w, x[quad], 2);
      if (m + 3 < M) sums[m + 3][v] = vdotq_laneq_s32(sums[m + 3][v], w, x[quad], 3);
    }
  }
#elif defined(SPCT_NEON)
#pragma GCC unroll 16
  for (int v = 0; v < P * kPanelVectors; ++v) {
    const int8x16_t w = vld1q_s8(panels + v / kPanelVectors * panel_bytes + v % kPanelVectors * 16);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const int8x16_t x = bits_as<int8x16_t>(splat(load_vector<int32_t>(rows + m * kGroup)));
      // Two products of at most 127 * 127 fit an int16.
      const int16x8_t pairs = vpaddq_s16(vmull_s8(vget_low_s8(w), vget_low_s8(x)), vmull_high_s8(w, x));
      sums[m][v] = vpadalq_s16(sums[m][v], pairs);
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
    const vf scale = weight.scales(v * kWidth);
    for (int m = 0; m < M; ++m)
      store(out + m * out_row + v * kWidth, to_float(sums[m][v]) * splat(row_scale[m]) * scale);
  }
}

template <int M>
void multiply_int8_rows(const int8_t* rows, const float* row_scale, const Int8Weight& weight, int64_t num_panels,
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

/// out[m * out_row + 16 p + j]: a tile of up to kVectorRows rows [groups][height][4] times `num_panels` panels, of
/// which the thread goes on to read `num_readable`.
[[maybe_unused]] static void multiply_int8_few(const int8_t* rows, int64_t height, const float* row_scale,
                                               const Int8Weight& weight, int64_t num_panels, int64_t num_readable,
                                               float* out, int64_t out_row) {
  with_height<kVectorRows>(
      height, [&]<int M>() { multiply_int8_rows<M>(rows, row_scale, weight, num_panels, num_readable, out, out_row); });
}

SPCT_END_LEVEL
