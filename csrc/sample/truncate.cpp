// Exact truncation without sorting the vocabulary: a histogram finds the bin that holds the last kept token, and only
// that bin's tokens are looked at again, in halves of their range of logits until few are left.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "sample/sample.hpp"

namespace spct {
namespace {

// Up to so many tokens a sort costs less than another halving.
constexpr int64_t kSortTokens = 64;

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

bool comes_first(const BinToken& a, const BinToken& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.index < b.index);
}

/// The shortest beginning that reaches `target`: `held` lies before the tokens, which come by ascending index.
Beginning end_within(BinToken* tokens, int64_t count, Bin held, const Target& target) {
  while (count > kSortTokens) {
    int32_t low = std::numeric_limits<int32_t>::max(), high = std::numeric_limits<int32_t>::min();
    for (int64_t i = 0; i < count; ++i) {
      const int32_t order = order_of(tokens[i].logit);
      low = std::min(low, order);
      high = std::max(high, order);
    }
    if (low == high) break;  // all equal, so already in order
    const int32_t middle = static_cast<int32_t>((int64_t{low} + high + 1) >> 1);
    Bin upper = held;
    for (int64_t i = 0; i < count; ++i) {
      if (order_of(tokens[i].logit) < middle) continue;
      upper.mass += tokens[i].mass;
      upper.count += 1;
    }
    const bool in_upper = target.reached(upper);
    if (!in_upper) held = upper;
    const auto elsewhere = [&](const BinToken& token) { return (order_of(token.logit) >= middle) != in_upper; };
    count = std::remove_if(tokens, tokens + count, elsewhere) - tokens;
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

Beginning find_end(const RowLogits& row, const DrawMemory& memory, float best, const Target& target) {
  Bin held{0.0, 0};
  const int bins = num_bins(row.count);
  int bin = 0;
  int last_filled = 0;
  for (; bin < bins; ++bin) {
    const Bin& next = memory.bins[bin];
    if (next.count == 0) continue;
    last_filled = bin;
    const Bin with{held.mass + next.mass, held.count + next.count};
    if (target.reached(with)) break;
    held = with;
  }
  if (bin == bins) {  // never reached: the last tokens end it
    bin = last_filled;
    held.mass -= memory.bins[bin].mass;
    held.count -= memory.bins[bin].count;
  }
  int64_t num_tokens = 0;
  collect_bin({row.logits, memory.mass, row.count, best, bin, memory.tokens, &num_tokens});
  return end_within(memory.tokens, num_tokens, held, target);
}

/// The smallest logit that min-p keeps.
float min_p_floor(float best, const RowParams& params) {
  const double log_p = std::log(static_cast<double>(params.min_p));
  const double slack = params.min_p < 1.0f ? kMinPSlack * std::max(1.0, -log_p) : 0.0;
  const double floor = best + static_cast<double>(params.temperature) * (log_p - slack);
  const float nearest = static_cast<float>(floor);
  return nearest >= floor ? nearest : std::nextafter(nearest, std::numeric_limits<float>::infinity());
}

}  // namespace

Cut truncate(const RowLogits& row, const DrawMemory& memory, float best, double total, const RowParams& params) {
  Beginning kept{{-std::numeric_limits<float>::infinity(), row.count}, total};
  const bool by_count = params.top_k > 0 && params.top_k < row.count;
  const bool by_mass = params.top_p < 1.0f;
  if (by_count || by_mass) {
    // All tokens lighter than the floor together hold less than half of what top-p drops: the end lies above.
    const double floor = by_count ? 0.0 : (1.0 - params.top_p) * total / (2.0 * static_cast<double>(row.count));
    fill_histogram({row.logits, memory.mass, row.count, best, static_cast<float>(floor), memory.bins});
  }
  if (by_count) kept = find_end(row, memory, best, {params.top_k, 0.0});
  if (by_mass) kept = find_end(row, memory, best, {0, kept.mass * params.top_p * (1.0 - kTopPSlack)});
  if (params.min_p > 0.0f) {
    const float floor = min_p_floor(best, params);
    if (floor > kept.cut.logit) kept.cut = {floor, row.count};
  }
  return kept.cut;
}

}  // namespace spct
