// Random configurations for the kernels' tests: a seeded generator, arrays that end where their memory ends, comparison
// with fp64. No Python, no torch, so that sanitizers see nothing but the kernels.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <memory>
#include <string>

#include "common/number.hpp"

namespace spct::test {

/// SplitMix64: every configuration has its own, so that one that failed runs again alone.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t bits() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  /// From low to high, both included.
  int64_t between(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(bits() % static_cast<uint64_t>(high - low + 1));
  }
  double uniform(double low, double high) { return low + (high - low) * static_cast<double>(bits() >> 11) * 0x1p-53; }
  /// About normal: the sum of four uniforms, of variance 1.
  double normal() { return (uniform(-1, 1) + uniform(-1, 1) + uniform(-1, 1) + uniform(-1, 1)) * 0.8660254037844386; }
  bool chance(double probability) { return uniform(0, 1) < probability; }
  template <class T>
  T pick(std::initializer_list<T> values) {
    return values.begin()[between(0, static_cast<int64_t>(values.size()) - 1)];
  }

 private:
  uint64_t state_;
};

/// Says what differed and ends the program: `what` names the configuration.
[[noreturn]] inline void fail(const std::string& what) {
  std::fprintf(stderr, "FAILED %s\n", what.c_str());
  std::fflush(stderr);
  std::exit(1);
}

inline void expect(bool condition, const std::string& what) {
  if (!condition) fail(what);
}

/// Memory of exactly this size, 64-byte aligned as torch's; a sanitizer sees the first byte past it. Filled with 0xff:
/// NaN in every floating-point format, -1 in int8.
class Memory {
 public:
  explicit Memory(size_t bytes) : bytes_(bytes) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, bytes > 0 ? bytes : 1) != 0) fail("out of memory");
    data_.reset(static_cast<unsigned char*>(memory));
    std::memset(memory, 0xff, bytes);
  }
  unsigned char* data() const { return data_.get(); }
  size_t bytes() const { return bytes_; }

 private:
  struct Free {
    void operator()(unsigned char* memory) const { std::free(memory); }
  };
  std::unique_ptr<unsigned char, Free> data_;
  size_t bytes_;
};

/// `count` elements of a plain type.
template <class T>
class Plain {
 public:
  explicit Plain(int64_t count) : count_(count), memory_(static_cast<size_t>(count) * sizeof(T)) {}
  T* data() const { return reinterpret_cast<T*>(memory_.data()); }
  T& operator[](int64_t i) const { return data()[i]; }
  int64_t count() const { return count_; }

 private:
  int64_t count_;
  Memory memory_;
};

/// A float format: significand bits after the point, smallest normal exponent, largest exponent.
struct Format {
  int fraction, min_exponent, max_exponent;
};

inline Format format_of(DType dtype) {
  if (dtype == DType::kBFloat16) return {7, -126, 127};
  if (dtype == DType::kFloat16) return {10, -14, 15};
  return {23, -126, 127};
}

/// The spacing of the format's numbers at `value`.
inline double spacing(DType dtype, double value) {
  const Format format = format_of(dtype);
  const int exponent = value == 0.0 ? format.min_exponent : std::max(std::ilogb(value), format.min_exponent);
  return std::ldexp(1.0, exponent - format.fraction);
}

/// To nearest, ties to even.
inline double round_to(DType dtype, double value) {
  if (!std::isfinite(value)) return value;
  const double quantum = spacing(dtype, value), rounded = std::nearbyint(value / quantum) * quantum;
  const double past = std::ldexp(1.0, format_of(dtype).max_exponent + 1);
  return std::fabs(rounded) >= past ? std::copysign(std::numeric_limits<double>::infinity(), value) : rounded;
}

inline size_t size_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : dtype == DType::kInt8 ? 1 : 2; }

inline const char* name_of(DType dtype) {
  return dtype == DType::kFloat32    ? "fp32"
         : dtype == DType::kBFloat16 ? "bf16"
         : dtype == DType::kFloat16  ? "fp16"
                                     : "int8";
}

/// `count` numbers of one of the kernels' dtypes, read and written as doubles; what was never set is NaN (int8: -1).
class Array {
 public:
  Array(DType dtype, int64_t count)
      : dtype_(dtype), count_(count), memory_(static_cast<size_t>(count) * size_of(dtype)) {}

  DType dtype() const { return dtype_; }
  int64_t count() const { return count_; }
  void* data() const { return memory_.data(); }
  const float* floats() const { return reinterpret_cast<const float*>(memory_.data()); }
  size_t bytes() const { return memory_.bytes(); }

  double get(int64_t i) const {
    if (dtype_ == DType::kInt8) return reinterpret_cast<const int8_t*>(memory_.data())[i];
    if (dtype_ == DType::kFloat32) return floats()[i];
    uint16_t bits;
    std::memcpy(&bits, memory_.data() + 2 * i, 2);
    const Format format = format_of(dtype_);
    const int width = 15 - format.fraction, biased = (bits >> format.fraction) & ((1 << width) - 1);
    const double fraction = static_cast<double>(bits & ((1 << format.fraction) - 1));
    double value =
        biased == 0 ? std::ldexp(fraction, format.min_exponent - format.fraction)
                    : std::ldexp(fraction + (1 << format.fraction), format.min_exponent + biased - 1 - format.fraction);
    if (biased == (1 << width) - 1) value = fraction == 0 ? HUGE_VAL : std::nan("");
    return (bits & 0x8000) != 0 ? -value : value;
  }

  /// Rounds to the dtype.
  void set(int64_t i, double value) {
    if (dtype_ == DType::kInt8) {
      reinterpret_cast<int8_t*>(memory_.data())[i] = static_cast<int8_t>(value);
      return;
    }
    const double rounded = round_to(dtype_, value);
    if (dtype_ == DType::kFloat32) {
      const float stored = static_cast<float>(rounded);
      std::memcpy(memory_.data() + 4 * i, &stored, 4);
      return;
    }
    const Format format = format_of(dtype_);
    const int exponent =
        rounded == 0.0 ? format.min_exponent - 1 : std::max(std::ilogb(rounded), format.min_exponent - 1);
    int64_t bits = 0;  // exponent and fraction; the leading bit of a normal number carries into the exponent
    if (exponent < format.min_exponent) {
      bits = static_cast<int64_t>(std::ldexp(std::fabs(rounded), format.fraction - format.min_exponent));
    } else {
      bits = static_cast<int64_t>(std::ldexp(std::fabs(rounded), format.fraction - exponent)) +
             (static_cast<int64_t>(exponent - format.min_exponent) << format.fraction);
    }
    const uint16_t stored = static_cast<uint16_t>(bits | (std::signbit(rounded) ? 0x8000 : 0));
    std::memcpy(memory_.data() + 2 * i, &stored, 2);
  }

  /// Normal numbers of standard deviation `scale`.
  void fill(Random& random, double scale) {
    for (int64_t i = 0; i < count_; ++i) set(i, random.normal() * scale);
  }

 private:
  DType dtype_;
  int64_t count_;
  Memory memory_;
};

/// Checks |got - expected| against the arithmetic's error and one rounding to the array's dtype; NaN never passes.
inline void expect_close(const Array& got, int64_t i, double expected, double error, const std::string& what) {
  const double value = got.get(i), bound = error + 0.5001 * spacing(got.dtype(), std::fabs(expected) + error);
  if (!(std::fabs(value - expected) <= bound)) {
    char text[200];
    std::snprintf(text, sizeof text, ": element %lld: expected %.9g, got %.9g, allowed %.3g", static_cast<long long>(i),
                  expected, value, bound);
    fail(what + text);
  }
}

/// Checks that elements [begin, begin + count) of both have the same bits.
inline void expect_same(const Array& a, int64_t a_begin, const Array& b, int64_t b_begin, int64_t count,
                        const std::string& what) {
  const size_t size = size_of(a.dtype()), length = static_cast<size_t>(count) * size;
  const unsigned char* first = static_cast<const unsigned char*>(a.data()) + static_cast<size_t>(a_begin) * size;
  const unsigned char* second = static_cast<const unsigned char*>(b.data()) + static_cast<size_t>(b_begin) * size;
  expect(std::memcmp(first, second, length) == 0, what);
}

constexpr double kEpsilon = 0x1p-24;  // half the spacing of fp32 at 1

inline DType any_float(Random& random) { return random.pick({DType::kFloat32, DType::kBFloat16, DType::kFloat16}); }

/// A count that is awkward more often than not: 0, 1, primes, powers of two and their neighbours.
inline int64_t awkward(Random& random, int64_t low, int64_t high) {
  const int64_t value = random.pick<int64_t>(
      {0, 1, 2, 3, 5, 7, 8, 11, 12, 13, 15, 16, 17, 31, 32, 33, 47, 63, 64, 65, 127, 128, 129, 255, 257, 300});
  return random.chance(0.7) && value >= low && value <= high ? value : random.between(low, high);
}

// One configuration each; `what` names it in messages.
void test_linear(Random& random, const std::string& what);
void test_linear_w8a8(Random& random, const std::string& what);
void test_rms_norm(Random& random, const std::string& what);
void test_gated_activation(Random& random, const std::string& what);
void test_rope_append(Random& random, const std::string& what);
void test_attention(Random& random, const std::string& what);
void test_sample(Random& random, const std::string& what);
void test_token_logits(Random& random, const std::string& what);
void test_philox(Random& random, const std::string& what);

/// A pool of std::thread for the kernels: every range on threads of its own, so that each starts and frees its scratch.
void use_threads(int count);

}  // namespace spct::test
