#include "linear/linear.hpp"

#include <algorithm>

#include "harness.hpp"

namespace spct::test {
namespace {

constexpr int64_t kPanelOutputs = 16;

struct Linear {
  int64_t rows, inputs, outputs;
  Array x, weight, scale, bias;
  bool has_scale, has_bias;

  /// Where weight[o, i] stands in the packed layout.
  int64_t packed(int64_t o, int64_t i) const {
    return (o / kPanelOutputs * inputs + i) * kPanelOutputs + o % kPanelOutputs;
  }

  Array compute(int64_t first, int64_t count) const {
    Array out(x.dtype(), count * outputs);
    LinearArgs args{};
    args.x = static_cast<const char*>(x.data()) + static_cast<size_t>(first * inputs) * size_of(x.dtype());
    args.weight = weight.data();
    args.scale = has_scale ? scale.floats() : nullptr;
    args.bias = has_bias ? bias.floats() : nullptr;
    args.out = out.data();
    args.rows = count;
    args.inputs = inputs;
    args.outputs = outputs;
    args.dtype = x.dtype();
    args.weight_dtype = weight.dtype();
    linear(args);
    return out;
  }
};

Linear make(Random& random) {
  const int64_t rows = awkward(random, 0, 70), inputs = awkward(random, 0, 300), outputs = awkward(random, 1, 200);
  const DType dtype = any_float(random), weight_dtype = random.chance(0.25) ? DType::kInt8 : any_float(random);
  const int64_t panels = (outputs + kPanelOutputs - 1) / kPanelOutputs;
  Linear made{rows,
              inputs,
              outputs,
              Array(dtype, rows * inputs),
              Array(weight_dtype, panels * inputs * kPanelOutputs),
              Array(DType::kFloat32, outputs),
              Array(DType::kFloat32, outputs),
              weight_dtype == DType::kInt8,
              random.chance(0.5)};
  made.x.fill(random, random.pick({1.0, 1e-3, 30.0}));
  made.scale.fill(random, 0.01);
  made.bias.fill(random, 1.0);
  const double spread = random.pick({1.0, 0.02});
  for (int64_t o = 0; o < panels * kPanelOutputs; ++o) {
    for (int64_t i = 0; i < inputs; ++i) {
      const double value = made.has_scale ? static_cast<double>(random.between(-127, 127)) : random.normal() * spread;
      made.weight.set(made.packed(o, i), o < outputs ? value : 0.0);
    }
  }
  return made;
}

}  // namespace

void test_linear(Random& random, const std::string& what) {
  const Linear layer = make(random);
  const Array out = layer.compute(0, layer.rows);
  for (int64_t t = 0; t < layer.rows; ++t) {
    for (int64_t o = 0; o < layer.outputs; ++o) {
      const double scale = layer.has_scale ? layer.scale.get(o) : 1.0;
      double sum = layer.has_bias ? layer.bias.get(o) : 0.0, magnitude = std::fabs(sum);
      for (int64_t i = 0; i < layer.inputs; ++i) {
        const double product = layer.x.get(t * layer.inputs + i) * layer.weight.get(layer.packed(o, i)) * scale;
        sum += product;
        magnitude += std::fabs(product);
      }
      expect_close(out, t * layer.outputs + o, sum, static_cast<double>(layer.inputs + 4) * kEpsilon * magnitude, what);
    }
  }
  if (layer.rows == 0) return;
  const int64_t row = random.between(0, layer.rows - 1);
  expect_same(layer.compute(row, 1), 0, out, row * layer.outputs, layer.outputs, what + ": a row alone has other bits");
}

namespace {

struct W8A8 {
  int64_t rows, inputs, outputs;
  Array x, scale, bias;
  Plain<int8_t> weight;
  Plain<int32_t> sums;
  bool has_bias;

  int64_t groups() const { return (inputs + 3) / 4; }
  /// Where weight[o, i] stands: four inputs of an output together.
  int64_t packed(int64_t o, int64_t i) const {
    return ((o / kPanelOutputs * groups() + i / 4) * kPanelOutputs + o % kPanelOutputs) * 4 + i % 4;
  }

  Array compute(int64_t first, int64_t count) const {
    Array out(x.dtype(), count * outputs);
    LinearW8A8Args args{};
    args.x = static_cast<const char*>(x.data()) + static_cast<size_t>(first * inputs) * size_of(x.dtype());
    args.weight = weight.data();
    args.scale = scale.floats();
    args.sums = sums.data();
    args.bias = has_bias ? bias.floats() : nullptr;
    args.out = out.data();
    args.rows = count;
    args.inputs = inputs;
    args.outputs = outputs;
    args.dtype = x.dtype();
    linear_w8a8(args);
    return out;
  }
};

W8A8 make_w8a8(Random& random) {
  const int64_t rows = awkward(random, 0, 70), inputs = awkward(random, 1, 300), outputs = awkward(random, 1, 200);
  const int64_t stored = (outputs + kPanelOutputs - 1) / kPanelOutputs * kPanelOutputs;
  W8A8 made{rows,
            inputs,
            outputs,
            Array(any_float(random), rows * inputs),
            Array(DType::kFloat32, outputs),
            Array(DType::kFloat32, outputs),
            Plain<int8_t>(stored * ((inputs + 3) / 4) * 4),
            Plain<int32_t>(stored),
            random.chance(0.5)};
  made.x.fill(random, random.pick({1.0, 1e-3, 30.0, 0.0}));
  made.scale.fill(random, 0.01);
  made.bias.fill(random, 1.0);
  const bool extreme = random.chance(0.3);  // every product is the largest there is: nothing may saturate
  for (int64_t o = 0; o < stored; ++o) {
    made.sums[o] = 0;
    for (int64_t i = 0; i < made.groups() * 4; ++i) {
      const int64_t value = extreme ? random.pick<int64_t>({-127, 127}) : random.between(-127, 127);
      made.weight[made.packed(o, i)] = static_cast<int8_t>(o < outputs && i < inputs ? value : 0);
      made.sums[o] += made.weight[made.packed(o, i)];
    }
  }
  for (int64_t i = 0; extreme && i < made.x.count(); ++i) made.x.set(i, random.pick({-2.0, 2.0}));
  return made;
}

/// A row as the kernel quantises it, in the same fp32 steps; gives the row's scale.
float quantise(const W8A8& layer, int64_t row, int64_t* to) {
  float largest = 0.0f;
  for (int64_t i = 0; i < layer.inputs; ++i) {
    largest = std::max(largest, static_cast<float>(std::fabs(layer.x.get(row * layer.inputs + i))));
  }
  const float inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
  for (int64_t i = 0; i < layer.inputs; ++i) {
    to[i] = static_cast<int64_t>(std::nearbyintf(static_cast<float>(layer.x.get(row * layer.inputs + i)) * inverse));
  }
  return largest / 127.0f;
}

}  // namespace

void test_linear_w8a8(Random& random, const std::string& what) {
  const W8A8 layer = make_w8a8(random);
  const Array out = layer.compute(0, layer.rows);
  Plain<int64_t> row(layer.inputs);
  for (int64_t t = 0; t < layer.rows; ++t) {
    const double row_scale = static_cast<double>(quantise(layer, t, row.data()));
    for (int64_t o = 0; o < layer.outputs; ++o) {
      int64_t sum = 0;
      for (int64_t i = 0; i < layer.inputs; ++i) sum += row[i] * layer.weight[layer.packed(o, i)];
      const double product = static_cast<double>(sum) * row_scale * layer.scale.get(o),
                   bias = layer.has_bias ? layer.bias.get(o) : 0.0;
      const double error = 4.0 * kEpsilon * (std::fabs(product) + std::fabs(bias));
      expect_close(out, t * layer.outputs + o, product + bias, error, what);
    }
  }
  if (layer.rows == 0) return;
  const int64_t alone = random.between(0, layer.rows - 1);
  expect_same(layer.compute(alone, 1), 0, out, alone * layer.outputs, layer.outputs,
              what + ": a row alone has other bits");
}

}  // namespace spct::test
