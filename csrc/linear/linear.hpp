// Linear layers with a packed weight; see linear/gemm.hpp, linear/int8.hpp and, for bf16 rows with a bf16 weight at the
// levels that multiply them, linear/bf16.hpp for the layouts and the order of summation.
#pragma once

#include <cstdint>

#include "common/level.hpp"
#include "common/number.hpp"

namespace spct {

/// out[t, o] = scale[o] * (sum over i of x[t, i] * weight[o, i]) + bias[o], in fp32. x and out of `dtype`, contiguous;
/// weight packed as [ceil(outputs/16)][inputs][16] of `weight_dtype`, int8 included; scale and bias fp32 or null.
struct LinearArgs {
  const void* x;
  const void* weight;
  const float* scale;
  const float* bias;
  void* out;
  int64_t rows, inputs, outputs;
  DType dtype, weight_dtype;
};

/// The same with rows of x quantised to int8, each by its own scale, and int32 sums: see linear/int8.hpp for the
/// weight's layout [ceil(outputs/16)][ceil(inputs/4)][16][4], the scale [outputs] and the sums [ceil(outputs/16)][16].
struct LinearW8A8Args {
  const void* x;
  const int8_t* weight;
  const float* scale;
  const int32_t* sums;
  const float* bias;
  void* out;
  int64_t rows, inputs, outputs;
  DType dtype;
};

}  // namespace spct

SPCT_KERNEL(linear, LinearArgs)
SPCT_KERNEL(linear_w8a8, LinearW8A8Args)
