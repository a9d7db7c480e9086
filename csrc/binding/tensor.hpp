// Between torch's stable ABI and the kernels' plain pointers. Shapes and dtypes are checked in Python
// (spct_kernels.checks); the checks here guard memory for callers of torch.ops.spct.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>

#include "common/number.hpp"

#define SPCT_CHECK(condition, ...) STD_TORCH_CHECK(condition, "spct: ", __VA_ARGS__)

namespace spct::binding {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline DType dtype_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Half:
      return DType::kFloat16;
    case ScalarType::Char:
      return DType::kInt8;
    default:
      SPCT_CHECK(false, name, ": expected float32, bfloat16, float16 or int8, got ",
                 torch::headeronly::toString(tensor.scalar_type()));
  }
  return DType::kFloat32;
}

inline DType float_dtype_of(const Tensor& tensor, const char* name) {
  const DType dtype = dtype_of(tensor, name);
  SPCT_CHECK(dtype != DType::kInt8, name, ": expected a floating-point dtype, got int8");
  return dtype;
}

inline void check_dense(const Tensor& tensor, int64_t dim, const char* name) {
  SPCT_CHECK(tensor.is_cpu(), name, ": expected a CPU tensor");
  SPCT_CHECK(tensor.dim() == dim, name, ": expected ", dim, " dimensions, got ", tensor.dim());
  SPCT_CHECK(tensor.is_contiguous(), name, ": expected a contiguous tensor");
}

template <class T>
const T* data(const Tensor& tensor, ScalarType dtype, const char* name) {
  SPCT_CHECK(tensor.scalar_type() == dtype, name, ": expected ", torch::headeronly::toString(dtype), ", got ",
             torch::headeronly::toString(tensor.scalar_type()));
  check_dense(tensor, tensor.dim(), name);
  return static_cast<const T*>(tensor.const_data_ptr());
}

inline const int32_t* int32_data(const Tensor& tensor, const char* name) {
  return data<int32_t>(tensor, ScalarType::Int, name);
}

inline const float* float_data(const Tensor& tensor, const char* name) {
  return data<float>(tensor, ScalarType::Float, name);
}

}  // namespace spct::binding
