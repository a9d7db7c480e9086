#include "linear/linear.hpp"

#include "binding/int8.hpp"

namespace spct::binding {
namespace {

const float* bias_data(const std::optional<Tensor>& bias, int64_t outputs) {
  if (!bias.has_value()) return nullptr;
  SPCT_CHECK(bias->numel() == outputs, "bias: expected ", outputs, " elements, got ", bias->numel());
  return float_data(*bias, "bias");
}

Tensor linear_float(const Tensor& x, const Tensor& packed, const std::optional<Tensor>& scale,
                    const std::optional<Tensor>& bias, int64_t outputs) {
  check_dense(x, 2, "x");
  check_dense(packed, 3, "weight");
  SPCT_CHECK(packed.size(2) == 16 && packed.size(0) == (outputs + 15) / 16, "weight: expected [", (outputs + 15) / 16,
             ", inputs, 16], got [", packed.size(0), ", ", packed.size(1), ", ", packed.size(2), "]");
  SPCT_CHECK(packed.size(1) == x.size(1), "x: expected ", packed.size(1), " inputs, got ", x.size(1));
  Tensor out = torch::stable::new_empty(x, {x.size(0), outputs});
  LinearArgs args{};
  args.x = x.const_data_ptr();
  args.weight = packed.const_data_ptr();
  if (scale.has_value()) args.scale = float_data(*scale, "scale");
  args.bias = bias_data(bias, outputs);
  args.out = out.mutable_data_ptr();
  args.rows = x.size(0);
  args.inputs = x.size(1);
  args.outputs = outputs;
  args.dtype = float_dtype_of(x, "x");
  args.weight_dtype = dtype_of(packed, "weight");
  linear(args);
  return out;
}

Tensor linear_op(const Tensor& x, const Tensor& packed, std::optional<Tensor> bias, int64_t outputs) {
  float_dtype_of(packed, "weight");
  return linear_float(x, packed, std::nullopt, bias, outputs);
}

Tensor linear_int8_op(const Tensor& x, const Tensor& packed, const Tensor& scale, std::optional<Tensor> bias) {
  SPCT_CHECK(dtype_of(packed, "weight") == DType::kInt8, "weight: expected int8");
  check_dense(scale, 1, "scale");
  return linear_float(x, packed, scale, bias, scale.size(0));
}

Tensor linear_w8a8_op(const Tensor& x, const Tensor& packed, const Tensor& scale, const Tensor& sums,
                      std::optional<Tensor> bias) {
  check_dense(x, 2, "x");
  check_dense(scale, 1, "scale");
  const int64_t outputs = scale.size(0);
  Tensor out = torch::stable::new_empty(x, {x.size(0), outputs});
  const Int8Tensors weight = int8_tensors(packed, scale, sums, x.size(1), "weight");
  LinearW8A8Args args{};
  args.x = x.const_data_ptr();
  args.weight = weight.panels;
  args.scale = weight.scale;
  args.sums = weight.sums;
  args.bias = bias_data(bias, outputs);
  args.out = out.mutable_data_ptr();
  args.rows = x.size(0);
  args.inputs = x.size(1);
  args.outputs = outputs;
  args.dtype = float_dtype_of(x, "x");
  linear_w8a8(args);
  return out;
}

}  // namespace
}  // namespace spct::binding

STABLE_TORCH_LIBRARY_FRAGMENT(spct, m) {
  m.def("linear(Tensor x, Tensor packed, Tensor? bias, int outputs) -> Tensor");
  m.def("linear_int8(Tensor x, Tensor packed, Tensor scale, Tensor? bias) -> Tensor");
  m.def("linear_w8a8(Tensor x, Tensor packed, Tensor scale, Tensor sums, Tensor? bias) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(spct, CPU, m) {
  m.impl("linear", TORCH_BOX(&spct::binding::linear_op));
  m.impl("linear_int8", TORCH_BOX(&spct::binding::linear_int8_op));
  m.impl("linear_w8a8", TORCH_BOX(&spct::binding::linear_w8a8_op));
}
