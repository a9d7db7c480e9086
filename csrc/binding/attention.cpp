#include "attention/attention.hpp"

#include <cstdint>
#include <tuple>

#include "binding/arguments.hpp"

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

std::tuple<Tensor, Tensor> shared_prefix_attention(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache,
                                                   const Tensor& nodes, const Tensor& node_slots, const Tensor& rows,
                                                   int64_t num_nodes, double scale, double softcap, int64_t window,
                                                   std::optional<Tensor> k_scale, std::optional<Tensor> v_scale,
                                                   std::optional<ScalarType> out_dtype) {
  check_dense(q, 3, "q");
  AttentionArgs args{};
  args.rows = q.size(0);
  args.heads = q.size(1);
  args.key_dim = q.size(2);
  set_caches(args, k_cache, v_cache);
  set_scale(args.k, k_scale, k_cache, "k_scale");
  set_scale(args.v, v_scale, v_cache, "v_scale");
  set_plan(args, nodes, node_slots, rows, num_nodes);
  set_scores(args, scale, softcap, window);
  Tensor out =
      torch::stable::new_empty(q, {args.rows, args.heads, args.value_dim}, out_dtype.value_or(q.scalar_type()));
  Tensor lse = torch::stable::new_empty(q, {args.rows, args.heads}, ScalarType::Float);
  args.q = q.const_data_ptr();
  args.out = out.mutable_data_ptr();
  args.lse = static_cast<float*>(lse.mutable_data_ptr());
  args.q_dtype = float_dtype_of(q, "q");
  args.out_dtype = float_dtype_of(out, "out");
  attention(args);
  return {out, lse};
}

}  // namespace
}  // namespace spct::binding

STABLE_TORCH_LIBRARY_FRAGMENT(spct, m) {
  m.def(
      "shared_prefix_attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor nodes, Tensor node_slots, Tensor rows, "
      "int num_nodes, float scale, float softcap, int window, Tensor? k_scale, Tensor? v_scale, "
      "ScalarType? out_dtype=None) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(spct, CPU, m) {
  m.impl("shared_prefix_attention", TORCH_BOX(&spct::binding::shared_prefix_attention));
}
