// The draw of a row: passes over its logits (per CPU level) and what is decided between them.
#pragma once

#include <cstdint>

#include "common/level.hpp"

namespace spct {

/// The last token that truncation keeps, in the order (logit down, index up). Every step of truncation leaves a
/// beginning of that order, so this is all that has to be known.
struct Cut {
  float logit;
  int64_t index;
};

/// A token that may be the last one kept.
struct Token {
  float logit;
  float mass;
  int64_t index;
};

struct Bin {
  double mass;
  int64_t count;
};

// Bins lie over the distance below the row's largest logit, 2^bits to an octave from 2^-8 to 2^8, so that no
// temperature and no outlier makes them useless; both ends are open. Few tokens get few bins: clearing them would cost
// more than the sum.
constexpr int kMaxBinBits = 6;
constexpr int kMaxBins = 16 << kMaxBinBits;
constexpr int bin_bits(int64_t count) { return count < 16384 ? kMaxBinBits - 2 : kMaxBinBits; }
constexpr int num_bins(int64_t count) { return 16 << bin_bits(count); }

/// Slack of the contract (see sample_reference.py), and a margin that covers the fp32 arithmetic of a bound.
constexpr double kTopPSlack = 4e-7;
constexpr double kMinPSlack = 4e-7;
constexpr double kBoundMargin = 1e-5;

/// Soft cap in place, then the largest logit, its first index, and whether a logit was NaN or +Inf before the cap.
struct ScanArgs {
  float* logits;
  int64_t count;
  float softcap;  // 0: none
  float* best;
  int64_t* best_index;
  bool* failed;
};

/// mass[i] = exp((logits[i] - best) * (scale + scale_low)), zero up to the next multiple of kPadIds, and the masses'
/// sum.
struct MassArgs {
  const float* logits;
  float* mass;  // null: the sum only
  int64_t count;
  float best, scale, scale_low;
  double* total;
};

/// Mass and count per bin of a sample: every `step`-th run of tokens.
struct HistogramArgs {
  const float* logits;
  const float* mass;
  int64_t count, step;
  float best;
  Bin* bins;  // [num_bins(count)]
};

/// Mass and count of the logits above `high`, and the indices of those from `low` to `high`.
struct BetweenArgs {
  const float* logits;
  const float* mass;
  int64_t count;
  float low, high;
  Bin* above;
  int32_t* listed;  // [count + 16]: some words past the last one are written
  int64_t* num_listed;
};

/// The index of the largest (logit - best) / temperature + Gumbel among the tokens up to `cut`.
struct DrawArgs {
  const float* logits;
  const float* mass;
  const int32_t* ids;  // vocabulary ids of the tokens; null: the indices are the ids
  int64_t count, best_index;
  float best, cut_mass;
  double temperature;
  Cut cut;
  uint64_t seed, position;
  int64_t* chosen;
};

/// Philox bits of the ids 0 … count - 1 for each row.
struct BitsArgs {
  const int64_t* seed;
  const int64_t* position;
  int64_t rows, count;
  int64_t* bits;
};

/// Rows of masses are padded with zeros to a multiple of this.
constexpr int64_t kPadIds = 64;

/// What a row asks for; ranges are checked by the caller.
struct RowParams {
  float temperature, top_p, min_p;
  int32_t top_k;
  uint64_t seed, position;
};

/// A row's logits, in memory that the draw may overwrite, and the ids that they belong to.
struct RowLogits {
  float* logits;
  const int32_t* ids;  // ascending; null: 0 … count - 1
  int64_t count;
};

/// Memory of one draw, in the calling thread's scratch.
struct DrawMemory {
  float* mass;      // [count], padded to kPadIds
  int32_t* ids;     // [count]
  int32_t* listed;  // [count + 16]
  Token* tokens;    // [count]
  Bin* bins;        // [num_bins(count)]
};

/// What top-k, then top-p, then min-p leave of tokens with these logits and masses (of sum `total`).
Cut truncate(const RowLogits& row, const DrawMemory& memory, float best, double total, const RowParams& params);

/// Row i owns ids[offsets[i]] … ids[offsets[i + 1] - 1]; null offsets: every row's list is empty.
struct TokenLists {
  const int64_t* offsets;
  const int32_t* ids;
};

/// The parameters of `rows` rows, one array each.
struct SampleParams {
  const float* temperature;
  const int32_t* top_k;
  const float* top_p;
  const float* min_p;
  const int64_t* seed;
  const int64_t* position;
};

/// Rows [first, last) of a batch, with their logits, before the soft cap, in memory that the draw overwrites.
struct SampleRows {
  float* logits;       // [last - first, vocabulary]
  int64_t logits_row;  // its row stride
  int64_t first, last, vocabulary;
  SampleParams params;
  float softcap;  // 0: none
  TokenLists allowed, banned;
  int64_t* token;
  float* logprob;
};

/// Draws the token of batch row `row`, first <= row < last.
void sample_row(const SampleRows& args, int64_t row);

}  // namespace spct

SPCT_KERNEL(scan_logits, ScanArgs)
SPCT_KERNEL(fill_mass, MassArgs)
SPCT_KERNEL(fill_histogram, HistogramArgs)
SPCT_KERNEL(list_between, BetweenArgs)
SPCT_KERNEL(draw_token, DrawArgs)
SPCT_KERNEL(philox_bits, BitsArgs)
