// The LM head's products with normed rows, for each way that its weight is stored: one class each, with the same
// members.
//
//   kRows                                    rows of a tile: a number of rows that is a multiple of it cuts none
//   words(rows, depth)                       fp32 words that packed rows take
//   pack(head, normed, rows, packed)         rows [rows, depth] as `multiply` reads them
//   Products(head, first, count)             panels [first, first + count); valid until the thread's next one
//     .multiply(packed, rows, out, out_row)  out[r * out_row + 16 p + j]
//   multiply_ids(head, packed, ids, count, out)   products of one packed row with `count` <= 16 ids, the same bits
#pragma once

#include "common/scratch.hpp"
#include "linear/int8.hpp"
#include "sample/head.hpp"

SPCT_BEGIN_LEVEL

SPCT_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
SPCT_INLINE int64_t padded_vocabulary(const Head& head) { return (head.vocabulary + kPanel - 1) / kPanel * kPanel; }

/// Memory of the calling thread for `rows` rows: normed, and packed.
struct RowMemory {
  float *normed, *packed;
};

template <class Products>
RowMemory row_memory(const Head& head, int64_t rows) {
  const int64_t normed = rows * head.depth;
  const size_t words = static_cast<size_t>(normed + Products::words(rows, head.depth));
  float* memory = scratch<float>(Scratch::kHidden, words);
  return {memory, memory + normed};
}

/// fp32 arithmetic; W is float, BFloat16 or Half. A plain weight is packed into the thread's kPanel scratch.
template <class W>
class FloatProducts {
 public:
  static constexpr int kRows = kMaxRows;
  static int64_t words(int64_t rows, int64_t depth) { return rows * depth; }

  static void pack(const Head& head, const float* normed, int64_t rows, float* packed) {
    pack_rows(normed, head.depth, rows, head.depth, packed);
  }

  FloatProducts(const Head& head, int64_t first, int64_t count)
      : depth_(head.depth), count_(count), panels_(static_cast<const W*>(head.weight) + first * head.depth * kPanel) {
    if (head.packed) return;
    W* memory = scratch<W>(Scratch::kPanel, static_cast<size_t>(count * kPanel * head.depth));
    for (int64_t panel = 0; panel < count; ++panel) {
      const int64_t id = (first + panel) * kPanel;
      pack_panel(static_cast<const W*>(head.weight) + id * head.depth, head.depth,
                 smaller(kPanel, head.vocabulary - id), head.depth, memory + panel * head.depth * kPanel);
    }
    panels_ = memory;
  }

  void multiply(const float* packed, int64_t rows, float* out, int64_t out_row) const {
    multiply_panels(packed, rows, depth_, panels_, count_, out, out_row);
  }

  static void multiply_ids(const Head& head, const float* packed, const int32_t* ids, int64_t count, float* out) {
    const W* weight = static_cast<const W*>(head.weight);
    W* panel = scratch<W>(Scratch::kPanel, static_cast<size_t>(kPanel * head.depth));
    const int64_t stride = head.packed ? kPanel : 1;
    for (int64_t j = 0; j < kPanel; ++j) {
      const int64_t id = ids[j < count ? j : 0];
      const W* from = head.packed ? weight + id / kPanel * head.depth * kPanel + id % kPanel : weight + id * head.depth;
      for (int64_t k = 0; k < head.depth; ++k) panel[k * kPanel + j] = from[k * stride];
    }
    multiply_panels(packed, 1, head.depth, panel, 1, out, kPanel);
  }

 private:
  int64_t depth_, count_;
  const W* panels_;
};

/// int8 arithmetic: the rows are quantised, each by itself.
class Int8Products {
 public:
  static constexpr int kRows = kInt8Rows > 16 ? kInt8Rows / 2 : kInt8Rows;
  static int64_t words(int64_t rows, int64_t depth) { return int8_rows_words(rows, depth); }

  static void pack(const Head& head, const float* normed, int64_t rows, float* packed) {
    if (rows == 0) return;
    quantise_row_tiles(normed, head.depth, rows, head.depth, 0, num_row_tiles<kInt8Rows>(rows), Int8Rows(packed, rows));
  }

  Int8Products(const Head& head, int64_t first, int64_t count) : count_(count), weight_(weight_of(head).from(first)) {}

  void multiply(float* packed, int64_t rows, float* out, int64_t out_row) const {
    multiply_int8_panels(Int8Rows(packed, rows), rows, weight_, count_, out, out_row);
  }

  static void multiply_ids(const Head& head, float* packed, const int32_t* ids, int64_t count, float* out) {
    const Int8Weight weight = weight_of(head);
    const int64_t groups = num_groups(head.depth);
    int8_t* panel = scratch<int8_t>(Scratch::kPanel, static_cast<size_t>(groups * kGroupBytes));
    float scale[kPanel];
    int32_t sums[kPanel];
    for (int64_t j = 0; j < kPanel; ++j) {
      const int64_t id = ids[j < count ? j : 0];
      const int8_t* from = weight.panels + id / kPanel * groups * kGroupBytes + id % kPanel * kGroup;
      for (int64_t group = 0; group < groups; ++group) {
        __builtin_memcpy(panel + group * kGroupBytes + j * kGroup, from + group * kGroupBytes, kGroup);
      }
      scale[j] = weight.scale[id];
      sums[j] = weight.sums[id];
    }
    multiply_int8_panels(Int8Rows(packed, 1), 1, {panel, scale, sums, kPanel, head.depth}, 1, out, kPanel);
  }

 private:
  static Int8Weight weight_of(const Head& head) {
    return {static_cast<const int8_t*>(head.weight), head.scale, head.sums, head.vocabulary, head.depth};
  }

  int64_t count_;
  Int8Weight weight_;
};

SPCT_END_LEVEL
