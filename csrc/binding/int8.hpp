// The tensors of a weight that was packed for int8 rows: `PackedLinear` of scheme "w8a8" (spct_kernels/packed.py).
#pragma once

#include "binding/tensor.hpp"

namespace spct::binding {

struct Int8Tensors {
  const int8_t* panels;  // [ceil(outputs/16)][ceil(inputs/4)][16][4]
  const float* scale;    // [outputs]
  const int32_t* sums;   // [ceil(outputs/16)][16]
};

/// Checks the layout of a weight [scale.numel(), inputs].
inline Int8Tensors int8_tensors(const Tensor& packed, const Tensor& scale, const Tensor& sums, int64_t inputs,
                                const char* name) {
  check_dense(packed, 4, name);
  check_dense(scale, 1, "scale");
  check_dense(sums, 2, "sums");
  SPCT_CHECK(dtype_of(packed, name) == DType::kInt8, name, ": expected int8");
  const int64_t panels = (scale.size(0) + 15) / 16, groups = (inputs + 3) / 4;
  SPCT_CHECK(packed.size(0) == panels && packed.size(1) == groups && packed.size(2) == 16 && packed.size(3) == 4, name,
             ": expected [", panels, ", ", groups, ", 16, 4], got [", packed.size(0), ", ", packed.size(1), ", ",
             packed.size(2), ", ", packed.size(3), "]");
  SPCT_CHECK(sums.size(0) == panels && sums.size(1) == 16, "sums: expected [", panels, ", 16], got [", sums.size(0),
             ", ", sums.size(1), "]");
  return {static_cast<const int8_t*>(packed.const_data_ptr()), float_data(scale, "scale"), int32_data(sums, "sums")};
}

}  // namespace spct::binding
