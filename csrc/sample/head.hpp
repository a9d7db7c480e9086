// The output head: final norm, LM head, draw and meta logit, a batch of rows at a time.
#pragma once

#include "common/number.hpp"
#include "sample/sample.hpp"

namespace spct {

/// The final norm and the LM head of `rows` rows. weight is [vocabulary, depth], or packed as in linear/gemm.hpp; int8
/// is packed as in linear/int8.hpp, and the normed rows are quantised for it.
struct Head {
  const float* hidden;       // [rows, depth]
  const float* norm_weight;  // [depth]
  const void* weight;
  DType weight_dtype;
  bool packed;
  const float* scale;   // [vocabulary], for int8
  const int32_t* sums;  // [ceil(vocabulary/16) * 16], for int8
  int64_t rows, depth, vocabulary;
  float norm_eps;
  float softcap;  // 0: none
};

/// See `spct_kernels.fused_sample`.
struct HeadSampleArgs {
  Head head;
  const float* meta_weight;  // [depth], or null
  float meta_bias;
  SampleParams params;
  TokenLists allowed, banned;
  int64_t* token;
  float* logprob;
  float* meta;  // [rows], written where there is a meta_weight
};

/// out[i] = the logit of lists.ids[i] in its row, after the soft cap.
struct TokenLogitsArgs {
  Head head;
  TokenLists lists;
  float* out;
};

}  // namespace spct

SPCT_KERNEL(head_sample, HeadSampleArgs)
SPCT_KERNEL(token_logits, TokenLogitsArgs)
