#include "sample/sample.hpp"

#include <tuple>

#include "binding/tensor.hpp"

namespace spct::binding {
namespace {

const int64_t* int64_data(const Tensor& tensor, const char* name) {
  return data<int64_t>(tensor, ScalarType::Long, name);
}

void check_rows(const Tensor& tensor, int64_t rows, const char* name) {
  SPCT_CHECK(tensor.dim() == 1 && tensor.size(0) == rows, name, ": expected [", rows, "], got ", tensor.numel(), " elements");
}

TokenLists lists_of(const std::optional<Tensor>& offsets, const std::optional<Tensor>& ids, int64_t rows, int64_t vocabulary,
                    const char* name) {
  SPCT_CHECK(offsets.has_value() == ids.has_value(), name, ": expected offsets and ids, or neither");
  if (!offsets.has_value()) return {nullptr, nullptr};
  check_rows(*offsets, rows + 1, name);
  const TokenLists lists{int64_data(*offsets, name), int32_data(*ids, name)};
  SPCT_CHECK(lists.offsets[0] == 0 && lists.offsets[rows] == ids->numel(), name, ": expected offsets from 0 to ", ids->numel());
  for (int64_t row = 0; row < rows; ++row) {
    SPCT_CHECK(lists.offsets[row] <= lists.offsets[row + 1], name, ": expected ascending offsets, got ", lists.offsets[row], " before ",
               lists.offsets[row + 1]);
  }
  for (int64_t i = 0; i < ids->numel(); ++i) {
    SPCT_CHECK(lists.ids[i] >= 0 && lists.ids[i] < vocabulary, name, ": expected ids below ", vocabulary, ", got ", lists.ids[i]);
  }
  return lists;
}

std::tuple<Tensor, Tensor> sample_logits_op(Tensor logits, const Tensor& temperature, const Tensor& top_k, const Tensor& top_p,
                                            const Tensor& min_p, const Tensor& seed, const Tensor& position, double softcap,
                                            std::optional<Tensor> allowed_offsets, std::optional<Tensor> allowed_ids,
                                            std::optional<Tensor> banned_offsets, std::optional<Tensor> banned_ids) {
  check_dense(logits, 2, "logits");
  float_data(logits, "logits");
  const int64_t rows = logits.size(0), vocabulary = logits.size(1);
  SPCT_CHECK(vocabulary > 0, "logits: expected at least one column");
  check_rows(temperature, rows, "temperature");
  check_rows(top_k, rows, "top_k");
  check_rows(top_p, rows, "top_p");
  check_rows(min_p, rows, "min_p");
  check_rows(seed, rows, "seed");
  check_rows(position, rows, "position");
  Tensor token = torch::stable::new_empty(seed, {rows});
  Tensor logprob = torch::stable::new_empty(logits, {rows});
  SampleRows args{};
  args.logits = static_cast<float*>(logits.mutable_data_ptr());
  args.last = rows;
  args.vocabulary = vocabulary;
  args.params = {float_data(temperature, "temperature"), int32_data(top_k, "top_k"), float_data(top_p, "top_p"),
                 float_data(min_p, "min_p"), int64_data(seed, "seed"), int64_data(position, "position")};
  args.softcap = static_cast<float>(softcap);
  args.allowed = lists_of(allowed_offsets, allowed_ids, rows, vocabulary, "allowed");
  args.banned = lists_of(banned_offsets, banned_ids, rows, vocabulary, "banned");
  args.token = static_cast<int64_t*>(token.mutable_data_ptr());
  args.logprob = static_cast<float*>(logprob.mutable_data_ptr());
  sample_rows(args);
  return {token, logprob};
}

Tensor random_bits_op(const Tensor& seed, const Tensor& position, int64_t num_ids) {
  const int64_t rows = seed.numel();
  check_rows(seed, rows, "seed");
  check_rows(position, rows, "position");
  SPCT_CHECK(num_ids >= 0, "num_ids: expected a count, got ", num_ids);
  Tensor bits = torch::stable::new_empty(seed, {rows, num_ids});
  philox_bits({int64_data(seed, "seed"), int64_data(position, "position"), rows, num_ids, static_cast<int64_t*>(bits.mutable_data_ptr())});
  return bits;
}

}  // namespace
}  // namespace spct::binding

STABLE_TORCH_LIBRARY_FRAGMENT(spct, m) {
  m.def(
      "sample_logits(Tensor(a!) logits, Tensor temperature, Tensor top_k, Tensor top_p, Tensor min_p, Tensor seed, "
      "Tensor position, float softcap, Tensor? allowed_offsets, Tensor? allowed_ids, Tensor? banned_offsets, "
      "Tensor? banned_ids) -> (Tensor, Tensor)");
  m.def("random_bits(Tensor seed, Tensor position, int num_ids) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(spct, CPU, m) {
  m.impl("sample_logits", TORCH_BOX(&spct::binding::sample_logits_op));
  m.impl("random_bits", TORCH_BOX(&spct::binding::random_bits_op));
}
