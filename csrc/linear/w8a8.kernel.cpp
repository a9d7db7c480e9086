#include "common/parallel.hpp"
#include "common/scratch.hpp"
#include "linear/int8.hpp"
#include "linear/linear.hpp"
#include "linear/store.hpp"

SPCT_BEGIN_LEVEL
namespace {

// A task is a block of rows (quantised rows that stay in L2: 192 * 2,048 inputs = 384 KiB) times a few groups of
// panels.
constexpr int64_t kBlockTiles = 192 / kInt8Rows;
// Below this many multiplications, waking another thread costs more than it saves.
constexpr int64_t kSerialProducts = 1 << 18;

template <class T>
void run(const LinearW8A8Args& args) {
  const int64_t rows = args.rows, depth = args.inputs, tiles = num_row_tiles<kInt8Rows>(rows);
  const int64_t num_panels = (args.outputs + kPanel - 1) / kPanel;
  const Int8Weight weight{args.weight, args.scale, args.sums, args.outputs, depth};
  const size_t words = static_cast<size_t>(int8_rows_words(rows, depth));
  const Int8Rows quantised(scratch<float>(Scratch::kPackedRows, words), rows);
  const bool serial = rows * depth * args.outputs <= kSerialProducts;
  parallel_for(0, tiles, serial ? tiles : kBlockTiles, [&](int64_t first, int64_t last) {
    quantise_row_tiles(static_cast<const T*>(args.x), depth, rows, depth, first, last, quantised);
  });
  const int64_t width = task_panels(num_panels, num_threads());
  const int64_t spans = (num_panels + width - 1) / width;
  const int64_t blocks = (tiles + kBlockTiles - 1) / kBlockTiles;
  const auto task = [&](int64_t index) {
    alignas(64) float products[kInt8Rows * kTileRow];
    TileShapes shapes;
    const int64_t block = index / spans, first = index % spans * width;
    const int64_t end = first + width < num_panels ? first + width : num_panels;
    const int64_t begin = block * kBlockTiles, last = begin + kBlockTiles < tiles ? begin + kBlockTiles : tiles;
    // Groups of panels outside: one comes from memory once and stays in cache for all row tiles of the block.
    for (int64_t panel = first; panel < end; panel += kMaxPanels) {
      const int64_t count = end - panel < kMaxPanels ? end - panel : kMaxPanels;
      for (int64_t tile = begin; tile < last; ++tile) {
        multiply_int8_tile_panels(shapes, quantised, rows, tile, weight.from(panel), count, end - panel, tile > begin,
                                  products, kTileRow);
        store_rows<T>(products, tile_begin<kInt8Rows>(rows, tile), tile_begin<kInt8Rows>(rows, tile + 1),
                      panel * kPanel, args.outputs, nullptr, args.bias, args.out);
      }
    }
    shapes.release();
  };
  if (serial) {
    for (int64_t index = 0; index < blocks * spans; ++index) task(index);
  } else {
    parallel_tasks(blocks * spans, task);
  }
}

}  // namespace

void linear_w8a8(const LinearW8A8Args& args) {
  if (args.rows == 0 || args.outputs == 0) return;
  SPCT_FLOAT_DTYPES(args.dtype, run<Scalar>(args))
}

SPCT_END_LEVEL
