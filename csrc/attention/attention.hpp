// Shared-prefix attention over a tree of nodes; see `spct_kernels.shared_prefix_attention` for what a row sees.
#pragma once

#include <cstdint>

#include "common/level.hpp"
#include "common/number.hpp"

namespace spct {

/// A cache [slots, K, dim] with unit stride in its last dimension, and its optional scales (strides 0 where they
/// broadcast).
struct CacheView {
  const void* data;
  int64_t slot_stride, head_stride;
  const float* scale;
  int64_t scale_slot_stride, scale_head_stride;
};

struct AttentionArgs {
  const void* q;  // [T, H, D] of q_dtype
  CacheView k, v;
  // The tree: parents come first; node i holds positions node_start[i] and on, in slots
  // node_slots[node_offset[i]:node_offset[i+1]]; rows [node_row_begin[i], node_row_end[i]) lie at or below it.
  const int32_t* node_parent;
  const int32_t* node_start;
  const int32_t* node_offset;
  const int32_t* node_slots;
  const int32_t* node_row_begin;
  const int32_t* node_row_end;
  const int32_t* row_node;
  const int32_t* row_position;
  void* out;   // [T, H, Dv] of out_dtype
  float* lse;  // [T, H]
  int64_t rows, nodes, heads, kv_heads, key_dim, value_dim;
  int64_t window;        // INT64_MAX: none
  float scale, softcap;  // softcap 0: none
  DType q_dtype, kv_dtype, out_dtype;
};

}  // namespace spct

SPCT_KERNEL(attention, AttentionArgs)
