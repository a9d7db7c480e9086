// Philox4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011): the keyed noise of sampling. One counter gives the bits of four
// neighbouring vocabulary ids; see kernels/spct_kernels/philox.py for the layout that every backend shares.
#pragma once

#include "common/simd.hpp"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

SPCT_BEGIN_LEVEL

/// Ids whose bits `PhiloxStream` makes at a time: enough independent chains to hide the multiplier's latency at every
/// level.
constexpr int kPhiloxIds = 64;

struct PhiloxKey {
  uint64_t seed, position;
};

/// One 64-bit lane per counter; only the low 32 bits of a lane mean anything between rounds.
typedef uint64_t PhiloxLanes __attribute__((vector_size(kWidth * 4)));
constexpr int kPhiloxLanes = kWidth / 2;

/// Product of the low 32 bits of every lane.
SPCT_INLINE PhiloxLanes multiply_low_words(PhiloxLanes a, PhiloxLanes b) {
#if defined(__AVX512F__)
  return bits_as<PhiloxLanes>(_mm512_mul_epu32(bits_as<__m512i>(a), bits_as<__m512i>(b)));
#elif defined(__AVX2__)
  return bits_as<PhiloxLanes>(_mm256_mul_epu32(bits_as<__m256i>(a), bits_as<__m256i>(b)));
#elif defined(__SSE2__)
  return bits_as<PhiloxLanes>(_mm_mul_epu32(bits_as<__m128i>(a), bits_as<__m128i>(b)));
#elif defined(SPCT_NEON)
  return bits_as<PhiloxLanes>(vmull_u32(vmovn_u64(bits_as<uint64x2_t>(a)), vmovn_u64(bits_as<uint64x2_t>(b))));
#else
  return (a & 0xffffffffu) * (b & 0xffffffffu);
#endif
}

/// Ids 0, 1 of every counter in `first`, ids 2, 3 in `second`: interleaved, the bits stand in the order of the ids.
SPCT_INLINE void store_interleaved(PhiloxLanes first, PhiloxLanes second, uint32_t* bits) {
#if defined(__AVX512F__)
  _mm512_storeu_si512(bits, _mm512_unpacklo_epi64(bits_as<__m512i>(first), bits_as<__m512i>(second)));
  _mm512_storeu_si512(bits + 16, _mm512_unpackhi_epi64(bits_as<__m512i>(first), bits_as<__m512i>(second)));
#elif defined(__AVX2__)
  const __m256i a = bits_as<__m256i>(first), b = bits_as<__m256i>(second);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(bits), _mm256_unpacklo_epi64(a, b));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(bits + 8), _mm256_unpackhi_epi64(a, b));
#else
  for (int lane = 0; lane < kPhiloxLanes; ++lane) {
    const uint64_t pair[2] = {first[lane], second[lane]};
    std::memcpy(bits + 4 * lane, pair, sizeof(pair));
  }
#endif
}

constexpr uint64_t kFirstFactor = 0xD2511F53, kSecondFactor = 0xCD9E8D57;
constexpr uint32_t kLowStep = 0x9E3779B9, kHighStep = 0xBB67AE85;

/// The bits of one key, kPhiloxIds ids at a time. The counter reaches half of the words only after three rounds: what
/// it has not reached is computed once.
class PhiloxStream {
 public:
  explicit PhiloxStream(PhiloxKey key) {
    for (int lane = 0; lane < kPhiloxLanes; ++lane) {
      // `store_interleaved` writes even lanes first, then odd ones (all widths but 128 bits, where it is the identity).
      const int place = kPhiloxLanes > 2 ? (lane >> 1) + (lane & 1) * (kPhiloxLanes / 2) : lane;
      start_[lane] = static_cast<uint64_t>(place) * kFirstFactor;
    }
    for (uint32_t round = 0; round < 10; ++round) {
      added_[2 * round] = static_cast<uint32_t>(key.seed) + round * kLowStep;
      added_[2 * round + 1] = static_cast<uint32_t>(key.seed >> 32) + round * kHighStep;
    }
    const uint64_t second = (key.position >> 32) * kSecondFactor;
    const uint64_t first = ((second >> 32) ^ (key.position & 0xffffffffu) ^ added_[0]) * kFirstFactor;
    added_[2] ^= second;
    added_[3] ^= first >> 32;
    added_[5] ^= first;
  }

  /// Bits of the ids 4 * quad … 4 * quad + kPhiloxIds - 1, in order.
  [[gnu::always_inline]] void ids(uint32_t quad, uint32_t* bits) const {
    constexpr int kChains = kPhiloxIds / (4 * kPhiloxLanes);
    const PhiloxLanes zero{};
    const PhiloxLanes first_factor = zero + kFirstFactor, second_factor = zero + kSecondFactor;
    PhiloxLanes a[kChains], b[kChains], c[kChains], d[kChains];
    for (int chain = 0; chain < kChains; ++chain) {
      d[chain] = start_ + (quad + static_cast<uint64_t>(chain * kPhiloxLanes)) * kFirstFactor;
      c[chain] = (d[chain] >> 32) ^ added_[1];
      b[chain] = multiply_low_words(c[chain], second_factor);
      a[chain] = (b[chain] >> 32) ^ added_[2];
      c[chain] = d[chain] ^ added_[3];
      const PhiloxLanes x = multiply_low_words(a[chain], first_factor), y = multiply_low_words(c[chain], second_factor);
      a[chain] = (y >> 32) ^ b[chain] ^ added_[4];
      c[chain] = (x >> 32) ^ added_[5];
      b[chain] = y;
      d[chain] = x;
    }
#pragma GCC unroll 7
    for (int round = 3; round < 10; ++round) {
#pragma GCC unroll 8
      for (int chain = 0; chain < kChains; ++chain) {
        const PhiloxLanes x = multiply_low_words(a[chain], first_factor),
                          y = multiply_low_words(c[chain], second_factor);
        a[chain] = (y >> 32) ^ b[chain] ^ added_[2 * round];
        c[chain] = (x >> 32) ^ d[chain] ^ added_[2 * round + 1];
        b[chain] = y;
        d[chain] = x;
      }
    }
    for (int chain = 0; chain < kChains; ++chain) {
      const PhiloxLanes first = (a[chain] & 0xffffffffu) | (b[chain] << 32);
      const PhiloxLanes second = (c[chain] & 0xffffffffu) | (d[chain] << 32);
      store_interleaved(first, second, bits + chain * 4 * kPhiloxLanes);
    }
  }

 private:
  PhiloxLanes start_;   // the first round's product, of the first counters
  uint64_t added_[20];  // per round and half: its key, with the words that no counter has reached
};

/// Bits of one id.
SPCT_INLINE uint32_t philox_id(PhiloxKey key, uint32_t id) {
  uint32_t a = id / 4, b = static_cast<uint32_t>(key.position), c = static_cast<uint32_t>(key.position >> 32), d = 0;
  uint32_t low_key = static_cast<uint32_t>(key.seed), high_key = static_cast<uint32_t>(key.seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t x = a * kFirstFactor, y = c * kSecondFactor;
    a = static_cast<uint32_t>(y >> 32) ^ b ^ low_key;
    c = static_cast<uint32_t>(x >> 32) ^ d ^ high_key;
    b = static_cast<uint32_t>(y);
    d = static_cast<uint32_t>(x);
    low_key += kLowStep;
    high_key += kHighStep;
  }
  const uint32_t words[4] = {a, b, c, d};
  return words[id % 4];
}

/// Standard Gumbel variable of 32 uniform bits: -log(E) with E = -log(u) or -log1p(-(1 - u)), whichever does not
/// cancel.
SPCT_INLINE double gumbel(uint32_t bits) {
  constexpr double kScale = 0x1p-32;
  const double u = (bits + 0.5) * kScale, w = (~bits + 0.5) * kScale;
  return -__builtin_log(bits < 0x80000000u ? -__builtin_log(u) : -__builtin_log1p(-w));
}

SPCT_END_LEVEL
