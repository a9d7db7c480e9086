#include "linear/linear.hpp"

#include "binding/tensor.hpp"

namespace spct::binding {
namespace {

Tensor linear_op(const Tensor& x, const Tensor& packed, std::optional<Tensor> bias, int64_t outputs) {
  check_dense(x, 2, "x");
  check_dense(packed, 3, "weight");
  SPCT_CHECK(packed.size(2) == 16 && packed.size(0) == (outputs + 15) / 16, "weight: expected [", (outputs + 15) / 16,
             ", inputs, 16], got [", packed.size(0), ", ", packed.size(1), ", ", packed.size(2), "]");
  SPCT_CHECK(packed.size(1) == x.size(1), "x: expected ", packed.size(1), " inputs, got ", x.size(1));
  Tensor out = torch::stable::new_empty(x, {x.size(0), outputs});
  LinearArgs args{};
  args.x = x.const_data_ptr();
  args.weight = packed.const_data_ptr();
  if (bias.has_value()) {
    SPCT_CHECK(bias->numel() == outputs, "bias: expected ", outputs, " elements, got ", bias->numel());
    args.bias = float_data(*bias, "bias");
  }
  args.out = out.mutable_data_ptr();
  args.rows = x.size(0);
  args.inputs = x.size(1);
  args.outputs = outputs;
  args.dtype = float_dtype_of(x, "x");
  args.weight_dtype = float_dtype_of(packed, "weight");
  linear(args);
  return out;
}

}  // namespace
}  // namespace spct::binding

STABLE_TORCH_LIBRARY_FRAGMENT(spct, m) {
  m.def("linear(Tensor x, Tensor packed, Tensor? bias, int outputs) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(spct, CPU, m) { m.impl("linear", TORCH_BOX(&spct::binding::linear_op)); }
