// Vectors of the level's width, in the level's namespace: GCC/Clang vector extensions (so + - * / & | ^ << >> < == and
// `mask ? a : b` work as on scalars), with intrinsics only where the extensions have no word.
//
//   vf, vi, vu   kWidth floats, int32, uint32         a comparison gives a vi mask: -1 where true, 0 elsewhere
//
// Nothing here contracts a*b+c: write fma() where it is meant. At the scalar level fma() rounds twice.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/level.hpp"
#include "common/number.hpp"

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#elif defined(SPCT_NEON)
#include <arm_neon.h>
#endif

#define SPCT_INLINE [[gnu::always_inline]] static inline

SPCT_BEGIN_LEVEL

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

typedef float vf __attribute__((vector_size(kWidth * 4)));
typedef int32_t vi __attribute__((vector_size(kWidth * 4)));
typedef uint32_t vu __attribute__((vector_size(kWidth * 4)));
typedef uint64_t vu64 __attribute__((vector_size(kWidth * 8)));
typedef uint16_t vu16 __attribute__((vector_size(kWidth * 2)));
typedef int8_t vi8 __attribute__((vector_size(kWidth)));

// `x - 0` is x for every x, -0 included, so the compiler broadcasts; `x + 0` would make it add.
SPCT_INLINE vf splat(float x) { return x - vf{}; }
SPCT_INLINE vi splat(int32_t x) { return x - vi{}; }
SPCT_INLINE vu splat(uint32_t x) { return x - vu{}; }

/// 0, 1, 2, … kWidth-1
SPCT_INLINE vi iota() {
  vi lanes{};
  for (int lane = 0; lane < kWidth; ++lane) lanes[lane] = lane;
  return lanes;
}

template <class To, class From>
SPCT_INLINE To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

template <class Vector, class Scalar>
SPCT_INLINE Vector load_vector(const Scalar* from) {
  Vector v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

// ---- Arithmetic ----

SPCT_INLINE vf fma(vf a, vf b, vf c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(SPCT_NEON)
  return vfmaq_f32(c, a, b);
#else
  return a * b + c;
#endif
}

SPCT_INLINE vf sqrt(vf x) {
#if defined(__AVX512F__)
  return _mm512_sqrt_ps(x);
#elif defined(__AVX2__)
  return _mm256_sqrt_ps(x);
#elif defined(SPCT_NEON)
  return vsqrtq_f32(x);
#else
  for (int lane = 0; lane < kWidth; ++lane) x[lane] = __builtin_sqrtf(x[lane]);
  return x;
#endif
}

/// The second operand where they compare unordered (NaN), as MAXPS does.
SPCT_INLINE vf max(vf a, vf b) { return a > b ? a : b; }
SPCT_INLINE vf min(vf a, vf b) { return a < b ? a : b; }
SPCT_INLINE vf abs(vf x) { return bits_as<vf>(bits_as<vi>(x) & 0x7fffffff); }
SPCT_INLINE vf copysign(vf magnitude, vf sign) {
  return bits_as<vf>((bits_as<vi>(magnitude) & 0x7fffffff) | (bits_as<vi>(sign) & INT32_MIN));
}

/// Nearest integer, ties to even; needs |x| < 2^22.
SPCT_INLINE vf round_small(vf x) {
  const vf magic = splat(12582912.0f);  // 1.5 * 2^23: adding it leaves no fraction bits
  return (x + magic) - magic;
}

SPCT_INLINE vi to_int(vf x) { return __builtin_convertvector(x, vi); }
SPCT_INLINE vf to_float(vi x) { return __builtin_convertvector(x, vf); }
SPCT_INLINE vf to_float(vu x) { return __builtin_convertvector(x, vf); }

// GCC 12 converts to and from vectors of less than 16 bytes lane by lane on ARM.

SPCT_INLINE vu widen(vu16 x) {
#if defined(SPCT_NEON)
  return vmovl_u16(bits_as<uint16x4_t>(x));
#else
  return __builtin_convertvector(x, vu);
#endif
}

SPCT_INLINE vi widen(vi8 x) {
#if defined(SPCT_NEON)
  const int8x8_t twice = bits_as<int8x8_t>(vdup_n_s32(bits_as<int32_t>(x)));
  return vmovl_s16(vget_low_s16(vmovl_s8(twice)));
#else
  return __builtin_convertvector(x, vi);
#endif
}

/// The low 16 bits of every lane.
SPCT_INLINE vu16 narrow(vu x) {
#if defined(SPCT_NEON)
  return bits_as<vu16>(vmovn_u32(x));
#else
  return __builtin_convertvector(x, vu16);
#endif
}

/// The low 8 bits of every lane.
SPCT_INLINE vi8 narrow(vi x) {
#if defined(SPCT_NEON)
  const int16x4_t half = vmovn_s32(x);
  return bits_as<vi8>(vget_lane_s32(bits_as<int32x2_t>(vmovn_s16(vcombine_s16(half, half))), 0));
#else
  return __builtin_convertvector(x, vi8);
#endif
}

/// High 32 bits of the 64-bit products.
SPCT_INLINE vu mul_high(vu a, vu b) {
#if defined(__AVX512F__)
  const __m512i x = bits_as<__m512i>(a), y = bits_as<__m512i>(b);
  const __m512i even = _mm512_srli_epi64(_mm512_mul_epu32(x, y), 32);
  const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(x, 32), _mm512_srli_epi64(y, 32));
  return bits_as<vu>(_mm512_mask_blend_epi32(0xaaaa, even, odd));
#elif defined(__AVX2__)
  const __m256i x = bits_as<__m256i>(a), y = bits_as<__m256i>(b);
  const __m256i even = _mm256_srli_epi64(_mm256_mul_epu32(x, y), 32);
  const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(x, 32), _mm256_srli_epi64(y, 32));
  return bits_as<vu>(_mm256_blend_epi32(even, odd, 0xaa));
#elif defined(SPCT_NEON)
  const uint64x2_t low = vmull_u32(vget_low_u32(a), vget_low_u32(b)), high = vmull_high_u32(a, b);
  return vuzp2q_u32(bits_as<uint32x4_t>(low), bits_as<uint32x4_t>(high));
#else
  return __builtin_convertvector((__builtin_convertvector(a, vu64) * __builtin_convertvector(b, vu64)) >> 32, vu);
#endif
}

// ---- Reductions over lanes, in one fixed order ----

typedef float vf4 __attribute__((vector_size(16)));
#if defined(__AVX2__)
typedef float vf8 __attribute__((vector_size(32)));
#endif

/// Folds the upper half onto the lower one until 4 lanes are left, then 2, then 1.
template <class Combine>
SPCT_INLINE float reduce(vf x, const Combine& combine) {
#if defined(__AVX512F__)
  const vf8 eight = combine(__builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7),
                            __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15));
#elif defined(__AVX2__)
  const vf8 eight = x;
#endif
#if defined(__AVX2__)
  const vf4 four =
      combine(__builtin_shufflevector(eight, eight, 0, 1, 2, 3), __builtin_shufflevector(eight, eight, 4, 5, 6, 7));
#else
  const vf4 four = x;
#endif
  const vf4 two = combine(four, __builtin_shufflevector(four, four, 2, 3, 2, 3));
  return combine(two, __builtin_shufflevector(two, two, 1, 0, 1, 0))[0];
}

SPCT_INLINE float reduce_add(vf x) {
  return reduce(x, [](auto a, auto b) { return a + b; });
}

SPCT_INLINE float reduce_max(vf x) {
  return reduce(x, [](auto a, auto b) { return a > b ? a : b; });
}

SPCT_INLINE bool any(vi mask) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask(bits_as<__m512i>(mask)) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps(bits_as<__m256>(mask)) != 0;
#elif defined(SPCT_NEON)
  return vmaxvq_u32(bits_as<vu>(mask)) != 0;
#else
  int32_t result = 0;
  for (int lane = 0; lane < kWidth; ++lane) result |= mask[lane];
  return result != 0;
#endif
}

// ---- Transposition of kWidth vectors: log2(kWidth) rounds that interleave vector i with vector i + kWidth/2 ----

SPCT_INLINE void interleave(vf a, vf b, vf& low, vf& high) {
#if defined(__AVX512F__)
  const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i second = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  low = _mm512_permutex2var_ps(a, first, b);
  high = _mm512_permutex2var_ps(a, second, b);
#elif defined(__AVX2__)
  const __m256 even = _mm256_unpacklo_ps(a, b), odd = _mm256_unpackhi_ps(a, b);
  low = _mm256_permute2f128_ps(even, odd, 0x20);
  high = _mm256_permute2f128_ps(even, odd, 0x31);
#elif defined(SPCT_NEON)
  low = vzip1q_f32(a, b);
  high = vzip2q_f32(a, b);
#else
  low = vf{a[0], b[0], a[1], b[1]};
  high = vf{a[2], b[2], a[3], b[3]};
#endif
}

SPCT_INLINE void transpose(vf (&rows)[kWidth]) {
#pragma GCC unroll 4
  for (int round = 1; round < kWidth; round *= 2) {
    vf next[kWidth];
#pragma GCC unroll 16
    for (int i = 0; i < kWidth / 2; ++i) interleave(rows[i], rows[i + kWidth / 2], next[2 * i], next[2 * i + 1]);
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i) rows[i] = next[i];
  }
}

// ---- Memory: any alignment; 16-bit and int8 elements convert to and from fp32 ----

SPCT_INLINE vf half_to_float(vu16 h) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(bits_as<__m256i>(h));
#elif defined(__AVX2__)
  return _mm256_cvtph_ps(bits_as<__m128i>(h));
#elif defined(SPCT_NEON)
  return vcvt_f32_f16(bits_as<float16x4_t>(h));
#else
  const vu bits = widen(h);
  const vu magnitude = bits & 0x7fff, sign = (bits & 0x8000) << 16;
  const vf normal = bits_as<vf>((magnitude << 13) + (112u << 23));
  const vf special = bits_as<vf>((magnitude << 13) + (224u << 23));          // Inf and NaN keep an all-ones exponent
  const vf subnormal = to_float(magnitude) * splat(5.9604644775390625e-8f);  // 2^-24
  const vf value = magnitude >= 0x7c00 ? special : (magnitude < 0x400 ? subnormal : normal);
  return bits_as<vf>(bits_as<vu>(value) | sign);
#endif
}

SPCT_INLINE vu16 float_to_half(vf x) {
#if defined(__AVX512F__)
  return bits_as<vu16>(_mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__AVX2__)
  return bits_as<vu16>(_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(SPCT_NEON)
  return bits_as<vu16>(vcvt_f16_f32(x));
#else
  const vu bits = bits_as<vu>(x), magnitude = bits & 0x7fffffff, sign = (bits >> 16) & 0x8000;
  const vu normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Adding 0.5 puts the unit of a subnormal half (2^-24) at the last bit, with the FPU's own rounding.
  const vu subnormal = bits_as<vu>(bits_as<vf>(magnitude) + splat(0.5f)) - 0x3f000000u;
  const vu overflow = magnitude > 0x7f800000 ? splat(0x7e00u) : splat(0x7c00u);
  const vu value = magnitude >= 0x477ff000 ? overflow : (magnitude < 0x38800000 ? subnormal : normal);
  return narrow(value | sign);
#endif
}

SPCT_INLINE vf bfloat_to_float(vu16 b) { return bits_as<vf>(widen(b) << 16); }

SPCT_INLINE vu16 float_to_bfloat(vf x) {
  const vu bits = bits_as<vu>(x);
  const vu rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const vu quiet = (bits >> 16) | 0x40;
  return narrow((bits & 0x7fffffff) > 0x7f800000 ? quiet : rounded);
}

SPCT_INLINE vf load(const float* from) { return load_vector<vf>(from); }
SPCT_INLINE vf load(const BFloat16* from) { return bfloat_to_float(load_vector<vu16>(from)); }
SPCT_INLINE vf load(const Half* from) { return half_to_float(load_vector<vu16>(from)); }
SPCT_INLINE vf load(const int8_t* from) { return to_float(widen(load_vector<vi8>(from))); }

SPCT_INLINE void store(float* to, vf x) { std::memcpy(to, &x, sizeof(x)); }
SPCT_INLINE void store(int32_t* to, vi x) { std::memcpy(to, &x, sizeof(x)); }
SPCT_INLINE void store(uint32_t* to, vu x) { std::memcpy(to, &x, sizeof(x)); }
SPCT_INLINE void store(BFloat16* to, vf x) {
  const vu16 bits = float_to_bfloat(x);
  std::memcpy(to, &bits, sizeof(bits));
}
SPCT_INLINE void store(Half* to, vf x) {
  const vu16 bits = float_to_half(x);
  std::memcpy(to, &bits, sizeof(bits));
}

/// The first `count` < kWidth elements; the other lanes are `fill`. Reads nothing past them.
template <class Scalar>
SPCT_INLINE vf load_first(const Scalar* from, int count, float fill = 0.0f) {
  Scalar padded[kWidth] = {};
  std::memcpy(padded, from, sizeof(Scalar) * static_cast<size_t>(count));
  const vf loaded = load(padded);
  return iota() < count ? loaded : splat(fill);
}

template <class Scalar>
SPCT_INLINE void store_first(Scalar* to, vf x, int count) {
  Scalar padded[kWidth];
  store(padded, x);
  std::memcpy(to, padded, sizeof(Scalar) * static_cast<size_t>(count));
}

/// body(element, count) for a run of `length` elements: whole vectors, then one shorter one, with the same arithmetic.
template <class F>
SPCT_INLINE void for_vectors(int64_t length, const F& body) {
  int64_t i = 0;
  for (; i + kWidth <= length; i += kWidth) body(i, kWidth);
  if (i < length) body(i, static_cast<int>(length - i));
}

template <class Scalar>
SPCT_INLINE vf load_some(const Scalar* from, int count) {
  return count == kWidth ? load(from) : load_first(from, count);
}

template <class Scalar>
SPCT_INLINE void store_some(Scalar* to, vf x, int count) {
  if (count == kWidth) {
    store(to, x);
  } else {
    store_first(to, x, count);
  }
}

SPCT_END_LEVEL
