#include "linear/linear.hpp"

#include "common/parallel.hpp"
#include "common/scratch.hpp"
#include "linear/gemm.hpp"
#include "linear/store.hpp"

SPCT_BEGIN_LEVEL
namespace {

// A task is a block of rows (packed rows that stay in L2: 192 * 1,024 inputs = 768 KiB) times four panels.
constexpr int64_t kBlockTiles = 16;
// From this many row tiles on, narrower panels are converted once for all of them.
constexpr int64_t kWideningTiles = 3;
// Below this many multiplications, waking another thread costs more than it saves.
constexpr int64_t kSerialProducts = 1 << 16;

/// Panels in fp32: for the sake of several row tiles, narrower weights are converted once rather than by each of them.
template <class W>
const float* widen(const W* panels, int64_t length) {
  float* wide = scratch<float>(Scratch::kPanel, static_cast<size_t>(length));
  for (int64_t i = 0; i < length; i += kWidth) store(wide + i, load(panels + i));
  return wide;
}

template <class T, class W>
void run(const LinearArgs& args) {
  const int64_t rows = args.rows, depth = args.inputs, tiles = num_row_tiles(rows);
  const int64_t num_panels = (args.outputs + kPanel - 1) / kPanel;
  const W* weight = static_cast<const W*>(args.weight);
  float* packed = scratch<float>(Scratch::kPackedRows, static_cast<size_t>(rows * depth));
  const bool serial = rows * depth * args.outputs <= kSerialProducts;
  parallel_for(0, tiles, serial ? tiles : kBlockTiles, [&](int64_t first, int64_t last) {
    pack_row_tiles(static_cast<const T*>(args.x), depth, rows, depth, first, last, packed);
  });
  const int64_t groups = (num_panels + kMaxPanels - 1) / kMaxPanels;
  const int64_t blocks = (tiles + kBlockTiles - 1) / kBlockTiles;
  const auto task = [&](int64_t index) {
    alignas(64) float products[kMaxRows * kTileRow];
    const int64_t block = index / groups, panel = index % groups * kMaxPanels;
    const int64_t count = num_panels - panel < kMaxPanels ? num_panels - panel : kMaxPanels;
    const int64_t last = (block + 1) * kBlockTiles < tiles ? (block + 1) * kBlockTiles : tiles;
    const auto multiply = [&](const auto* panels) {
      for (int64_t tile = block * kBlockTiles; tile < last; ++tile) {
        multiply_tile_panels(packed, rows, tile, depth, panels, count, products, kTileRow);
        store_rows<T>(products, tile_begin(rows, tile), tile_begin(rows, tile + 1), panel * kPanel, args.outputs,
                      args.scale, args.bias, args.out);
      }
    };
    const W* panels = weight + panel * depth * kPanel;
    if (sizeof(W) < sizeof(float) && last - block * kBlockTiles >= kWideningTiles) {
      multiply(widen(panels, count * depth * kPanel));
    } else {
      multiply(panels);
    }
  };
  if (serial) {
    for (int64_t index = 0; index < blocks * groups; ++index) task(index);
  } else {
    parallel_tasks(blocks * groups, task);
  }
}

template <class T>
void run_weight(const LinearArgs& args) {
  if (args.weight_dtype == DType::kInt8) return run<T, int8_t>(args);
  SPCT_FLOAT_DTYPES(args.weight_dtype, run<T, Scalar>(args))
}

}  // namespace

void linear(const LinearArgs& args) {
  if (args.rows == 0 || args.outputs == 0) return;
  SPCT_FLOAT_DTYPES(args.dtype, run_weight<Scalar>(args))
}

SPCT_END_LEVEL
