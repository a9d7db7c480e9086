// How the head is cut. Many rows over a small vocabulary: each thread takes some rows through the whole head, with
// their logits in its own L2. Else: the threads share the head's panels, so that it is read once, then the rows.
#include "sample/head.hpp"

#include "common/parallel.hpp"
#include "common/scratch.hpp"
#include "elementwise/elementwise.hpp"
#include "sample/products.hpp"
#include "sample/soft_cap.hpp"

SPCT_BEGIN_LEVEL
namespace {

// Logits of one thread's rows: half of a 1 MiB L2, the other half is for the head's panels.
constexpr int64_t kOwnLogits = int64_t{1} << 17;
// Logits of rows that share one reading of the head: 64 MiB.
constexpr int64_t kSharedLogits = int64_t{1} << 24;

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
template <class Products>
void sample_by_rows(const HeadSampleArgs& args, int64_t step) {
  const Head& head = args.head;
  const int64_t width = padded_vocabulary(head), num_panels = width / kPanel;
  const Products all(head, 0, num_panels);
  parallel_tasks((head.rows + step - 1) / step, [&](int64_t task) {
    const int64_t first = task * step, rows = smaller(step, head.rows - first);
    const RowMemory memory = row_memory<Products>(head, step);
    float* logits = scratch<float>(Scratch::kLogits, static_cast<size_t>(step * width));
    norm_rows(args, first, rows, memory.normed);
    Products::pack(head, memory.normed, rows, memory.packed);
    all.multiply(memory.packed, rows, logits, width);
    const SampleRows draws = draws_of(args, first, rows, logits);
    for (int64_t row = first; row < first + rows; ++row) sample_row(draws, row);
  });
}

/// All threads take `step` rows at a time through the head: first by panels, then by rows.
template <class Products>
void sample_by_panels(const HeadSampleArgs& args, int64_t step) {
  const Head& head = args.head;
  const int64_t width = padded_vocabulary(head), num_panels = width / kPanel;
  // A plain weight is packed task by task, and what was packed shall stay in cache.
  const int64_t span = head.packed ? task_panels(num_panels, num_threads()) : kMaxPanels;
  const RowMemory memory = row_memory<Products>(head, step);
  float* logits = scratch<float>(Scratch::kLogits, static_cast<size_t>(step * width));
  for (int64_t first = 0; first < head.rows; first += step) {
    const int64_t rows = smaller(step, head.rows - first);
    norm_rows(args, first, rows, memory.normed);
    Products::pack(head, memory.normed, rows, memory.packed);
    parallel_tasks((num_panels + span - 1) / span, [&](int64_t task) {
      const int64_t panel = task * span, count = smaller(span, num_panels - panel);
      Products(head, panel, count).multiply(memory.packed, rows, logits + panel * kPanel, width);
    });
    const SampleRows draws = draws_of(args, first, rows, logits);
    parallel_tasks(rows, [&](int64_t row) { sample_row(draws, first + row); });
  }
}

template <class Products>
void sample_head(const HeadSampleArgs& args) {
  constexpr int64_t tile = Products::kRows;
  const int64_t width = padded_vocabulary(args.head);
  // Multiples of the row tile's height, so that no tile is cut.
  const int64_t own = kOwnLogits / width / tile * tile;
  if (own >= 2 * tile && args.head.rows >= num_threads() * tile) {
    const int64_t share = (args.head.rows / num_threads() + tile - 1) / tile * tile;
    return sample_by_rows<Products>(args, smaller(own, share));
  }
  const int64_t shared = kSharedLogits / width / tile * tile;
  sample_by_panels<Products>(args, smaller(args.head.rows, shared > 0 ? shared : 1));
}

template <class Products>
void list_rows(const TokenLogitsArgs& args) {
  const Head& head = args.head;
  parallel_tasks(head.rows, [&](int64_t row) {
    const int64_t begin = args.lists.offsets[row], end = args.lists.offsets[row + 1];
    if (begin == end) return;
    const RowMemory memory = row_memory<Products>(head, 1);
    HeadSampleArgs one{};
    one.head = head;
    norm_rows(one, row, 1, memory.normed);
    Products::pack(head, memory.normed, 1, memory.packed);
    for (int64_t i = begin; i < end; i += kPanel) {
      const int64_t count = smaller(kPanel, end - i);
      float logits[kPanel];
      Products::multiply_ids(head, memory.packed, args.lists.ids + i, count, logits);
      for (int64_t j = 0; j < kPanel; j += kWidth) {
        const vf capped = soft_cap(load(logits + j), head.softcap);
        for (int64_t lane = 0; lane < kWidth && j + lane < count; ++lane) args.out[i + j + lane] = capped[lane];
      }
    }
  });
}

}  // namespace

void head_sample(const HeadSampleArgs& args) {
  if (args.head.rows == 0) return;
  if (args.head.weight_dtype == DType::kInt8) return sample_head<Int8Products>(args);
  SPCT_FLOAT_DTYPES(args.head.weight_dtype, return sample_head<FloatProducts<Scalar>>(args))
}

void token_logits(const TokenLogitsArgs& args) {
  if (args.head.weight_dtype == DType::kInt8) return list_rows<Int8Products>(args);
  SPCT_FLOAT_DTYPES(args.head.weight_dtype, return list_rows<FloatProducts<Scalar>>(args))
}

SPCT_END_LEVEL
