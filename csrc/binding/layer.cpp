#include "layer/layer.hpp"

#include <tuple>

#include "binding/arguments.hpp"
#include "binding/int8.hpp"

namespace spct::binding {
namespace {

LayerLinear layer_linear(const Tensor& packed, const std::optional<Tensor>& scale, const std::optional<Tensor>& sums,
                         const std::optional<Tensor>& bias, int64_t outputs, int64_t inputs, const char* name) {
  LayerLinear weight{};
  weight.outputs = outputs;
  weight.inputs = inputs;
  weight.dtype = dtype_of(packed, name);
  const int64_t panels = (outputs + 15) / 16;
  if (sums.has_value()) {
    SPCT_CHECK(scale.has_value() && scale->numel() == outputs, name, ": expected a scale [", outputs, "]");
    const Int8Tensors parts = int8_tensors(packed, *scale, *sums, inputs, name);
    weight.panels = parts.panels;
    weight.scale = parts.scale;
    weight.sums = parts.sums;
  } else {
    check_dense(packed, 3, name);
    SPCT_CHECK(packed.size(0) == panels && packed.size(1) == inputs && packed.size(2) == 16, name, ": expected [",
               panels, ", ", inputs, ", 16], got [", packed.size(0), ", ", packed.size(1), ", ", packed.size(2), "]");
    SPCT_CHECK((weight.dtype == DType::kInt8) == scale.has_value(), name, ": expected a scale with int8 alone");
    weight.panels = packed.const_data_ptr();
    if (scale.has_value()) {
      SPCT_CHECK(scale->numel() == outputs, name, ": expected a scale [", outputs, "], got ", scale->numel());
      weight.scale = float_data(*scale, "scale");
    }
  }
  if (bias.has_value()) {
    SPCT_CHECK(bias->numel() == outputs, name, ": expected a bias [", outputs, "], got ", bias->numel());
    weight.bias = float_data(*bias, "bias");
  }
  return weight;
}

const float* norm_data(const std::optional<Tensor>& weight, int64_t width, const char* name) {
  if (!weight.has_value()) return nullptr;
  SPCT_CHECK(weight->numel() == width, name, ": expected ", width, " elements, got ", weight->numel());
  return float_data(*weight, name);
}

std::tuple<Tensor, Tensor> decoder_layer_op(
    std::optional<Tensor> delta, const Tensor& residual, const Tensor& cos, const Tensor& sin, const Tensor& slots,
    Tensor k_cache, Tensor v_cache, const Tensor& nodes, const Tensor& node_slots, const Tensor& rows,
    int64_t num_nodes, const Tensor& attention_norm, const Tensor& qkv, std::optional<Tensor> qkv_scale,
    std::optional<Tensor> qkv_sums, std::optional<Tensor> qkv_bias, std::optional<Tensor> q_norm,
    std::optional<Tensor> k_norm, const Tensor& output, std::optional<Tensor> output_scale,
    std::optional<Tensor> output_sums, std::optional<Tensor> output_bias, std::optional<Tensor> post_attention_norm,
    const Tensor& mlp_norm, const Tensor& gate_up, std::optional<Tensor> gate_up_scale,
    std::optional<Tensor> gate_up_sums, std::optional<Tensor> gate_up_bias, const Tensor& down,
    std::optional<Tensor> down_scale, std::optional<Tensor> down_sums, std::optional<Tensor> down_bias,
    std::optional<Tensor> post_mlp_norm, int64_t num_heads, int64_t num_kv_heads, int64_t head_dim, int64_t inner_dim,
    double norm_eps, double scale, double softcap, int64_t window, int64_t activation, ScalarType q_dtype) {
  check_dense(residual, 2, "residual");
  LayerArgs args{};
  args.rows = residual.size(0);
  args.width = residual.size(1);
  args.dtype = float_dtype_of(residual, "residual");
  args.norm_eps = static_cast<float>(norm_eps);
  SPCT_CHECK(activation >= 0 && activation <= 2, "activation: expected 0, 1 or 2, got ", activation);
  args.activation = static_cast<Activation>(activation);
  if (delta.has_value()) {
    check_dense(*delta, 2, "delta");
    SPCT_CHECK(
        delta->size(0) == args.rows && delta->size(1) == args.width && delta->scalar_type() == residual.scalar_type(),
        "delta: expected the shape and dtype of residual");
    args.delta = delta->const_data_ptr();
  }
  args.residual = residual.const_data_ptr();
  args.attention_norm = norm_data(attention_norm, args.width, "attention_norm");
  args.post_attention_norm = norm_data(post_attention_norm, args.width, "post_attention_norm");
  args.mlp_norm = norm_data(mlp_norm, args.width, "mlp_norm");
  args.post_mlp_norm = norm_data(post_mlp_norm, args.width, "post_mlp_norm");
  const int64_t heads_dim = num_heads * head_dim;
  args.qkv =
      layer_linear(qkv, qkv_scale, qkv_sums, qkv_bias, heads_dim + 2 * num_kv_heads * head_dim, args.width, "qkv");
  args.output = layer_linear(output, output_scale, output_sums, output_bias, args.width, heads_dim, "output");
  args.gate_up = layer_linear(gate_up, gate_up_scale, gate_up_sums, gate_up_bias, 2 * inner_dim, args.width, "gate_up");
  args.down = layer_linear(down, down_scale, down_sums, down_bias, args.width, inner_dim, "down");
  args.rope = rope_args(args.rows, cos, sin, slots, k_cache, v_cache, num_heads, num_kv_heads, head_dim, q_norm, k_norm,
                        norm_eps);
  args.rope.dtype = args.dtype;
  SPCT_CHECK(q_dtype == ScalarType::Float || q_dtype == ScalarType::BFloat16 || q_dtype == ScalarType::Half,
             "q_dtype: expected a floating-point dtype");
  args.rope.q_dtype = q_dtype == ScalarType::Float      ? DType::kFloat32
                      : q_dtype == ScalarType::BFloat16 ? DType::kBFloat16
                                                        : DType::kFloat16;
  args.attention.rows = args.rows;
  args.attention.heads = num_heads;
  args.attention.key_dim = head_dim;
  set_caches(args.attention, k_cache, v_cache);
  set_plan(args.attention, nodes, node_slots, rows, num_nodes);
  set_scores(args.attention, scale, softcap, window);
  args.attention.q_dtype = args.rope.q_dtype;
  args.attention.out_dtype = args.dtype;
  Tensor delta_out = torch::stable::empty_like(residual);
  Tensor residual_out = torch::stable::empty_like(residual);
  args.delta_out = delta_out.mutable_data_ptr();
  args.residual_out = residual_out.mutable_data_ptr();
  if (args.rows > 0) decoder_layer(args);
  return {delta_out, residual_out};
}

}  // namespace
}  // namespace spct::binding

STABLE_TORCH_LIBRARY_FRAGMENT(spct, m) {
  m.def(
      "decoder_layer(Tensor? delta, Tensor residual, Tensor cos, Tensor sin, Tensor slots, Tensor(a!) k_cache, "
      "Tensor(b!) v_cache, Tensor nodes, Tensor node_slots, Tensor rows, int num_nodes, Tensor attention_norm, "
      "Tensor qkv, Tensor? qkv_scale, Tensor? qkv_sums, Tensor? qkv_bias, Tensor? q_norm, Tensor? k_norm, "
      "Tensor output, Tensor? output_scale, Tensor? output_sums, Tensor? output_bias, Tensor? post_attention_norm, "
      "Tensor mlp_norm, Tensor gate_up, Tensor? gate_up_scale, Tensor? gate_up_sums, Tensor? gate_up_bias, "
      "Tensor down, Tensor? down_scale, Tensor? down_sums, Tensor? down_bias, Tensor? post_mlp_norm, int num_heads, "
      "int num_kv_heads, int head_dim, int inner_dim, float norm_eps, float scale, float softcap, int window, "
      "int activation, ScalarType q_dtype) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(spct, CPU, m) { m.impl("decoder_layer", TORCH_BOX(&spct::binding::decoder_layer_op)); }
