#include "elementwise/elementwise.hpp"

#include <tuple>

#include "binding/tensor.hpp"

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

void set_cache(const Tensor& cache, const char* name, int64_t heads, int64_t dim, void** data, int64_t* slot_stride,
               int64_t* head_stride) {
  SPCT_CHECK(cache.is_cpu() && cache.dim() == 3 && cache.size(1) == heads && cache.size(2) == dim, name,
             ": expected a CPU tensor [num_slots, ", heads, ", ", dim, "]");
  SPCT_CHECK(cache.stride(2) == 1, name, ": expected unit stride in the last dimension, got ", cache.stride(2));
  *data = cache.mutable_data_ptr();
  *slot_stride = cache.stride(0);
  *head_stride = cache.stride(1);
}

Tensor rope_append_op(const Tensor& qkv, const Tensor& cos, const Tensor& sin, const Tensor& slots, Tensor k_cache,
                      Tensor v_cache, int64_t num_heads, int64_t num_kv_heads, int64_t head_dim,
                      std::optional<Tensor> q_norm, std::optional<Tensor> k_norm, double norm_eps) {
  check_dense(qkv, 2, "qkv");
  const int64_t rows = qkv.size(0);
  SPCT_CHECK(qkv.size(1) == (num_heads + 2 * num_kv_heads) * head_dim, "qkv: expected a width of ",
             (num_heads + 2 * num_kv_heads) * head_dim, ", got ", qkv.size(1));
  SPCT_CHECK(cos.dim() == 2 && cos.size(0) == rows && 2 * cos.size(1) <= head_dim, "cos: expected [", rows,
             ", at most ", head_dim / 2, "]");
  SPCT_CHECK(sin.dim() == 2 && sin.size(0) == rows && sin.size(1) == cos.size(1), "sin: expected the shape of cos");
  SPCT_CHECK(q_norm.has_value() == k_norm.has_value(), "q_norm and k_norm: expected both or neither");
  RopeAppendArgs args{};
  args.qkv = qkv.const_data_ptr();
  args.cos = float_data(cos, "cos");
  args.sin = float_data(sin, "sin");
  args.slots = int32_data(slots, "slots");
  SPCT_CHECK(slots.numel() == rows, "slots: expected ", rows, " elements, got ", slots.numel());
  set_cache(k_cache, "k_cache", num_kv_heads, head_dim, &args.k_cache, &args.k_slot_stride, &args.k_head_stride);
  set_cache(v_cache, "v_cache", num_kv_heads, head_dim, &args.v_cache, &args.v_slot_stride, &args.v_head_stride);
  const int64_t num_slots = k_cache.size(0) < v_cache.size(0) ? k_cache.size(0) : v_cache.size(0);
  for (int64_t row = 0; row < rows; ++row) {
    SPCT_CHECK(args.slots[row] >= 0 && args.slots[row] < num_slots, "slots[", row, "]: expected 0 <= slot < ",
               num_slots, ", got ", args.slots[row]);
  }
  args.cache_dtype = float_dtype_of(k_cache, "k_cache");
  SPCT_CHECK(float_dtype_of(v_cache, "v_cache") == args.cache_dtype, "v_cache: expected the dtype of k_cache");
  if (q_norm.has_value()) {
    SPCT_CHECK(q_norm->numel() == head_dim && k_norm->numel() == head_dim, "q_norm, k_norm: expected ", head_dim,
               " elements");
    args.q_norm = float_data(*q_norm, "q_norm");
    args.k_norm = float_data(*k_norm, "k_norm");
  }
  Tensor q = torch::stable::new_empty(qkv, {rows, num_heads, head_dim});
  args.q = q.mutable_data_ptr();
  args.rows = rows;
  args.num_heads = num_heads;
  args.num_kv_heads = num_kv_heads;
  args.head_dim = head_dim;
  args.rotary_pairs = cos.size(1);
  args.norm_eps = static_cast<float>(norm_eps);
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
      "int num_heads, int num_kv_heads, int head_dim, Tensor? q_norm, Tensor? k_norm, float norm_eps) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(spct, CPU, m) {
  m.impl("rms_norm", TORCH_BOX(&spct::binding::rms_norm_op));
  m.impl("add_rms_norm", TORCH_BOX(&spct::binding::add_rms_norm_op));
  m.impl("gated_activation", TORCH_BOX(&spct::binding::gated_activation_op));
  m.impl("rope_append", TORCH_BOX(&spct::binding::rope_append_op));
}
