// Linear layer with a packed weight; see linear/gemm.hpp for the layout and the order of summation.
#pragma once

#include <cstdint>

#include "common/level.hpp"
#include "common/number.hpp"

namespace spct {

/// out[t, o] = sum over i of x[t, i] * weight[o, i] + bias[o]. x and out of `dtype`, contiguous; weight packed as
/// [ceil(outputs/16)][inputs][16] of `weight_dtype`; bias fp32 or null.
struct LinearArgs {
  const void* x;
  const void* weight;
  const float* bias;
  void* out;
  int64_t rows, inputs, outputs;
  DType dtype, weight_dtype;
};

}  // namespace spct

SPCT_KERNEL(linear, LinearArgs)
