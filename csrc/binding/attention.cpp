#include "attention/attention.hpp"

#include <cstdint>
#include <tuple>

#include "binding/tensor.hpp"

namespace spct::binding {
namespace {

void set_scale(CacheView& view, const std::optional<Tensor>& scale, const Tensor& cache, const char* name) {
  if (!scale.has_value()) return;
  const int64_t slots = cache.size(0), heads = cache.size(1);
  const int64_t dim = scale->dim();
  SPCT_CHECK((dim == 1 && scale->size(0) == heads) || (dim == 2 && scale->size(0) == slots && scale->size(1) == heads),
             name, ": expected [", heads, "] or [", slots, ", ", heads, "]");
  view.scale = float_data(*scale, name);
  view.scale_head_stride = 1;
  view.scale_slot_stride = dim == 2 ? heads : 0;
}

CacheView cache_view(const Tensor& cache, const std::optional<Tensor>& scale, const char* name,
                     const char* scale_name) {
  SPCT_CHECK(cache.is_cpu() && cache.dim() == 3 && cache.stride(2) == 1, name,
             ": expected a CPU tensor [num_slots, K, D] with unit stride in D");
  CacheView view{};
  view.data = cache.const_data_ptr();
  view.slot_stride = cache.stride(0);
  view.head_stride = cache.stride(1);
  set_scale(view, scale, cache, scale_name);
  return view;
}

std::tuple<Tensor, Tensor> shared_prefix_attention(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache,
                                                   const Tensor& nodes, const Tensor& node_slots, const Tensor& rows,
                                                   int64_t num_nodes, double scale, double softcap, int64_t window,
                                                   std::optional<Tensor> k_scale, std::optional<Tensor> v_scale) {
  check_dense(q, 3, "q");
  AttentionArgs args{};
  args.k = cache_view(k_cache, k_scale, "k_cache", "k_scale");
  args.v = cache_view(v_cache, v_scale, "v_cache", "v_scale");
  args.rows = q.size(0);
  args.heads = q.size(1);
  args.key_dim = q.size(2);
  args.kv_heads = k_cache.size(1);
  args.value_dim = v_cache.size(2);
  SPCT_CHECK(args.kv_heads > 0 && args.heads % args.kv_heads == 0 && v_cache.size(1) == args.kv_heads,
             "q: expected a multiple of ", args.kv_heads, " heads, got ", args.heads);
  SPCT_CHECK(k_cache.size(2) == args.key_dim && args.key_dim % 16 == 0 && args.value_dim % 16 == 0 &&
                 args.key_dim > 0 && args.value_dim > 0,
             "head dims: expected equal key dims and multiples of 16, got ", args.key_dim, ", ", k_cache.size(2),
             " and ", args.value_dim);
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
  Tensor out = torch::stable::new_empty(q, {args.rows, args.heads, args.value_dim});
  Tensor lse = torch::stable::new_empty(q, {args.rows, args.heads}, ScalarType::Float);
  args.q = q.const_data_ptr();
  args.out = out.mutable_data_ptr();
  args.lse = static_cast<float*>(lse.mutable_data_ptr());
  args.scale = static_cast<float>(scale);
  args.softcap = static_cast<float>(softcap);
  args.window = window > 0 ? window : INT64_MAX;
  args.q_dtype = float_dtype_of(q, "q");
  args.kv_dtype = dtype_of(k_cache, "k_cache");
  SPCT_CHECK(dtype_of(v_cache, "v_cache") == args.kv_dtype, "v_cache: expected the dtype of k_cache");
  attention(args);
  return {out, lse};
}

}  // namespace
}  // namespace spct::binding

STABLE_TORCH_LIBRARY_FRAGMENT(spct, m) {
  m.def(
      "shared_prefix_attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor nodes, Tensor node_slots, Tensor rows, "
      "int num_nodes, float scale, float softcap, int window, Tensor? k_scale, Tensor? v_scale) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(spct, CPU, m) {
  m.impl("shared_prefix_attention", TORCH_BOX(&spct::binding::shared_prefix_attention));
}
