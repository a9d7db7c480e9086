#include "attention/attention.hpp"

#include <algorithm>
#include <vector>

#include "harness.hpp"

namespace spct::test {
namespace {

// Scores of up to a few tens, sums of a few hundred products in fp32: errors relative to the largest value, and
// absolute of a log-sum-exp.
constexpr double kOutError = 2e-5;
constexpr double kLseError = 2e-5;

/// A random tree in the order in which a plan holds it: parents first, every subtree's rows next to each other.
struct Tree {
  std::vector<int32_t> parent, start, offset{0}, row_begin, row_end, row_node, row_position;
  std::vector<int32_t> slots;  // of all nodes, and, past their end, those that belong to nobody

  int64_t nodes() const { return static_cast<int64_t>(parent.size()); }
  int64_t rows() const { return static_cast<int64_t>(row_node.size()); }

  /// Slots of a row's path, by position.
  std::vector<int32_t> path(int64_t row) const {
    std::vector<int32_t> found;
    for (int32_t node = row_node[static_cast<size_t>(row)]; node >= 0; node = parent[static_cast<size_t>(node)]) {
      const auto begin = slots.begin() + offset[static_cast<size_t>(node)],
                 end = slots.begin() + offset[static_cast<size_t>(node) + 1];
      found.insert(found.begin(), begin, end);
    }
    return found;
  }
};

void add_node(Random& random, Tree& tree, int32_t parent, int depth) {
  const int32_t node = static_cast<int32_t>(tree.parent.size());
  const int64_t length = awkward(random, depth == 0 ? 1 : 0, depth == 0 ? 150 : 40);
  const int32_t start = parent < 0
                            ? 0
                            : tree.start[static_cast<size_t>(parent)] + tree.offset[static_cast<size_t>(parent) + 1] -
                                  tree.offset[static_cast<size_t>(parent)];
  tree.parent.push_back(parent);
  tree.start.push_back(start);
  tree.offset.push_back(tree.offset.back() + static_cast<int32_t>(length));
  tree.row_begin.push_back(static_cast<int32_t>(tree.row_node.size()));
  tree.row_end.push_back(0);
  const int64_t end = start + length;
  const int64_t own_rows = random.pick<int64_t>({0, 1, 1, 2, 5, length});  // decode, extend, prefill
  for (int64_t i = 0; i < own_rows && end > 0; ++i) {
    const int64_t position = own_rows == length   ? start + i
                             : random.chance(0.8) ? end - 1
                                                  : random.between(-1, end - 1);
    tree.row_node.push_back(node);
    tree.row_position.push_back(static_cast<int32_t>(position));
  }
  const int64_t children = depth < 3 ? random.pick<int64_t>({0, 1, 3}) : 0;
  for (int64_t i = 0; i < children; ++i) add_node(random, tree, node, depth + 1);
  tree.row_end[static_cast<size_t>(node)] = static_cast<int32_t>(tree.row_node.size());
}

Tree make_tree(Random& random) {
  Tree tree;
  const int64_t roots = random.pick<int64_t>({1, 1, 2});
  for (int64_t i = 0; i < roots; ++i) add_node(random, tree, -1, 0);
  const int64_t used = tree.offset.back();
  tree.slots.resize(static_cast<size_t>(used + random.between(1, 20)));
  for (size_t i = 0; i < tree.slots.size(); ++i) tree.slots[i] = static_cast<int32_t>(i);
  // Runs of neighbouring slots and shuffled ones: pages in use are both.
  const int64_t swaps = random.pick<int64_t>({0, 5, static_cast<int64_t>(tree.slots.size())});
  for (int64_t i = 0; i < swaps; ++i) {
    std::swap(tree.slots[static_cast<size_t>(random.between(0, static_cast<int64_t>(tree.slots.size()) - 1))],
              tree.slots[static_cast<size_t>(random.between(0, static_cast<int64_t>(tree.slots.size()) - 1))]);
  }
  return tree;
}

/// A cache whose unused slots and gaps hold NaN, and its scales where it is int8.
struct Cache {
  int64_t dim, head_stride, slot_stride;
  Array data, scale;
  bool scaled;
  int64_t scale_slot_stride, scale_head_stride;

  Cache(Random& random, DType dtype, const Tree& tree, int64_t kv_heads, int64_t width)
      : dim(width),
        head_stride(width + random.pick<int64_t>({0, 0, 16})),
        slot_stride(kv_heads * head_stride + random.pick<int64_t>({0, 0, 32})),
        data(dtype, (static_cast<int64_t>(tree.slots.size()) - 1) * slot_stride + (kv_heads - 1) * head_stride + width),
        scale(DType::kFloat32, static_cast<int64_t>(tree.slots.size()) * kv_heads),
        scaled(dtype == DType::kInt8 || random.chance(0.2)),
        scale_slot_stride(random.pick<int64_t>({0, kv_heads})),
        scale_head_stride(random.pick<int64_t>({0, 1})) {
    for (int64_t i = 0; i < scale.count(); ++i)
      scale.set(i, dtype == DType::kInt8 ? random.uniform(0.005, 0.02) : random.uniform(0.5, 2.0));
    for (int32_t i = 0; i < tree.offset.back(); ++i) {
      for (int64_t h = 0; h < kv_heads; ++h) {
        for (int64_t d = 0; d < width; ++d) {
          const double value = dtype == DType::kInt8 ? static_cast<double>(random.between(-127, 127)) : random.normal();
          data.set(tree.slots[static_cast<size_t>(i)] * slot_stride + h * head_stride + d, value);
        }
      }
    }
  }

  double get(int64_t slot, int64_t head, int64_t d) const {
    const double value = data.get(slot * slot_stride + head * head_stride + d);
    return scaled ? value * scale.get(slot * scale_slot_stride + head * scale_head_stride) : value;
  }

  CacheView view() const {
    return {data.data(),       slot_stride,      head_stride, scaled ? scale.floats() : nullptr,
            scale_slot_stride, scale_head_stride};
  }
};

std::vector<int32_t> exact(const std::vector<int32_t>& values) {
  std::vector<int32_t> copy(values);
  copy.shrink_to_fit();
  return copy;
}

struct Expected {
  std::vector<double> out;
  double lse = -HUGE_VAL, magnitude = 0.0;  // the largest value met: the scale of rounding errors
};

Expected attend(const Tree& tree, const Array& q, const Cache& k, const Cache& v, const AttentionArgs& args,
                int64_t row, int64_t head) {
  const std::vector<int32_t> path = tree.path(row);
  const int64_t at = args.row_position[row], kv_head = head / (args.heads / args.kv_heads);
  const int64_t first = args.window == INT64_MAX ? 0 : std::max<int64_t>(0, at - args.window + 1);
  Expected expected{std::vector<double>(static_cast<size_t>(args.value_dim), 0.0)};
  std::vector<double> scores;
  for (int64_t p = first; p <= at; ++p) {
    double score = 0.0;
    for (int64_t d = 0; d < args.key_dim; ++d)
      score += q.get((row * args.heads + head) * args.key_dim + d) * k.get(path[static_cast<size_t>(p)], kv_head, d);
    score *= static_cast<double>(args.scale);
    if (args.softcap > 0.0f)
      score = static_cast<double>(args.softcap) * std::tanh(score / static_cast<double>(args.softcap));
    scores.push_back(score);
  }
  if (scores.empty()) return expected;
  const double best = *std::max_element(scores.begin(), scores.end());
  double sum = 0.0;
  for (const double score : scores) sum += std::exp(score - best);
  expected.lse = best + std::log(sum);
  for (int64_t p = first; p <= at; ++p) {
    const double weight = std::exp(scores[static_cast<size_t>(p - first)] - expected.lse);
    for (int64_t d = 0; d < args.value_dim; ++d) {
      const double value = v.get(path[static_cast<size_t>(p)], kv_head, d);
      expected.out[static_cast<size_t>(d)] += weight * value;
      expected.magnitude = std::max(expected.magnitude, std::fabs(value));
    }
  }
  return expected;
}

}  // namespace

void test_attention(Random& random, const std::string& what) {
  const Tree tree = make_tree(random);
  const DType q_dtype = any_float(random),
              kv_dtype = random.pick({DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kInt8});
  AttentionArgs args{};
  args.kv_heads = random.between(1, 3);
  args.heads = args.kv_heads * random.pick<int64_t>({1, 2, 3, 7});
  args.key_dim = 16 * random.pick<int64_t>({1, 2, 3, 4, 5, 8});
  args.value_dim = random.chance(0.8) ? args.key_dim : 16 * random.between(1, 6);
  const Cache k(random, kv_dtype, tree, args.kv_heads, args.key_dim),
      v(random, kv_dtype, tree, args.kv_heads, args.value_dim);
  Array q(q_dtype, tree.rows() * args.heads * args.key_dim),
      out(any_float(random), tree.rows() * args.heads * args.value_dim);
  Array lse(DType::kFloat32, tree.rows() * args.heads);
  q.fill(random, random.pick({1.0, 1.0, 5.0}));
  const std::vector<int32_t> node_slots(tree.slots.begin(), tree.slots.begin() + tree.offset.back());
  const std::vector<int32_t> parent = exact(tree.parent), start = exact(tree.start), offset = exact(tree.offset),
                             begin = exact(tree.row_begin);
  const std::vector<int32_t> end = exact(tree.row_end), row_node = exact(tree.row_node),
                             row_position = exact(tree.row_position);
  args.q = q.data();
  args.k = k.view();
  args.v = v.view();
  args.node_parent = parent.data();
  args.node_start = start.data();
  args.node_offset = offset.data();
  args.node_slots = node_slots.data();
  args.node_row_begin = begin.data();
  args.node_row_end = end.data();
  args.row_node = row_node.data();
  args.row_position = row_position.data();
  args.out = out.data();
  args.lse = reinterpret_cast<float*>(lse.data());
  args.rows = tree.rows();
  args.nodes = tree.nodes();
  args.window = random.chance(0.7) ? INT64_MAX : awkward(random, 1, 60);
  args.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(args.key_dim)));
  args.softcap = random.chance(0.7) ? 0.0f : 5.0f;
  args.q_dtype = q_dtype;
  args.kv_dtype = kv_dtype;
  args.out_dtype = out.dtype();
  // In bf16 throughout, probabilities are rounded to bf16 (half a unit in 8 bits), and a product's sum may drop
  // subnormals.
  const bool narrow = q_dtype == DType::kBFloat16 && kv_dtype == DType::kBFloat16;
  const double out_error = narrow ? kOutError + 0x1p-8 : kOutError;
  attention(args);
  for (int64_t row = 0; row < args.rows; ++row) {
    for (int64_t head = 0; head < args.heads; ++head) {
      const Expected expected = attend(tree, q, k, v, args, row, head);
      const int64_t index = row * args.heads + head;
      if (!std::isfinite(expected.lse)) {
        expect(lse.get(index) == expected.lse, what + ": lse of a row that sees nothing");
      } else {
        expect_close(lse, index, expected.lse, kLseError, what + ": lse");
      }
      for (int64_t d = 0; d < args.value_dim; ++d) {
        expect_close(out, index * args.value_dim + d, expected.out[static_cast<size_t>(d)],
                     out_error * expected.magnitude, what);
      }
    }
  }
}

}  // namespace spct::test
