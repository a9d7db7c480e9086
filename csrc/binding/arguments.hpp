// Arguments that several ops take: caches, the tree of a plan, rotary positions.
#pragma once

#include <cstdint>
#include <optional>

#include "attention/attention.hpp"
#include "binding/tensor.hpp"
#include "elementwise/elementwise.hpp"

namespace spct::binding {

inline void check_cache(const Tensor& cache, const char* name) {
  SPCT_CHECK(cache.is_cpu() && cache.dim() == 3 && cache.stride(2) == 1, name,
             ": expected a CPU tensor [num_slots, K, D] with unit stride in D");
}

/// A cache without scales.
inline CacheView cache_view(const Tensor& cache, const char* name) {
  check_cache(cache, name);
  CacheView view{};
  view.data = cache.const_data_ptr();
  view.slot_stride = cache.stride(0);
  view.head_stride = cache.stride(1);
  return view;
}

/// The shapes of an attention: args.rows, heads and key_dim are there already.
inline void set_caches(AttentionArgs& args, const Tensor& k_cache, const Tensor& v_cache) {
  args.k = cache_view(k_cache, "k_cache");
  args.v = cache_view(v_cache, "v_cache");
  args.kv_heads = k_cache.size(1);
  args.value_dim = v_cache.size(2);
  SPCT_CHECK(args.kv_heads > 0 && args.heads % args.kv_heads == 0 && v_cache.size(1) == args.kv_heads,
             "q: expected a multiple of ", args.kv_heads, " heads, got ", args.heads);
  SPCT_CHECK(k_cache.size(2) == args.key_dim && args.key_dim % 16 == 0 && args.value_dim % 16 == 0 &&
                 args.key_dim > 0 && args.value_dim > 0,
             "head dims: expected equal key dims and multiples of 16, got ", args.key_dim, ", ", k_cache.size(2),
             " and ", args.value_dim);
  args.kv_dtype = dtype_of(k_cache, "k_cache");
  SPCT_CHECK(dtype_of(v_cache, "v_cache") == args.kv_dtype, "v_cache: expected the dtype of k_cache");
}

/// The buffers of an AttentionPlan.
inline void set_plan(AttentionArgs& args, const Tensor& nodes, const Tensor& node_slots, const Tensor& rows,
                     int64_t num_nodes) {
  const int32_t* node_data = int32_data(nodes, "nodes");
  SPCT_CHECK(nodes.dim() == 2 && nodes.size(0) == 5 && num_nodes >= 0 && nodes.size(1) > num_nodes,
             "nodes: expected [5, more than num_nodes=", num_nodes, "]");
  const int64_t stride = nodes.size(1);
  args.nodes = num_nodes;
  args.node_offset = node_data;
  args.node_parent = node_data + stride;
  args.node_start = node_data + 2 * stride;
  args.node_row_begin = node_data + 3 * stride;
  args.node_row_end = node_data + 4 * stride;
  args.node_slots = int32_data(node_slots, "node_slots");
  const int32_t* row_data = int32_data(rows, "rows");
  SPCT_CHECK(rows.dim() == 2 && rows.size(0) == 2 && rows.size(1) >= args.rows, "rows: expected [2, at least ",
             args.rows, "]");
  args.row_node = row_data;
  args.row_position = row_data + rows.size(1);
}

inline void set_scores(AttentionArgs& args, double scale, double softcap, int64_t window) {
  args.scale = static_cast<float>(scale);
  args.softcap = static_cast<float>(softcap);
  args.window = window > 0 ? window : INT64_MAX;
}

inline void set_cache(const Tensor& cache, const char* name, int64_t heads, int64_t dim, void** data,
                      int64_t* slot_stride, int64_t* head_stride) {
  check_cache(cache, name);
  SPCT_CHECK(cache.size(1) == heads && cache.size(2) == dim, name, ": expected [num_slots, ", heads, ", ", dim, "]");
  *data = cache.mutable_data_ptr();
  *slot_stride = cache.stride(0);
  *head_stride = cache.stride(1);
}

/// All but qkv, q and their dtypes; `rows` is the number of rows.
inline RopeAppendArgs rope_args(int64_t rows, const Tensor& cos, const Tensor& sin, const Tensor& slots,
                                const Tensor& k_cache, const Tensor& v_cache, int64_t num_heads, int64_t num_kv_heads,
                                int64_t head_dim, const std::optional<Tensor>& q_norm,
                                const std::optional<Tensor>& k_norm, double norm_eps) {
  SPCT_CHECK(cos.dim() == 2 && cos.size(0) == rows && 2 * cos.size(1) <= head_dim, "cos: expected [", rows,
             ", at most ", head_dim / 2, "]");
  SPCT_CHECK(sin.dim() == 2 && sin.size(0) == rows && sin.size(1) == cos.size(1), "sin: expected the shape of cos");
  SPCT_CHECK(q_norm.has_value() == k_norm.has_value(), "q_norm and k_norm: expected both or neither");
  RopeAppendArgs args{};
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
  args.rows = rows;
  args.num_heads = num_heads;
  args.num_kv_heads = num_kv_heads;
  args.head_dim = head_dim;
  args.rotary_pairs = cos.size(1);
  args.norm_eps = static_cast<float>(norm_eps);
  return args;
}

}  // namespace spct::binding
