#include "layer/layer.hpp"

#include "common/scratch.hpp"

namespace spct {
namespace {

int64_t bytes_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

/// Hands out pieces of one scratch buffer, each 64-byte aligned: counts first, then points.
class Pieces {
 public:
  int64_t add(int64_t elements, DType dtype) {
    const int64_t at = bytes_;
    bytes_ += (elements * bytes_of(dtype) + 63) / 64 * 64;
    return at;
  }
  char* memory() const { return static_cast<char*>(scratch_bytes(Scratch::kHidden, static_cast<size_t>(bytes_) + 64)); }

 private:
  int64_t bytes_ = 0;
};

void multiply(const LayerLinear& weight, const void* x, void* out, int64_t rows, DType dtype) {
  if (weight.sums != nullptr) {
    LinearW8A8Args args{};
    args.x = x;
    args.weight = static_cast<const int8_t*>(weight.panels);
    args.scale = weight.scale;
    args.sums = weight.sums;
    args.bias = weight.bias;
    args.out = out;
    args.rows = rows;
    args.inputs = weight.inputs;
    args.outputs = weight.outputs;
    args.dtype = dtype;
    return linear_w8a8(args);
  }
  LinearArgs args{};
  args.x = x;
  args.weight = weight.panels;
  args.scale = weight.scale;
  args.bias = weight.bias;
  args.out = out;
  args.rows = rows;
  args.inputs = weight.inputs;
  args.outputs = weight.outputs;
  args.dtype = dtype;
  args.weight_dtype = weight.dtype;
  linear(args);
}

/// out = norm(x), or norm(x + residual) with the sum in `sum`, which may be `residual`; out may be x.
void normalise(const LayerArgs& layer, const float* weight, const void* x, const void* residual, void* sum, void* out) {
  RmsNormArgs args{};
  args.x = x;
  args.residual = residual;
  args.weight = weight;
  args.out = out;
  args.sum = sum;
  args.rows = layer.rows;
  args.width = layer.width;
  args.eps = layer.norm_eps;
  args.dtype = layer.dtype;
  args.weight_dtype = DType::kFloat32;
  rms_norm(args);
}

}  // namespace

void decoder_layer(const LayerArgs& args) {
  const int64_t rows = args.rows, inner = args.gate_up.outputs / 2;
  const DType dtype = args.dtype;
  Pieces pieces;
  const int64_t normed_at = pieces.add(rows * args.width, dtype);
  const int64_t wide_at =
      pieces.add(rows * (args.qkv.outputs > args.gate_up.outputs ? args.qkv.outputs : args.gate_up.outputs), dtype);
  const int64_t query_at = pieces.add(rows * args.rope.num_heads * args.rope.head_dim, args.rope.q_dtype);
  const int64_t heads_at = pieces.add(rows * (args.output.inputs > inner ? args.output.inputs : inner), dtype);
  const int64_t projected_at = pieces.add(rows * args.width, dtype);
  const int64_t lse_at = pieces.add(rows * args.attention.heads, DType::kFloat32);
  char* memory = pieces.memory();
  void* normed = memory + normed_at;
  void* wide = memory + wide_at;
  void* heads = memory + heads_at;
  void* projected = memory + projected_at;

  const void* residual = args.residual;
  if (args.delta == nullptr) {
    normalise(args, args.attention_norm, args.residual, nullptr, nullptr, normed);
  } else {
    normalise(args, args.attention_norm, args.delta, args.residual, args.residual_out, normed);
    residual = args.residual_out;
  }
  multiply(args.qkv, normed, wide, rows, dtype);
  RopeAppendArgs rope = args.rope;
  rope.qkv = wide;
  rope.q = memory + query_at;
  rope_append(rope);
  AttentionArgs attention_args = args.attention;
  attention_args.q = rope.q;
  attention_args.out = heads;
  attention_args.lse = reinterpret_cast<float*>(memory + lse_at);
  attention(attention_args);
  multiply(args.output, heads, projected, rows, dtype);
  if (args.post_attention_norm != nullptr) {
    normalise(args, args.post_attention_norm, projected, nullptr, nullptr, projected);
  }
  normalise(args, args.mlp_norm, projected, residual, args.residual_out, normed);
  multiply(args.gate_up, normed, wide, rows, dtype);
  GatedActivationArgs gate{};
  gate.gate_up = wide;
  gate.out = heads;
  gate.rows = rows;
  gate.width = inner;
  gate.kind = args.activation;
  gate.dtype = dtype;
  gated_activation(gate);
  multiply(args.down, heads, args.delta_out, rows, dtype);
  if (args.post_mlp_norm != nullptr) {
    normalise(args, args.post_mlp_norm, args.delta_out, nullptr, nullptr, args.delta_out);
  }
}

}  // namespace spct
