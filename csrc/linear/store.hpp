// From a tile of fp32 products to a linear layer's output: scale, bias, and the rounding to its dtype.
#pragma once

#include "linear/gemm.hpp"

SPCT_BEGIN_LEVEL

/// Products of one row and up to kMaxPanels panels: a row of a task's tile.
constexpr int64_t kTileRow = kMaxPanels * kPanel;

/// Writes rows [begin, end) of `tile` [.][kTileRow], the outputs from `first_output` on, into out [rows, outputs]:
/// product * scale + bias, where there are a scale and a bias.
template <class T>
void store_rows(const float* tile, int64_t begin, int64_t end, int64_t first_output, int64_t outputs,
                const float* scale, const float* bias, void* out) {
  const int64_t width = outputs - first_output < kTileRow ? outputs - first_output : kTileRow;
  for (int64_t row = begin; row < end; ++row) {
    T* to = static_cast<T*>(out) + row * outputs + first_output;
    const float* from = tile + (row - begin) * kTileRow;
    for_vectors(width, [&](int64_t i, int count) {
      vf y = load(from + i);
      if (scale != nullptr) y = y * load_some(scale + first_output + i, count);
      if (bias != nullptr) y = y + load_some(bias + first_output + i, count);
      store_some(to + i, y, count);
    });
  }
}

SPCT_END_LEVEL
