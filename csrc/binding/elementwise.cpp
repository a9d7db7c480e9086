#include "elementwise/elementwise.hpp"

#include <tuple>

#include "binding/arguments.hpp"

namespace spct::binding {
namespace {

RmsNormArgs rms_norm_args(const Tensor& x, const Tensor& weight, const Tensor& out, double eps) {
  check_dense(x, 2, "x");
  check_dense(weight, 1, "weight");
  SPCT_CHECK(weight.size(0) == x.size(1), "weight: expected ", x.size(1), " elements, got ", weight.size(0));
  RmsNormArgs args{};
  args.x = x.const_data_ptr();
  args.weight = weight.const_data_ptr();
  args.out = out.mutable_data_ptr();
  args.rows = x.size(0);
  args.width = x.size(1);
  args.eps = static_cast<float>(eps);
  args.dtype = float_dtype_of(x, "x");
  args.weight_dtype = float_dtype_of(weight, "weight");
  return args;
}

Tensor rms_norm_op(const Tensor& x, const Tensor& weight, double eps) {
  Tensor out = torch::stable::empty_like(x);
  rms_norm(rms_norm_args(x, weight, out, eps));
  return out;
}

std::tuple<Tensor, Tensor> add_rms_norm_op(const Tensor& x, const Tensor& residual, const Tensor& weight, double eps) {
  Tensor out = torch::stable::empty_like(x);
  Tensor sum = torch::stable::empty_like(x);
  check_dense(residual, 2, "residual");
  SPCT_CHECK(residual.size(0) == x.size(0) && residual.size(1) == x.size(1), "residual: expected the shape of x");
  SPCT_CHECK(residual.scalar_type() == x.scalar_type(), "residual: expected the dtype of x");
  RmsNormArgs args = rms_norm_args(x, weight, out, eps);
  args.residual = residual.const_data_ptr();
  args.sum = sum.mutable_data_ptr();
  rms_norm(args);
  return {out, sum};
}

Tensor gated_activation_op(const Tensor& gate_up, int64_t kind) {
  check_dense(gate_up, 2, "gate_up");
  SPCT_CHECK(gate_up.size(1) % 2 == 0, "gate_up: expected an even width, got ", gate_up.size(1));
  SPCT_CHECK(kind >= 0 && kind <= 2, "kind: expected 0, 1 or 2, got ", kind);
  const int64_t width = gate_up.size(1) / 2;
  Tensor out = torch::stable::new_empty(gate_up, {gate_up.size(0), width});
  GatedActivationArgs args{};
  args.gate_up = gate_up.const_data_ptr();
  args.out = out.mutable_data_ptr();
  args.rows = gate_up.size(0);
  args.width = width;
  args.kind = static_cast<Activation>(kind);
  args.dtype = float_dtype_of(gate_up, "gate_up");
  gated_activation(args);
  return out;
}

Tensor rope_append_op(const Tensor& qkv, const Tensor& cos, const Tensor& sin, const Tensor& slots, Tensor k_cache,
                      Tensor v_cache, int64_t num_heads, int64_t num_kv_heads, int64_t head_dim,
                      std::optional<Tensor> q_norm, std::optional<Tensor> k_norm, double norm_eps,
                      std::optional<ScalarType> q_dtype) {
  check_dense(qkv, 2, "qkv");
  const int64_t rows = qkv.size(0);
  SPCT_CHECK(qkv.size(1) == (num_heads + 2 * num_kv_heads) * head_dim, "qkv: expected a width of ",
             (num_heads + 2 * num_kv_heads) * head_dim, ", got ", qkv.size(1));
  RopeAppendArgs args =
      rope_args(rows, cos, sin, slots, k_cache, v_cache, num_heads, num_kv_heads, head_dim, q_norm, k_norm, norm_eps);
  args.qkv = qkv.const_data_ptr();
  Tensor q = torch::stable::new_empty(qkv, {rows, num_heads, head_dim}, q_dtype.value_or(qkv.scalar_type()));
  args.q_dtype = float_dtype_of(q, "q");
  args.q = q.mutable_data_ptr();
  args.dtype = float_dtype_of(qkv, "qkv");
  rope_append(args);
  return q;
}

}  // namespace
}  // namespace spct::binding

STABLE_TORCH_LIBRARY_FRAGMENT(spct, m) {
  m.def("rms_norm(Tensor x, Tensor weight, float eps) -> Tensor");
  m.def("add_rms_norm(Tensor x, Tensor residual, Tensor weight, float eps) -> (Tensor, Tensor)");
  m.def("gated_activation(Tensor gate_up, int kind) -> Tensor");
  m.def(
      "rope_append(Tensor qkv, Tensor cos, Tensor sin, Tensor slots, Tensor(a!) k_cache, Tensor(b!) v_cache, "
      "int num_heads, int num_kv_heads, int head_dim, Tensor? q_norm, Tensor? k_norm, float norm_eps, "
      "ScalarType? q_dtype=None) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(spct, CPU, m) {
  m.impl("rms_norm", TORCH_BOX(&spct::binding::rms_norm_op));
  m.impl("add_rms_norm", TORCH_BOX(&spct::binding::add_rms_norm_op));
  m.impl("gated_activation", TORCH_BOX(&spct::binding::gated_activation_op));
  m.impl("rope_append", TORCH_BOX(&spct::binding::rope_append_op));
}
