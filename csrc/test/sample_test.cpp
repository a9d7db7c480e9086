#include <algorithm>
#include <vector>

#include "harness.hpp"
#include "sample/head.hpp"

namespace spct::test {
namespace {

constexpr int64_t kPanelOutputs = 16;

/// Philox4x32-10 (Salmon et al. 2011), word id % 4 of the counter (id / 4, position, 0) under the seed.
uint32_t philox(uint64_t seed, uint64_t position, int64_t id) {
  uint32_t c[4] = {static_cast<uint32_t>(id / 4), static_cast<uint32_t>(position),
                   static_cast<uint32_t>(position >> 32), 0};
  uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * c[0], b = uint64_t{0xCD9E8D57} * c[2];
    const uint32_t next[4] = {static_cast<uint32_t>(b >> 32) ^ c[1] ^ key[0], static_cast<uint32_t>(b),
                              static_cast<uint32_t>(a >> 32) ^ c[3] ^ key[1], static_cast<uint32_t>(a)};
    std::copy(next, next + 4, c);
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return c[id % 4];
}

double gumbel(uint32_t bits) { return -std::log(-std::log((static_cast<double>(bits) + 0.5) * 0x1p-32)); }

/// Lists of ids per row, ascending without repetition; some rows have none.
struct Lists {
  std::vector<int64_t> offsets{0};
  std::vector<int32_t> ids;

  Lists(Random& random, int64_t rows, int64_t vocabulary, double density) {
    for (int64_t row = 0; row < rows; ++row) {
      if (random.chance(0.7)) {
        for (int64_t id = 0; id < vocabulary; ++id) {
          if (random.chance(density)) ids.push_back(static_cast<int32_t>(id));
        }
      }
      offsets.push_back(static_cast<int64_t>(ids.size()));
    }
    ids.shrink_to_fit();
    offsets.shrink_to_fit();
  }
  TokenLists view() const { return {offsets.data(), ids.data()}; }
  bool has(int64_t row, int64_t id) const {
    const auto begin = ids.begin() + offsets[static_cast<size_t>(row)],
               end = ids.begin() + offsets[static_cast<size_t>(row) + 1];
    return std::binary_search(begin, end, static_cast<int32_t>(id));
  }
  bool empty(int64_t row) const { return offsets[static_cast<size_t>(row)] == offsets[static_cast<size_t>(row) + 1]; }
};

struct Layer {
  Array hidden, norm, weight, scale, meta;
  Plain<int32_t> sums;
  Head head{};

  static Layer make(Random& random) {
    const int64_t rows = awkward(random, 0, 40), depth = awkward(random, 1, 130),
                  vocabulary = awkward(random, 1, random.chance(0.1) ? 5000 : 400);
    const DType dtype = random.chance(0.25) ? DType::kInt8 : any_float(random);
    const bool is_int8 = dtype == DType::kInt8, packed = is_int8 || random.chance(0.5);
    const int64_t stored = packed ? (vocabulary + kPanelOutputs - 1) / kPanelOutputs * kPanelOutputs : vocabulary;
    const int64_t stored_depth = is_int8 ? (depth + 3) / 4 * 4 : depth;
    Layer made{Array(DType::kFloat32, rows * depth), Array(DType::kFloat32, depth), Array(dtype, stored * stored_depth),
               Array(DType::kFloat32, vocabulary),   Array(DType::kFloat32, depth), Plain<int32_t>(stored)};
    made.hidden.fill(random, 1.0);
    made.norm.fill(random, 1.0);
    made.meta.fill(random, 1.0);
    Head& head = made.head;
    head.hidden = made.hidden.floats();
    head.norm_weight = made.norm.floats();
    head.weight = made.weight.data();
    head.weight_dtype = dtype;
    head.packed = packed;
    if (is_int8) {
      head.scale = made.scale.floats();
      head.sums = made.sums.data();
    }
    head.rows = rows;
    head.depth = depth;
    head.vocabulary = vocabulary;
    head.norm_eps = 1e-6f;
    head.softcap = random.chance(0.7) ? 0.0f : 10.0f;
    const double spread = random.pick({0.05, 0.5});
    for (int64_t id = 0; id < vocabulary; ++id) made.scale.set(id, spread / 70.0 * random.uniform(0.5, 1.5));
    for (int64_t id = 0; id < stored; ++id) {
      made.sums[id] = 0;
      for (int64_t i = 0; i < stored_depth; ++i) {
        const double value = is_int8 ? static_cast<double>(random.between(-127, 127)) : random.normal() * spread;
        made.weight.set(made.at(id, i), id < vocabulary && i < depth ? value : 0.0);
        if (is_int8) made.sums[id] += static_cast<int32_t>(made.weight.get(made.at(id, i)));
      }
    }
    return made;
  }

  int64_t at(int64_t id, int64_t i) const {
    if (head.weight_dtype == DType::kInt8) {
      const int64_t groups = (head.depth + 3) / 4;
      return ((id / kPanelOutputs * groups + i / 4) * kPanelOutputs + id % kPanelOutputs) * 4 + i % 4;
    }
    return head.packed ? (id / kPanelOutputs * head.depth + i) * kPanelOutputs + id % kPanelOutputs
                       : id * head.depth + i;
  }

  std::vector<double> normed(int64_t row) const {
    std::vector<double> x(static_cast<size_t>(head.depth));
    double squares = 0.0;
    for (int64_t i = 0; i < head.depth; ++i) {
      x[static_cast<size_t>(i)] = hidden.get(row * head.depth + i);
      squares += x[static_cast<size_t>(i)] * x[static_cast<size_t>(i)];
    }
    const double scale =
        1.0 / std::sqrt(squares / static_cast<double>(head.depth) + static_cast<double>(head.norm_eps));
    for (int64_t i = 0; i < head.depth; ++i) x[static_cast<size_t>(i)] *= scale * norm.get(i);
    return x;
  }

  /// A logit, and how far fp32 may be from it; or int8, whose rows are rounded to steps of their largest value / 127.
  double logit(const std::vector<double>& x, int64_t id, double* error) const {
    const bool is_int8 = head.weight_dtype == DType::kInt8;
    const double factor = is_int8 ? scale.get(id) : 1.0;
    double sum = 0.0, magnitude = 0.0, weights = 0.0, largest = 0.0;
    for (int64_t i = 0; i < head.depth; ++i) {
      const double value = weight.get(at(id, i)) * factor, product = x[static_cast<size_t>(i)] * value;
      sum += product;
      magnitude += std::fabs(product);
      weights += std::fabs(value);
      largest = std::max(largest, std::fabs(x[static_cast<size_t>(i)]));
    }
    *error = (static_cast<double>(2 * head.depth) + 30.0) * kEpsilon * magnitude + 1e-30;
    if (is_int8) *error += 0.51 * largest / 127.0 * weights;
    const double cap = static_cast<double>(head.softcap);
    return cap > 0.0 ? cap * std::tanh(sum / cap) : sum;
  }
};

struct Params {
  Plain<float> temperature, top_p, min_p;
  Plain<int32_t> top_k;
  Plain<int64_t> seed, position;

  Params(Random& random, int64_t rows, int64_t vocabulary)
      : temperature(rows), top_p(rows), min_p(rows), top_k(rows), seed(rows), position(rows) {
    for (int64_t row = 0; row < rows; ++row) {
      temperature[row] = random.pick({0.0f, 1.0f, 1.0f, 0.3f, 3.0f});
      top_p[row] = random.pick({1.0f, 1.0f, 0.95f, 0.5f, 0.01f});
      min_p[row] = random.pick({0.0f, 0.0f, 0.05f, 1.0f});
      top_k[row] = random.chance(0.5) ? 0 : static_cast<int32_t>(random.between(1, vocabulary + 3));
      seed[row] = static_cast<int64_t>(random.bits());
      position[row] = static_cast<int64_t>(random.bits() >> random.between(1, 60));
    }
  }
  SampleParams view() const {
    return {temperature.data(), top_k.data(), top_p.data(), min_p.data(), seed.data(), position.data()};
  }
};

/// The tokens of one row that may be drawn, with `slack` on every logit: surely kept, and perhaps kept.
struct Kept {
  std::vector<bool> surely, perhaps;
};

Kept truncate(const std::vector<double>& logits, const Params& params, int64_t row, double slack) {
  const size_t count = logits.size();
  Kept kept{std::vector<bool>(count, false), std::vector<bool>(count, false)};
  const double best = *std::max_element(logits.begin(), logits.end());
  const double temperature = static_cast<double>(params.temperature[row]);
  std::vector<size_t> order;
  for (size_t i = 0; i < count; ++i) {
    if (std::isfinite(logits[i])) order.push_back(i);
  }
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return logits[a] > logits[b]; });
  if (params.top_k[row] > 0 && static_cast<size_t>(params.top_k[row]) < order.size()) {
    const double last = logits[order[static_cast<size_t>(params.top_k[row]) - 1]],
                 first_out = logits[order[static_cast<size_t>(params.top_k[row])]];
    for (const size_t i : order) {
      kept.perhaps[i] = logits[i] >= last - slack;
      kept.surely[i] = logits[i] > first_out + slack;
    }
  } else {
    for (const size_t i : order) kept.perhaps[i] = kept.surely[i] = true;
  }
  const double relative = 3.0 * slack / temperature + 1e-5;  // of a mass, or of a sum of masses
  double total = 0.0;
  for (const size_t i : order) total += kept.perhaps[i] ? std::exp((logits[i] - best) / temperature) : 0.0;
  const double top_p = static_cast<double>(params.top_p[row]), min_p = static_cast<double>(params.min_p[row]);
  for (size_t rank = 0; rank < order.size(); ++rank) {
    const size_t i = order[rank];
    double above = 0.0, with_ties = 0.0;
    for (const size_t other : order) {
      if (other == i || !kept.perhaps[other]) continue;
      const double mass = std::exp((logits[other] - best) / temperature);
      if (logits[other] > logits[i] + slack) above += mass;
      if (logits[other] >= logits[i] - slack) with_ties += mass;
    }
    if (top_p < 1.0) {
      kept.perhaps[i] = kept.perhaps[i] && (above < top_p * total * (1 + relative) || logits[i] >= best - slack);
      kept.surely[i] = kept.surely[i] && with_ties < top_p * total * (1 - relative);
    }
    if (min_p > 0.0) {
      const double mass = std::exp((logits[i] - best) / temperature);
      kept.perhaps[i] = kept.perhaps[i] && mass >= min_p * (1 - relative);
      kept.surely[i] = kept.surely[i] && mass >= min_p * (1 + relative);
    }
  }
  return kept;
}

/// Checks that the drawn token has the largest noisy logit, or one that no fp32 arithmetic tells from it.
void check_draw(const std::vector<double>& logits, const Params& params, int64_t row, int64_t token, double slack,
                const std::string& what) {
  expect(token >= 0 && token < static_cast<int64_t>(logits.size()) && std::isfinite(logits[static_cast<size_t>(token)]),
         what + ": a token that may not be drawn");
  const double temperature = static_cast<double>(params.temperature[row]);
  if (temperature == 0.0) {
    expect(logits[static_cast<size_t>(token)] >= *std::max_element(logits.begin(), logits.end()) - 2 * slack,
           what + ": not the best token");
    return;
  }
  const Kept kept = truncate(logits, params, row, 2 * slack);
  expect(kept.perhaps[static_cast<size_t>(token)], what + ": a token that truncation drops");
  const auto noisy = [&](size_t id) {
    return logits[id] / temperature +
           gumbel(philox(static_cast<uint64_t>(params.seed[row]), static_cast<uint64_t>(params.position[row]),
                         static_cast<int64_t>(id)));
  };
  const double drawn = noisy(static_cast<size_t>(token)), tolerance = 4 * slack / temperature + 1e-4;
  for (size_t id = 0; id < logits.size(); ++id) {
    expect(!kept.surely[id] || noisy(id) <= drawn + tolerance,
           what + ": token " + std::to_string(id) + " has the larger noisy logit");
  }
}

}  // namespace

void test_sample(Random& random, const std::string& what) {
  const Layer layer = Layer::make(random);
  const Head& head = layer.head;
  const Params params(random, head.rows, head.vocabulary);
  const bool limits = random.chance(0.3), bans = random.chance(0.3), has_meta = random.chance(0.5);
  const Lists allowed(random, head.rows, head.vocabulary, 0.2), banned(random, head.rows, head.vocabulary, 0.1);
  Plain<int64_t> token(head.rows);
  Array logprob(DType::kFloat32, head.rows), meta(DType::kFloat32, has_meta ? head.rows : 0);
  HeadSampleArgs args{};
  args.head = head;
  args.meta_weight = has_meta ? layer.meta.floats() : nullptr;
  args.meta_bias = 0.25f;
  args.params = params.view();
  if (limits) args.allowed = allowed.view();
  if (bans) args.banned = banned.view();
  args.token = token.data();
  args.logprob = reinterpret_cast<float*>(logprob.data());
  args.meta = reinterpret_cast<float*>(meta.data());
  head_sample(args);
  for (int64_t row = 0; row < head.rows; ++row) {
    const std::vector<double> x = layer.normed(row);
    std::vector<double> logits(static_cast<size_t>(head.vocabulary));
    double slack = 0.0, sum = 0.0;
    const bool restricted = limits && !allowed.empty(row);
    for (int64_t id = 0; id < head.vocabulary; ++id) {
      double error = 0.0;
      const double logit = layer.logit(x, id, &error);
      slack = std::max(slack, error);
      if (!restricted || allowed.has(row, id)) sum += std::exp(logit);
      const bool may = (!restricted || allowed.has(row, id)) && (!bans || !banned.has(row, id));
      logits[static_cast<size_t>(id)] = may ? logit : -HUGE_VAL;
    }
    if (std::none_of(logits.begin(), logits.end(), [](double logit) { return std::isfinite(logit); })) {
      expect(token[row] == -1 && std::isnan(logprob.get(row)), what + ": nothing may be drawn");
      continue;
    }
    check_draw(logits, params, row, token[row], slack, what);
    expect_close(logprob, row, logits[static_cast<size_t>(token[row])] - std::log(sum), 2 * slack + 2e-5,
                 what + ": logprob");
    if (!has_meta) continue;
    double expected = 0.25, magnitude = 0.0;
    for (int64_t i = 0; i < head.depth; ++i) {
      expected += x[static_cast<size_t>(i)] * layer.meta.get(i);
      magnitude += std::fabs(x[static_cast<size_t>(i)] * layer.meta.get(i));
    }
    expect_close(meta, row, expected, (static_cast<double>(2 * head.depth) + 30.0) * kEpsilon * magnitude + 1e-7,
                 what + ": meta");
  }
}

void test_token_logits(Random& random, const std::string& what) {
  const Layer layer = Layer::make(random);
  const Lists lists(random, layer.head.rows, layer.head.vocabulary, 0.3);
  Array out(DType::kFloat32, static_cast<int64_t>(lists.ids.size()));
  TokenLogitsArgs args{};
  args.head = layer.head;
  args.lists = lists.view();
  args.out = reinterpret_cast<float*>(out.data());
  token_logits(args);
  for (int64_t row = 0; row < layer.head.rows; ++row) {
    const std::vector<double> x = layer.normed(row);
    for (int64_t i = lists.offsets[static_cast<size_t>(row)]; i < lists.offsets[static_cast<size_t>(row) + 1]; ++i) {
      double error = 0.0;
      const double expected = layer.logit(x, lists.ids[static_cast<size_t>(i)], &error);
      expect_close(out, i, expected, error + 1e-6 * std::fabs(expected), what);
    }
  }
}

void test_philox(Random& random, const std::string& what) {
  const int64_t rows = awkward(random, 0, 20), count = awkward(random, 0, 300);
  Plain<int64_t> seed(rows), position(rows), bits(rows * count);
  for (int64_t row = 0; row < rows; ++row) {
    seed[row] = static_cast<int64_t>(random.bits());
    position[row] = static_cast<int64_t>(random.bits());
  }
  philox_bits({seed.data(), position.data(), rows, count, bits.data()});
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t id = 0; id < count; ++id) {
      const uint32_t expected = philox(static_cast<uint64_t>(seed[row]), static_cast<uint64_t>(position[row]), id);
      expect(bits[row * count + id] == static_cast<int64_t>(expected), what + ": bits of id " + std::to_string(id));
    }
  }
}

}  // namespace spct::test
