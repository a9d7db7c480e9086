#include "sample/head.hpp"

#include <limits>
#include <tuple>

#include "binding/int8.hpp"

namespace spct::binding {
namespace {

const int64_t* int64_data(const Tensor& tensor, const char* name) {
  return data<int64_t>(tensor, ScalarType::Long, name);
}

void check_rows(const Tensor& tensor, int64_t rows, const char* name) {
  SPCT_CHECK(tensor.dim() == 1 && tensor.size(0) == rows, name, ": expected [", rows, "], got ", tensor.numel(),
             " elements");
}

TokenLists lists_of(const std::optional<Tensor>& offsets, const std::optional<Tensor>& ids, int64_t rows,
                    int64_t vocabulary, const char* name) {
  SPCT_CHECK(offsets.has_value() == ids.has_value(), name, ": expected offsets and ids, or neither");
  if (!offsets.has_value()) return {nullptr, nullptr};
  check_rows(*offsets, rows + 1, name);
  const TokenLists lists{int64_data(*offsets, name), int32_data(*ids, name)};
  SPCT_CHECK(lists.offsets[0] == 0 && lists.offsets[rows] == ids->numel(), name, ": expected offsets from 0 to ",
             ids->numel());
  for (int64_t row = 0; row < rows; ++row) {
    SPCT_CHECK(lists.offsets[row] <= lists.offsets[row + 1], name, ": expected ascending offsets, got ",
               lists.offsets[row], " before ", lists.offsets[row + 1]);
  }
  for (int64_t i = 0; i < ids->numel(); ++i) {
    SPCT_CHECK(lists.ids[i] >= 0 && lists.ids[i] < vocabulary, name, ": expected ids below ", vocabulary, ", got ",
               lists.ids[i]);
  }
  return lists;
}

/// Where the LM head's numbers are: [V, E], packed panels [ceil(V/16), E, 16], or int8 panels with a scale and sums.
void set_weight(Head& head, const Tensor& lm_head, const std::optional<Tensor>& scale,
                const std::optional<Tensor>& sums) {
  const int64_t depth = head.depth, vocabulary = head.vocabulary;
  SPCT_CHECK(scale.has_value() == sums.has_value(), "lm_head: expected a scale and sums, or neither");
  if (scale.has_value()) {
    SPCT_CHECK(scale->numel() == vocabulary, "lm_head's scale: expected [", vocabulary, "], got ", scale->numel(),
               " elements");
    const Int8Tensors weight = int8_tensors(lm_head, *scale, *sums, depth, "lm_head");
    head.weight = weight.panels;
    head.weight_dtype = DType::kInt8;
    head.packed = true;
    head.scale = weight.scale;
    head.sums = weight.sums;
    return;
  }
  check_dense(lm_head, lm_head.dim(), "lm_head");
  head.packed = lm_head.dim() == 3;
  if (head.packed) {
    SPCT_CHECK(lm_head.size(0) == (vocabulary + 15) / 16 && lm_head.size(1) == depth && lm_head.size(2) == 16,
               "lm_head: expected [", (vocabulary + 15) / 16, ", ", depth, ", 16]");
  } else {
    SPCT_CHECK(lm_head.dim() == 2 && lm_head.size(0) == vocabulary && lm_head.size(1) == depth, "lm_head: expected [",
               vocabulary, ", ", depth, "]");
  }
  head.weight = lm_head.const_data_ptr();
  head.weight_dtype = float_dtype_of(lm_head, "lm_head");
}

Head head_of(const Tensor& hidden, const Tensor& norm_weight, double norm_eps, const Tensor& lm_head,
             int64_t vocabulary, double softcap, const std::optional<Tensor>& scale,
             const std::optional<Tensor>& sums) {
  check_dense(hidden, 2, "hidden");
  const int64_t rows = hidden.size(0), depth = hidden.size(1);
  check_rows(norm_weight, depth, "norm_weight");
  SPCT_CHECK(vocabulary > 0, "vocabulary: expected at least one id, got ", vocabulary);
  Head head{};
  head.hidden = float_data(hidden, "hidden");
  head.norm_weight = float_data(norm_weight, "norm_weight");
  head.rows = rows;
  head.depth = depth;
  head.vocabulary = vocabulary;
  head.norm_eps = static_cast<float>(norm_eps);
  head.softcap = static_cast<float>(softcap);
  set_weight(head, lm_head, scale, sums);
  return head;
}

SampleParams params_of(int64_t rows, const Tensor& temperature, const Tensor& top_k, const Tensor& top_p,
                       const Tensor& min_p, const Tensor& seed, const Tensor& position) {
  check_rows(temperature, rows, "temperature");
  check_rows(top_k, rows, "top_k");
  check_rows(top_p, rows, "top_p");
  check_rows(min_p, rows, "min_p");
  check_rows(seed, rows, "seed");
  check_rows(position, rows, "position");
  const SampleParams params{float_data(temperature, "temperature"),
                            int32_data(top_k, "top_k"),
                            float_data(top_p, "top_p"),
                            float_data(min_p, "min_p"),
                            int64_data(seed, "seed"),
                            int64_data(position, "position")};
  // Each comparison is false for a NaN.
  for (int64_t row = 0; row < rows; ++row) {
    SPCT_CHECK(params.temperature[row] >= 0.0f && params.temperature[row] < std::numeric_limits<float>::infinity(),
               "temperature[", row, "]: expected a finite number >= 0, got ", params.temperature[row]);
    SPCT_CHECK(params.top_k[row] >= 0, "top_k[", row, "]: expected an integer >= 0, got ", params.top_k[row]);
    SPCT_CHECK(params.top_p[row] >= 0.0f && params.top_p[row] <= 1.0f, "top_p[", row,
               "]: expected a number from 0 to 1, got ", params.top_p[row]);
    SPCT_CHECK(params.min_p[row] >= 0.0f && params.min_p[row] <= 1.0f, "min_p[", row,
               "]: expected a number from 0 to 1, got ", params.min_p[row]);
  }
  return params;
}

std::tuple<Tensor, Tensor, Tensor> fused_sample_op(
    const Tensor& hidden, const Tensor& norm_weight, double norm_eps, const Tensor& lm_head, int64_t vocabulary,
    double softcap, const Tensor& temperature, const Tensor& top_k, const Tensor& top_p, const Tensor& min_p,
    const Tensor& seed, const Tensor& position, std::optional<Tensor> meta_weight, double meta_bias,
    std::optional<Tensor> allowed_offsets, std::optional<Tensor> allowed_ids, std::optional<Tensor> banned_offsets,
    std::optional<Tensor> banned_ids, std::optional<Tensor> lm_head_scale, std::optional<Tensor> lm_head_sums) {
  HeadSampleArgs args{};
  args.head = head_of(hidden, norm_weight, norm_eps, lm_head, vocabulary, softcap, lm_head_scale, lm_head_sums);
  const int64_t rows = args.head.rows;
  args.params = params_of(rows, temperature, top_k, top_p, min_p, seed, position);
  args.allowed = lists_of(allowed_offsets, allowed_ids, rows, vocabulary, "allowed");
  args.banned = lists_of(banned_offsets, banned_ids, rows, vocabulary, "banned");
  if (meta_weight.has_value()) {
    check_rows(*meta_weight, args.head.depth, "meta_weight");
    args.meta_weight = float_data(*meta_weight, "meta_weight");
    args.meta_bias = static_cast<float>(meta_bias);
  }
  Tensor token = torch::stable::new_empty(seed, {rows});
  Tensor logprob = torch::stable::new_empty(hidden, {rows});
  Tensor meta = torch::stable::new_empty(hidden, {meta_weight.has_value() ? rows : 0});
  args.token = static_cast<int64_t*>(token.mutable_data_ptr());
  args.logprob = static_cast<float*>(logprob.mutable_data_ptr());
  args.meta = static_cast<float*>(meta.mutable_data_ptr());
  head_sample(args);
  return {token, logprob, meta};
}

Tensor token_logits_op(const Tensor& hidden, const Tensor& norm_weight, double norm_eps, const Tensor& lm_head,
                       int64_t vocabulary, double softcap, const Tensor& offsets, const Tensor& token_ids,
                       std::optional<Tensor> lm_head_scale, std::optional<Tensor> lm_head_sums) {
  TokenLogitsArgs args{};
  args.head = head_of(hidden, norm_weight, norm_eps, lm_head, vocabulary, softcap, lm_head_scale, lm_head_sums);
  args.lists = lists_of(offsets, token_ids, args.head.rows, vocabulary, "token_ids");
  Tensor out = torch::stable::new_empty(hidden, {token_ids.numel()});
  args.out = static_cast<float*>(out.mutable_data_ptr());
  token_logits(args);
  return out;
}

Tensor random_bits_op(const Tensor& seed, const Tensor& position, int64_t num_ids) {
  const int64_t rows = seed.numel();
  check_rows(seed, rows, "seed");
  check_rows(position, rows, "position");
  SPCT_CHECK(num_ids >= 0, "num_ids: expected a count, got ", num_ids);
  Tensor bits = torch::stable::new_empty(seed, {rows, num_ids});
  philox_bits({int64_data(seed, "seed"), int64_data(position, "position"), rows, num_ids,
               static_cast<int64_t*>(bits.mutable_data_ptr())});
  return bits;
}

}  // namespace
}  // namespace spct::binding

STABLE_TORCH_LIBRARY_FRAGMENT(spct, m) {
  m.def(
      "fused_sample(Tensor hidden, Tensor norm_weight, float norm_eps, Tensor lm_head, int vocabulary, float softcap, "
      "Tensor temperature, Tensor top_k, Tensor top_p, Tensor min_p, Tensor seed, Tensor position, Tensor? "
      "meta_weight, "
      "float meta_bias, Tensor? allowed_offsets, Tensor? allowed_ids, Tensor? banned_offsets, Tensor? banned_ids, "
      "Tensor? lm_head_scale=None, Tensor? lm_head_sums=None) -> (Tensor, Tensor, Tensor)");
  m.def(
      "token_logits(Tensor hidden, Tensor norm_weight, float norm_eps, Tensor lm_head, int vocabulary, float softcap, "
      "Tensor offsets, Tensor token_ids, Tensor? lm_head_scale=None, Tensor? lm_head_sums=None) -> Tensor");
  m.def("random_bits(Tensor seed, Tensor position, int num_ids) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(spct, CPU, m) {
  m.impl("fused_sample", TORCH_BOX(&spct::binding::fused_sample_op));
  m.impl("token_logits", TORCH_BOX(&spct::binding::token_logits_op));
  m.impl("random_bits", TORCH_BOX(&spct::binding::random_bits_op));
}
