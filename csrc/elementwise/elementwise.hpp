// The small ops of a decoder layer. A row's bits depend on that row alone.
#pragma once

#include <cstdint>

#include "common/level.hpp"
#include "common/number.hpp"

namespace spct {

/// out[t] = s / sqrt(mean(s^2) + eps) * weight, with s = x[t], or x[t] + residual[t] where `residual` is given; then s
/// is written to `sum` too. All [rows, width], contiguous, of `dtype`; weight [width] of `weight_dtype`; fp32
/// arithmetic.
struct RmsNormArgs {
  const void* x;
  const void* residual;
  const void* weight;
  void* out;
  void* sum;
  int64_t rows, width;
  float eps;
  DType dtype, weight_dtype;
};

enum class Activation : int { kSilu, kGeluTanh, kGelu };

/// out[t, i] = act(gate_up[t, i]) * gate_up[t, width + i]
struct GatedActivationArgs {
  const void* gate_up;
  void* out;
  int64_t rows, width;
  Activation kind;
  DType dtype;
};

/// See `spct_kernels.rope_append`. qkv [rows, (H+2K)*D] of `dtype`; q [rows, H, D] of `q_dtype`; caches [slots, K, D]
/// of `cache_dtype` with unit stride in their last dimension only; norms [D] or null.
struct RopeAppendArgs {
  const void* qkv;
  const float* cos;
  const float* sin;
  const int32_t* slots;
  const float* q_norm;
  const float* k_norm;
  void* k_cache;
  void* v_cache;
  void* q;
  int64_t rows, num_heads, num_kv_heads, head_dim, rotary_pairs;
  int64_t k_slot_stride, k_head_stride, v_slot_stride, v_head_stride;
  float norm_eps;
  DType dtype, cache_dtype, q_dtype;
};

}  // namespace spct

SPCT_KERNEL(rms_norm, RmsNormArgs)
SPCT_KERNEL(gated_activation, GatedActivationArgs)
SPCT_KERNEL(rope_append, RopeAppendArgs)
