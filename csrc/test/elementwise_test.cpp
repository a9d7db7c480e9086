#include "elementwise/elementwise.hpp"

#include <vector>

#include "harness.hpp"

namespace spct::test {
namespace {

double inverse_rms(const std::vector<double>& x, double eps) {
  double squares = 0.0;
  for (const double v : x) squares += v * v;
  return 1.0 / std::sqrt(squares / static_cast<double>(x.size()) + eps);
}

double activate(double x, Activation kind) {
  if (kind == Activation::kSilu) return x / (1.0 + std::exp(-x));
  if (kind == Activation::kGelu) return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
  return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
}

// The relative error of an fp32 sum of squares, of its root, and of the products after it.
double norm_error(int64_t width) { return (static_cast<double>(width) + 10.0) * kEpsilon; }

}  // namespace

void test_rms_norm(Random& random, const std::string& what) {
  const int64_t rows = awkward(random, 0, 40), width = awkward(random, 1, 300);
  const DType dtype = any_float(random), weight_dtype = any_float(random);
  const bool adds = random.chance(0.5);
  Array x(dtype, rows * width), residual(dtype, rows * width), weight(weight_dtype, width);
  Array out(dtype, rows * width), sum(dtype, rows * width);
  x.fill(random, random.pick({1.0, 1e-3, 20.0}));
  residual.fill(random, 1.0);
  weight.fill(random, 1.0);
  const double eps = random.pick({1e-5, 1e-6, 1e-2});
  RmsNormArgs args{};
  args.x = x.data();
  args.residual = adds ? residual.data() : nullptr;
  args.weight = weight.data();
  args.out = out.data();
  args.sum = adds ? sum.data() : nullptr;
  args.rows = rows;
  args.width = width;
  args.eps = static_cast<float>(eps);
  args.dtype = dtype;
  args.weight_dtype = weight_dtype;
  rms_norm(args);
  for (int64_t t = 0; t < rows; ++t) {
    std::vector<double> row(static_cast<size_t>(width));
    for (int64_t i = 0; i < width; ++i) {
      const int64_t at = t * width + i;
      row[static_cast<size_t>(i)] = x.get(at);
      if (!adds) continue;
      expect_close(sum, at, x.get(at) + residual.get(at), kEpsilon * std::fabs(x.get(at) + residual.get(at)),
                   what + ": sum");
      row[static_cast<size_t>(i)] = sum.get(at);  // what is stored is what is normalised
    }
    const double scale = inverse_rms(row, static_cast<double>(args.eps));
    for (int64_t i = 0; i < width; ++i) {
      const double expected = row[static_cast<size_t>(i)] * scale * weight.get(i);
      expect_close(out, t * width + i, expected, norm_error(width) * std::fabs(expected), what);
    }
  }
}

void test_gated_activation(Random& random, const std::string& what) {
  const int64_t rows = awkward(random, 0, 40), width = awkward(random, 1, 300);
  const DType dtype = any_float(random);
  const Activation kind = random.pick({Activation::kSilu, Activation::kGeluTanh, Activation::kGelu});
  Array gate_up(dtype, rows * 2 * width), out(dtype, rows * width);
  gate_up.fill(random, random.pick({1.0, 4.0, 1e-3}));
  GatedActivationArgs args{};
  args.gate_up = gate_up.data();
  args.out = out.data();
  args.rows = rows;
  args.width = width;
  args.kind = kind;
  args.dtype = dtype;
  gated_activation(args);
  for (int64_t t = 0; t < rows; ++t) {
    for (int64_t i = 0; i < width; ++i) {
      const double gate = gate_up.get(t * 2 * width + i), up = gate_up.get(t * 2 * width + width + i);
      // The functions are good to a few units of fp32 relative to 1, so that a tail near 0 is good to |gate| of that.
      const double error = 16.0 * kEpsilon * std::fabs(gate * up) + 1e-37;
      expect_close(out, t * width + i, activate(gate, kind) * up, error, what);
    }
  }
}

namespace {

/// Caches with room between heads and slots that nobody may touch.
struct Cache {
  int64_t slots, heads, dim, head_stride, slot_stride;
  Array data;

  Cache(Random& random, DType dtype, int64_t num_slots, int64_t num_heads, int64_t head_dim)
      : slots(num_slots),
        heads(num_heads),
        dim(head_dim),
        head_stride(head_dim + random.pick<int64_t>({0, 0, 3, 16})),
        slot_stride(num_heads * head_stride + random.pick<int64_t>({0, 5})),
        data(dtype, (num_slots - 1) * slot_stride + (num_heads - 1) * head_stride + head_dim) {}

  int64_t at(int64_t slot, int64_t head, int64_t d) const { return slot * slot_stride + head * head_stride + d; }
};

struct Rope {
  int64_t rows, heads, kv_heads, dim, pairs;
  Array qkv, cos, sin, q_norm, k_norm;
  double eps;
  bool norms;

  /// A head of a row after norm and rotation.
  std::vector<double> rotated(int64_t row, int64_t head, const Array& norm) const {
    const int64_t begin = (row * (heads + 2 * kv_heads) + head) * dim;
    std::vector<double> x(static_cast<size_t>(dim));
    for (int64_t d = 0; d < dim; ++d) x[static_cast<size_t>(d)] = qkv.get(begin + d);
    if (norms) {
      const double scale = inverse_rms(x, eps);
      for (int64_t d = 0; d < dim; ++d) x[static_cast<size_t>(d)] *= scale * norm.get(d);
    }
    for (int64_t p = 0; p < pairs; ++p) {
      const double first = x[static_cast<size_t>(p)], second = x[static_cast<size_t>(pairs + p)];
      const double c = cos.get(row * pairs + p), s = sin.get(row * pairs + p);
      x[static_cast<size_t>(p)] = first * c - second * s;
      x[static_cast<size_t>(pairs + p)] = second * c + first * s;
    }
    return x;
  }
};

Rope make_rope(Random& random) {
  const int64_t kv_heads = random.between(1, 3), heads = kv_heads * random.between(1, 3),
                dim = 16 * random.between(1, 8);
  const int64_t rows = awkward(random, 0, 20), pairs = random.chance(0.7) ? dim / 2 : random.between(1, dim / 2);
  Rope made{rows,
            heads,
            kv_heads,
            dim,
            pairs,
            Array(any_float(random), rows * (heads + 2 * kv_heads) * dim),
            Array(DType::kFloat32, rows * pairs),
            Array(DType::kFloat32, rows * pairs),
            Array(DType::kFloat32, dim),
            Array(DType::kFloat32, dim),
            static_cast<double>(1e-6f),
            random.chance(0.5)};
  made.qkv.fill(random, 1.0);
  made.q_norm.fill(random, 1.0);
  made.k_norm.fill(random, 1.0);
  for (int64_t i = 0; i < rows * pairs; ++i) {
    const double angle = random.uniform(-3.2, 3.2);
    made.cos.set(i, std::cos(angle));
    made.sin.set(i, std::sin(angle));
  }
  return made;
}

}  // namespace

void test_rope_append(Random& random, const std::string& what) {
  const Rope rope = make_rope(random);
  const int64_t num_slots = rope.rows + random.between(1, 9);
  const DType cache_dtype = any_float(random);
  const Cache k(random, cache_dtype, num_slots, rope.kv_heads, rope.dim),
      v(random, cache_dtype, num_slots, rope.kv_heads, rope.dim);
  Array q(any_float(random), rope.rows * rope.heads * rope.dim);
  Plain<int32_t> slots(rope.rows);
  std::vector<int32_t> free(static_cast<size_t>(num_slots));
  for (int64_t i = 0; i < num_slots; ++i) free[static_cast<size_t>(i)] = static_cast<int32_t>(i);
  for (int64_t i = 0; i < rope.rows; ++i) {
    std::swap(free[static_cast<size_t>(i)], free[static_cast<size_t>(random.between(i, num_slots - 1))]);
    slots[i] = free[static_cast<size_t>(i)];
  }
  RopeAppendArgs args{};
  args.qkv = rope.qkv.data();
  args.cos = rope.cos.floats();
  args.sin = rope.sin.floats();
  args.slots = slots.data();
  args.q_norm = rope.norms ? rope.q_norm.floats() : nullptr;
  args.k_norm = rope.norms ? rope.k_norm.floats() : nullptr;
  args.k_cache = k.data.data();
  args.v_cache = v.data.data();
  args.q = q.data();
  args.rows = rope.rows;
  args.num_heads = rope.heads;
  args.num_kv_heads = rope.kv_heads;
  args.head_dim = rope.dim;
  args.rotary_pairs = rope.pairs;
  args.k_slot_stride = k.slot_stride;
  args.k_head_stride = k.head_stride;
  args.v_slot_stride = v.slot_stride;
  args.v_head_stride = v.head_stride;
  args.norm_eps = static_cast<float>(rope.eps);
  args.dtype = rope.qkv.dtype();
  args.q_dtype = q.dtype();
  args.cache_dtype = cache_dtype;
  rope_append(args);
  std::vector<bool> k_written(static_cast<size_t>(k.data.count())), v_written(static_cast<size_t>(v.data.count()));
  for (int64_t t = 0; t < rope.rows; ++t) {
    for (int64_t h = 0; h < rope.heads + rope.kv_heads; ++h) {
      const bool is_key = h >= rope.heads;
      const std::vector<double> expected = rope.rotated(t, h, is_key ? rope.k_norm : rope.q_norm);
      double largest = 0.0;
      for (const double x : expected) largest = std::max(largest, std::fabs(x));
      for (int64_t d = 0; d < rope.dim; ++d) {
        const int64_t at = is_key ? k.at(slots[t], h - rope.heads, d) : (t * rope.heads + h) * rope.dim + d;
        expect_close(is_key ? k.data : q, at, expected[static_cast<size_t>(d)], 2.0 * norm_error(rope.dim) * largest,
                     what);
        if (is_key) k_written[static_cast<size_t>(at)] = true;
      }
    }
    for (int64_t h = 0; h < rope.kv_heads; ++h) {
      for (int64_t d = 0; d < rope.dim; ++d) {
        const int64_t at = v.at(slots[t], h, d),
                      from = ((t * (rope.heads + 2 * rope.kv_heads)) + rope.heads + rope.kv_heads + h) * rope.dim + d;
        expect_close(v.data, at, rope.qkv.get(from), 0.0, what + ": value");
        v_written[static_cast<size_t>(at)] = true;
      }
    }
  }
  for (int64_t i = 0; i < k.data.count(); ++i)
    expect(k_written[static_cast<size_t>(i)] || std::isnan(k.data.get(i)), what + ": wrote beside the keys");
  for (int64_t i = 0; i < v.data.count(); ++i)
    expect(v_written[static_cast<size_t>(i)] || std::isnan(v.data.get(i)), what + ": wrote beside the values");
}

}  // namespace spct::test
