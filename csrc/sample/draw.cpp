// A row's draw, from its logits to its token.
#include <algorithm>
#include <cmath>
#include <limits>

#include "common/scratch.hpp"
#include "sample/sample.hpp"

namespace spct {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct RowDraw {
  int64_t token;
  float logprob;
};

constexpr RowDraw kFailed{-1, std::numeric_limits<float>::quiet_NaN()};

struct IdList {
  const int32_t* ids;
  int64_t count;
};

IdList list_of(const TokenLists& lists, int64_t row) {
  if (lists.offsets == nullptr) return {nullptr, 0};
  return {lists.ids + lists.offsets[row], lists.offsets[row + 1] - lists.offsets[row]};
}

DrawMemory draw_memory(int64_t count) {
  const size_t padded = static_cast<size_t>((count + 2 * kPadIds - 1) / kPadIds * kPadIds);
  char* memory = scratch<char>(Scratch::kSampler,
                               kMaxBins * sizeof(Bin) + padded * (sizeof(Token) + sizeof(float) + 2 * sizeof(int32_t)));
  DrawMemory parts{};
  parts.bins = reinterpret_cast<Bin*>(memory);
  parts.tokens = reinterpret_cast<Token*>(parts.bins + kMaxBins);
  parts.mass = reinterpret_cast<float*>(parts.tokens + padded);
  parts.ids = reinterpret_cast<int32_t*>(parts.mass + padded);
  parts.listed = parts.ids + padded;
  return parts;
}

/// Only the logits of the listed ids, moved to the row's beginning in the order of the ids, each once.
RowLogits restrict_row(float* logits, const IdList& allowed, int32_t* ids) {
  int32_t* end = std::copy(allowed.ids, allowed.ids + allowed.count, ids);
  std::sort(ids, end);
  const int64_t count = std::unique(ids, end) - ids;
  for (int64_t i = 0; i < count; ++i) logits[i] = logits[ids[i]];
  return {logits, ids, count};
}

/// Takes the mass of banned ids away; returns whether the row had one of them.
bool remove_banned(const RowLogits& row, const IdList& banned) {
  bool removed = false;
  for (int64_t i = 0; i < banned.count; ++i) {
    int64_t index = banned.ids[i];
    if (row.ids != nullptr) {
      const int32_t* end = row.ids + row.count;
      const int32_t* place = std::lower_bound(row.ids, end, banned.ids[i]);
      if (place == end || *place != banned.ids[i]) continue;
      index = place - row.ids;
    }
    row.logits[index] = -kInfinity;
    removed = true;
  }
  return removed;
}

/// Masses at the row's temperature; the reciprocal is kept in two parts, and finite for the smallest temperature.
double tempered_mass(const RowLogits& row, const DrawMemory& memory, float best, float temperature) {
  const double scale = std::min(1.0 / temperature, 1e38);
  const float high = static_cast<float>(scale);
  double total = 0.0;
  fill_mass({row.logits, memory.mass, row.count, best, high, static_cast<float>(scale - high), &total});
  return total;
}

RowDraw draw_row(const RowLogits& row, const DrawMemory& memory, const RowParams& params, float softcap,
                 const IdList& banned) {
  float best = 0.0f;
  int64_t chosen = 0;
  bool failed = false;
  scan_logits({row.logits, row.count, softcap, &best, &chosen, &failed});
  if (failed || best == -kInfinity) return kFailed;

  const float largest = best;
  const bool one_pass = params.temperature == 1.0f && banned.count == 0;  // the masses are the normaliser's terms
  double normaliser = 0.0;
  fill_mass({row.logits, one_pass ? memory.mass : nullptr, row.count, best, 1.0f, 0.0f, &normaliser});
  if (remove_banned(row, banned)) {
    scan_logits({row.logits, row.count, 0.0f, &best, &chosen, &failed});
    if (best == -kInfinity) return kFailed;
  }
  if (params.temperature > 0.0f && params.top_k != 1) {
    const double total = one_pass ? normaliser : tempered_mass(row, memory, best, params.temperature);
    const Cut cut = truncate(row, memory, best, total, params);
    const double distance = (static_cast<double>(cut.logit) - best) / params.temperature;
    const float cut_mass = distance < -60.0 ? 0.0f : static_cast<float>(std::exp(distance));
    draw_token({row.logits, memory.mass, row.ids, row.count, chosen, best, cut_mass, params.temperature, cut,
                params.seed, params.position, &chosen});
  }
  const double logprob = static_cast<double>(row.logits[chosen]) - largest - std::log(normaliser);
  return {row.ids != nullptr ? row.ids[chosen] : chosen, static_cast<float>(logprob)};
}

RowParams params_of(const SampleParams& params, int64_t row) {
  return {params.temperature[row],
          params.top_p[row],
          params.min_p[row],
          params.top_k[row],
          static_cast<uint64_t>(params.seed[row]),
          static_cast<uint64_t>(params.position[row])};
}

}  // namespace

void sample_row(const SampleRows& args, int64_t row) {
  float* logits = args.logits + (row - args.first) * args.logits_row;
  const DrawMemory memory = draw_memory(args.vocabulary);
  const IdList allowed = list_of(args.allowed, row);
  const RowLogits tokens =
      allowed.count > 0 ? restrict_row(logits, allowed, memory.ids) : RowLogits{logits, nullptr, args.vocabulary};
  const RowDraw draw = draw_row(tokens, memory, params_of(args.params, row), args.softcap, list_of(args.banned, row));
  args.token[row] = draw.token;
  args.logprob[row] = draw.logprob;
}

}  // namespace spct
