// How the head is cut. Many rows over a small vocabulary: each thread takes some rows through the whole head, with
// their logits in its own L2. Else: the threads share the head's panels, so that it is read once, then the rows.
#include "sample/head.hpp"

#include "common/parallel.hpp"
#include "common/scratch.hpp"
#include "elementwise/elementwise.hpp"
#include "linear/gemm.hpp"
#include "sample/soft_cap.hpp"

SPCT_BEGIN_LEVEL
namespace {

// Logits of one thread's rows: half of a 1 MiB L2, the other half is for the head's panels.
constexpr int64_t kOwnLogits = int64_t{1} << 17;
// Logits of rows that share one reading of the head: 64 MiB.
constexpr int64_t kSharedLogits = int64_t{1} << 24;

SPCT_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
SPCT_INLINE int64_t padded_vocabulary(const Head& head) { return (head.vocabulary + kPanel - 1) / kPanel * kPanel; }

/// Final norm of rows [first, first + rows), and their meta logits.
void norm_rows(const HeadSampleArgs& args, int64_t first, int64_t rows, float* normed) {
  const Head& head = args.head;
  RmsNormArgs norm{};
  norm.x = head.hidden + first * head.depth;
  norm.weight = head.norm_weight;
  norm.out = normed;
  norm.rows = rows;
  norm.width = head.depth;
  norm.eps = head.norm_eps;
  SPCT_LEVEL::rms_norm(norm);
  if (args.meta_weight == nullptr) return;
  for (int64_t row = 0; row < rows; ++row) {
    vf sum{};
    for_vectors(head.depth, [&](int64_t i, int count) {
      sum = fma(load_some(normed + row * head.depth + i, count), load_some(args.meta_weight + i, count), sum);
    });
    args.meta[first + row] = reduce_add(sum) + args.meta_bias;
  }
}

/// Panels [first, first + count) of the head, in the packed layout; a plain weight is packed into `memory`.
template <class W>
const W* panels_of(const Head& head, int64_t first, int64_t count, W* memory) {
  const W* weight = static_cast<const W*>(head.weight);
  if (head.packed) return weight + first * head.depth * kPanel;
  for (int64_t panel = first; panel < first + count; ++panel) {
    const int64_t outputs = smaller(kPanel, head.vocabulary - panel * kPanel);
    pack_panel(weight + panel * kPanel * head.depth, head.depth, outputs, head.depth,
               memory + (panel - first) * head.depth * kPanel);
  }
  return memory;
}

SampleRows draws_of(const HeadSampleArgs& args, int64_t first, int64_t rows, float* logits) {
  SampleRows draws{};
  draws.logits = logits;
  draws.logits_row = padded_vocabulary(args.head);
  draws.first = first;
  draws.last = first + rows;
  draws.vocabulary = args.head.vocabulary;
  draws.params = args.params;
  draws.softcap = args.head.softcap;
  draws.allowed = args.allowed;
  draws.banned = args.banned;
  draws.token = args.token;
  draws.logprob = args.logprob;
  return draws;
}

/// Each thread takes `step` rows at a time through the whole head.
template <class W>
void sample_by_rows(const HeadSampleArgs& args, int64_t step) {
  const Head& head = args.head;
  const int64_t width = padded_vocabulary(head), num_panels = width / kPanel;
  W* memory = head.packed ? nullptr : scratch<W>(Scratch::kPanel, static_cast<size_t>(width * head.depth));
  const W* panels = panels_of(head, 0, num_panels, memory);
  parallel_tasks((head.rows + step - 1) / step, [&](int64_t task) {
    const int64_t first = task * step, rows = smaller(step, head.rows - first);
    float* normed = scratch<float>(Scratch::kHidden, static_cast<size_t>(2 * step * head.depth));
    float* packed = normed + step * head.depth;
    float* logits = scratch<float>(Scratch::kLogits, static_cast<size_t>(step * width));
    norm_rows(args, first, rows, normed);
    pack_rows(normed, head.depth, rows, head.depth, packed);
    multiply_panels(packed, rows, head.depth, panels, num_panels, logits, width);
    const SampleRows draws = draws_of(args, first, rows, logits);
    for (int64_t row = first; row < first + rows; ++row) sample_row(draws, row);
  });
}

/// All threads take `step` rows at a time through the head: first by panels, then by rows.
template <class W>
void sample_by_panels(const HeadSampleArgs& args, int64_t step) {
  const Head& head = args.head;
  const int64_t width = padded_vocabulary(head), num_panels = width / kPanel;
  const int64_t groups = (num_panels + kMaxPanels - 1) / kMaxPanels;
  float* normed = scratch<float>(Scratch::kHidden, static_cast<size_t>(2 * step * head.depth));
  float* packed = normed + step * head.depth;
  float* logits = scratch<float>(Scratch::kLogits, static_cast<size_t>(step * width));
  for (int64_t first = 0; first < head.rows; first += step) {
    const int64_t rows = smaller(step, head.rows - first);
    norm_rows(args, first, rows, normed);
    pack_rows(normed, head.depth, rows, head.depth, packed);
    parallel_tasks(groups, [&](int64_t group) {
      const int64_t panel = group * kMaxPanels, count = smaller(kMaxPanels, num_panels - panel);
      W* memory =
          head.packed ? nullptr : scratch<W>(Scratch::kPanel, static_cast<size_t>(kMaxPanels * kPanel * head.depth));
      multiply_panels(packed, rows, head.depth, panels_of(head, panel, count, memory), count, logits + panel * kPanel,
                      width);
    });
    const SampleRows draws = draws_of(args, first, rows, logits);
    parallel_tasks(rows, [&](int64_t row) { sample_row(draws, first + row); });
  }
}

template <class W>
void sample_head(const HeadSampleArgs& args) {
  const int64_t width = padded_vocabulary(args.head);
  // Multiples of the row tile's height, so that no tile is cut.
  const int64_t own = kOwnLogits / width / kMaxRows * kMaxRows;
  if (own >= 2 * kMaxRows && args.head.rows >= num_threads() * kMaxRows) {
    const int64_t share = (args.head.rows / num_threads() + kMaxRows - 1) / kMaxRows * kMaxRows;
    return sample_by_rows<W>(args, smaller(own, share));
  }
  const int64_t shared = kSharedLogits / width / kMaxRows * kMaxRows;
  sample_by_panels<W>(args, smaller(args.head.rows, shared > 0 ? shared : 1));
}

/// Logits of up to kPanel ids of one row: their rows of the head make one panel.
template <class W>
void list_logits(const Head& head, const float* normed, const int32_t* ids, int64_t count, W* panel, float* out) {
  const W* weight = static_cast<const W*>(head.weight);
  for (int64_t j = 0; j < kPanel; ++j) {
    const int64_t id = ids[j < count ? j : 0];
    const W* from = head.packed ? weight + id / kPanel * head.depth * kPanel + id % kPanel : weight + id * head.depth;
    const int64_t stride = head.packed ? kPanel : 1;
    for (int64_t k = 0; k < head.depth; ++k) panel[k * kPanel + j] = from[k * stride];
  }
  float logits[kPanel];
  multiply_panels(normed, 1, head.depth, panel, 1, logits, kPanel);
  for (int64_t j = 0; j < kPanel; j += kWidth) {
    const vf capped = soft_cap(load(logits + j), head.softcap);
    for (int64_t lane = 0; lane < kWidth && j + lane < count; ++lane) out[j + lane] = capped[lane];
  }
}

template <class W>
void list_rows(const TokenLogitsArgs& args) {
  const Head& head = args.head;
  parallel_tasks(head.rows, [&](int64_t row) {
    const int64_t begin = args.lists.offsets[row], end = args.lists.offsets[row + 1];
    if (begin == end) return;
    float* normed = scratch<float>(Scratch::kHidden, static_cast<size_t>(head.depth));
    W* panel = scratch<W>(Scratch::kPanel, static_cast<size_t>(kPanel * head.depth));
    HeadSampleArgs one{};
    one.head = head;
    norm_rows(one, row, 1, normed);
    for (int64_t i = begin; i < end; i += kPanel) {
      list_logits(head, normed, args.lists.ids + i, smaller(kPanel, end - i), panel, args.out + i);
    }
  });
}

}  // namespace

void head_sample(const HeadSampleArgs& args) {
  if (args.head.rows == 0) return;
  SPCT_FLOAT_DTYPES(args.head.weight_dtype, return sample_head<Scalar>(args))
}

void token_logits(const TokenLogitsArgs& args){
    SPCT_FLOAT_DTYPES(args.head.weight_dtype, return list_rows<Scalar>(args))}

SPCT_END_LEVEL
