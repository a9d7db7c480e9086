// Exact truncation without sorting the vocabulary: a sample says between which two logits the last kept token probably
// lies. One pass then sums what lies above them, which proves it, and lists the few percent between them; these are
// looked at in ever smaller parts of their range until few enough to sort are left.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "sample/sample.hpp"

namespace spct {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Up to so many tokens a sort costs less than another round of parts.
constexpr int64_t kSortTokens = 8;
constexpr int kPartBits = 6;
// Tokens of a sample, at most twice as many: enough that only a few percent of a row remain in doubt.
constexpr int64_t kSampleTokens = 4096;
// A row of fewer tokens is looked at as a whole.
constexpr int64_t kMinSampled = 512;
// Doubt about a sum: up to four standard deviations.
constexpr double kDoubt = 16.0;
constexpr double kMoreTokens = 4.0;

/// A beginning of the order (logit down, index up): where it ends and what it holds.
struct Beginning {
  Cut cut;
  double mass;
};

/// How much of a beginning is asked for: a number of tokens, or a mass.
struct Target {
  int64_t count;  // 0: by mass
  double mass;

  bool reached(const Bin& held) const { return count > 0 ? held.count >= count : held.mass >= mass; }
};

/// Integers in the order of the floats, both zeros being one number.
int32_t order_of(float logit) {
  const float folded = logit + 0.0f;
  int32_t bits;
  std::memcpy(&bits, &folded, sizeof(bits));
  return bits >= 0 ? bits : INT32_MIN - bits;
}

bool comes_first(const Token& a, const Token& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.index < b.index);
}

/// The shortest beginning that reaches `target`: `held` lies before the tokens, which come by ascending index.
Beginning end_within(Token* tokens, int64_t count, Bin held, const Target& target) {
  while (count > kSortTokens) {
    int32_t low = std::numeric_limits<int32_t>::max(), high = std::numeric_limits<int32_t>::min();
    for (int64_t i = 0; i < count; ++i) {
      const int32_t order = order_of(tokens[i].logit);
      low = std::min(low, order);
      high = std::max(high, order);
    }
    if (low == high) break;  // all equal, so already in order
    // The best and the last token lie in different parts, so that each round leaves fewer tokens.
    const uint32_t range = static_cast<uint32_t>(high) - static_cast<uint32_t>(low);
    const int shift = std::max(0, static_cast<int>(std::bit_width(range)) - kPartBits);
    const auto part_of = [&](const Token& token) {
      return (static_cast<uint32_t>(high) - static_cast<uint32_t>(order_of(token.logit))) >> shift;
    };
    Bin parts[1 << kPartBits] = {};
    for (int64_t i = 0; i < count; ++i) {
      Bin& part = parts[part_of(tokens[i])];
      part.mass += tokens[i].mass;
      part.count += 1;
    }
    const uint32_t last = range >> shift;
    uint32_t part = 0;
    for (; part < last; ++part) {
      const Bin with{held.mass + parts[part].mass, held.count + parts[part].count};
      if (target.reached(with)) break;
      held = with;
    }
    count = std::remove_if(tokens, tokens + count, [&](const Token& token) { return part_of(token) != part; }) - tokens;
  }
  if (count <= kSortTokens) std::sort(tokens, tokens + count, comes_first);
  int64_t last = 0;
  for (; last < count; ++last) {
    held.mass += tokens[last].mass;
    held.count += 1;
    if (target.reached(held)) break;
  }
  last = std::min(last, count - 1);  // rounding may leave the sum just short of a target near all there is
  return {{tokens[last].logit, tokens[last].index}, held.mass};
}

/// Logits between which an end lies.
struct Bracket {
  float low, high;
};

/// Distance below the best logit at which a bin begins.
float bin_begin(int bin, int bits) {
  const int32_t pattern = (bin + ((127 - 8) << bits)) << (23 - bits);
  float distance;
  std::memcpy(&distance, &pattern, sizeof(distance));
  return distance;
}

/// Where the end lies, almost certainly, by a sample: one of `step` tokens is in the bins. Counted from the top, or, by
/// mass, summed from the bottom: there no token that the sample lacks is heavy, and the `total` is known.
Bracket probable_end(const Bin* bins, int bits, int64_t step, float best, double total, const Target& target) {
  const bool by_count = target.count > 0;
  const double wanted =
      (by_count ? static_cast<double>(target.count) : total - target.mass) / static_cast<double>(step);
  const int last = (16 << bits) - 1;
  int near = 0, far = last;  // steps of the walk: the end lies neither before nor after
  double sum = 0.0, squares = 0.0;
  for (int i = 0; i <= far; ++i) {
    const Bin& bin = bins[by_count ? i : last - i];
    if (bin.count == 0) continue;
    const double count = static_cast<double>(bin.count), weight = by_count ? 1.0 : bin.mass / count;
    sum += weight * count;
    squares += weight * weight * count;
    const double missing = wanted - sum;
    if (missing * missing <= kDoubt * (squares + kMoreTokens * weight * weight)) continue;
    if (missing > 0.0) {
      near = std::min(i + 1, last);
    } else {
      far = i;
    }
  }
  const int first_bin = by_count ? near : last - far, last_bin = by_count ? far : last - near;
  return {last_bin == last ? -kInfinity : best - bin_begin(last_bin + 1, bits),
          first_bin == 0 ? kInfinity : best - bin_begin(first_bin, bits)};
}

struct Row {
  const RowLogits& logits;
  const DrawMemory& memory;
  float best;
  double total;
};

Beginning find_end(const Row& row, const Target& target) {
  const int64_t count = row.logits.count;
  const float* logits = row.logits.logits;
  const DrawMemory& memory = row.memory;
  Bracket bracket{-kInfinity, kInfinity};
  if (count >= kMinSampled) {
    const int64_t step = std::max<int64_t>(2, count / kSampleTokens);
    fill_histogram({logits, memory.mass, count, step, row.best, memory.bins});
    bracket = probable_end(memory.bins, bin_bits(count), step, row.best, row.total, target);
  }
  for (bool is_sure = false;; is_sure = true) {
    Bin above;
    int64_t num_listed = 0;
    list_between({logits, memory.mass, count, bracket.low, bracket.high, &above, memory.listed, &num_listed});
    Bin both = above;
    for (int64_t i = 0; i < num_listed; ++i) {
      const int32_t index = memory.listed[i];
      memory.tokens[i] = {logits[index], memory.mass[index], index};
      both.mass += memory.mass[index];
    }
    both.count += num_listed;
    if (!is_sure && bracket.high < kInfinity && target.reached(above)) {
      bracket = {bracket.high, kInfinity};
    } else if (!is_sure && bracket.low > -kInfinity && !target.reached(both)) {
      bracket = {-kInfinity, bracket.low};
    } else {
      return end_within(memory.tokens, num_listed, above, target);
    }
  }
}

/// The smallest logit that min-p keeps.
float min_p_floor(float best, const RowParams& params) {
  const double log_p = std::log(static_cast<double>(params.min_p));
  const double slack = params.min_p < 1.0f ? kMinPSlack * std::max(1.0, -log_p) : 0.0;
  const double floor = best + static_cast<double>(params.temperature) * (log_p - slack);
  const float nearest = static_cast<float>(floor);
  return nearest >= floor ? nearest : std::nextafter(nearest, kInfinity);
}

}  // namespace

Cut truncate(const RowLogits& logits, const DrawMemory& memory, float best, double total, const RowParams& params) {
  const Row row{logits, memory, best, total};
  Beginning kept{{-kInfinity, logits.count}, total};
  if (params.top_k > 0 && params.top_k < logits.count) kept = find_end(row, {params.top_k, 0.0});
  if (params.top_p < 1.0f) kept = find_end(row, {0, kept.mass * params.top_p * (1.0 - kTopPSlack)});
  if (params.min_p > 0.0f) {
    const float floor = min_p_floor(best, params);
    if (floor > kept.cut.logit) kept.cut = {floor, logits.count};
  }
  return kept.cut;
}

}  // namespace spct
