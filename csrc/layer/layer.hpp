// A whole decoder layer in one call, for a CPU: the kernels one after the other on scratch memory of the calling
// thread, so that a decode step allocates little and spends no time between them. Bits are those of the single ops.
#pragma once

#include <cstdint>

#include "attention/attention.hpp"
#include "elementwise/elementwise.hpp"
#include "linear/linear.hpp"

namespace spct {

/// A packed weight [outputs, inputs]: with `sums` its rows are quantised too (LinearW8A8Args), else LinearArgs.
struct LayerLinear {
  const void* panels;
  const float* scale;
  const int32_t* sums;
  const float* bias;
  int64_t outputs, inputs;
  DType dtype;
};

/// Norm weights are fp32, null where a layer has none (only the attention's and the MLP's own must be there).
struct LayerArgs {
  const void* delta;     // [T, E], null before the first layer: residual is then the embedding itself
  const void* residual;  // [T, E]
  void* delta_out;       // [T, E]: none of the inputs
  void* residual_out;    // [T, E]: none of the inputs
  const float* attention_norm;
  const float* post_attention_norm;
  const float* mlp_norm;
  const float* post_mlp_norm;
  LayerLinear qkv, output, gate_up, down;
  RopeAppendArgs rope;      // what does not come from the layer's own scratch is filled in
  AttentionArgs attention;  // likewise
  Activation activation;
  int64_t rows, width;
  float norm_eps;
  DType dtype;  // of the residual stream
};

/// normed = norm(residual + delta); residual = residual + delta + attention(normed), then delta = mlp(norm(residual)).
void decoder_layer(const LayerArgs& args);

}  // namespace spct
