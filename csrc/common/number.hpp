// Storage types of the kernels: plain bits, converted to fp32 by common/simd.hpp.
#pragma once

#include <cstdint>

namespace spct {

struct BFloat16 {
  uint16_t bits;
};

struct Half {
  uint16_t bits;
};

/// Element types that an op may meet; the binding translates torch's.
enum class DType : int { kFloat32, kBFloat16, kFloat16, kInt8 };

}  // namespace spct

// Calls `...` (a statement that may use the type `Scalar`) for a floating-point dtype.
#define SPCT_FLOAT_DTYPES(dtype, ...)                   \
  switch (dtype) {                                      \
    case ::spct::DType::kFloat32: {                     \
      using Scalar [[maybe_unused]] = float;            \
      __VA_ARGS__;                                      \
      break;                                            \
    }                                                   \
    case ::spct::DType::kBFloat16: {                    \
      using Scalar [[maybe_unused]] = ::spct::BFloat16; \
      __VA_ARGS__;                                      \
      break;                                            \
    }                                                   \
    case ::spct::DType::kFloat16: {                     \
      using Scalar [[maybe_unused]] = ::spct::Half;     \
      __VA_ARGS__;                                      \
      break;                                            \
    }                                                   \
    default:                                            \
      break;                                            \
  }
