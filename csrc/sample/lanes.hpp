// What the passes of a draw do with the lanes of a vector: sum them in fp64, and list those that a mask names.
#pragma once

#include "common/simd.hpp"

SPCT_BEGIN_LEVEL

// Half as many lanes as vf: GCC keeps vectors longer than a register in memory.
typedef double vd __attribute__((vector_size(kWidth * 4)));
typedef float vf_half __attribute__((vector_size(kWidth * 2)));

SPCT_INLINE vd to_double(vf_half x) {
#if defined(__AVX512F__)
  return _mm512_cvtps_pd(x);
#elif defined(__AVX2__)
  return _mm256_cvtps_pd(x);
#elif defined(SPCT_NEON)
  return vcvt_f64_f32(bits_as<float32x2_t>(x));
#else
  return __builtin_convertvector(x, vd);
#endif
}

/// Sum of floats, in fp64.
struct Sum {
  vd low{}, high{};

  [[gnu::always_inline]] void add(vf x) {
    vf_half halves[2];
    std::memcpy(halves, &x, sizeof(x));
    low += to_double(halves[0]);
    high += to_double(halves[1]);
  }
  double total() const {
    double sum = 0.0;
    for (int lane = 0; lane < kWidth / 2; ++lane) sum += low[lane];
    for (int lane = 0; lane < kWidth / 2; ++lane) sum += high[lane];
    return sum;
  }
};

#if defined(__AVX2__) && !defined(__AVX512F__)
/// The lanes of every mask, in order.
struct LaneTable {
  int8_t lanes[256][8] = {};
  constexpr LaneTable() {
    for (int mask = 0; mask < 256; ++mask) {
      for (int lane = 0, found = 0; lane < 8; ++lane) {
        if ((mask >> lane & 1) != 0) lanes[mask][found++] = static_cast<int8_t>(lane);
      }
    }
  }
};
constexpr LaneTable kLaneTable;
#endif

/// Writes first + lane for the lanes of `mask` below `count`, in order, and up to kWidth words of no meaning; returns
/// how many. Without a branch: which lanes they are can't be predicted.
SPCT_INLINE int64_t list_lanes(vi mask, int count, int64_t first, int32_t* to) {
  mask &= iota() < count;
#if defined(__AVX512F__)
  const __mmask16 lanes = _mm512_movepi32_mask(bits_as<__m512i>(mask));
  _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(lanes, bits_as<__m512i>(iota() + static_cast<int32_t>(first))));
  return __builtin_popcount(lanes);
#elif defined(__AVX2__)
  const int lanes = _mm256_movemask_ps(bits_as<__m256>(mask));
  const __m128i order = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(kLaneTable.lanes[lanes]));
  store(to, bits_as<vi>(_mm256_cvtepi8_epi32(order)) + static_cast<int32_t>(first));
  return __builtin_popcount(static_cast<uint32_t>(lanes));
#else
  int64_t found = 0;
  for (int lane = 0; lane < kWidth; ++lane) {
    to[found] = static_cast<int32_t>(first) + lane;
    found -= mask[lane];
  }
  return found;
#endif
}

SPCT_END_LEVEL
