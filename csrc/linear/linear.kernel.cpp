#include "linear/linear.hpp"

#include "common/parallel.hpp"
#include "common/scratch.hpp"
#include "linear/bf16.hpp"
#include "linear/gemm.hpp"
#include "linear/store.hpp"

SPCT_BEGIN_LEVEL
namespace {

// From this many row tiles on, narrower panels are converted once for all of them.
constexpr int64_t kWideningTiles = 3;
// Below this many multiplications, waking another thread costs more than it saves.
constexpr int64_t kSerialProducts = 1 << 16;

/// How rows are packed and multiplied with a few panels [count][depth][16], in fp32. A task is a block of row tiles
/// times four panels. PairProducts in bf16.hpp has the same members.
template <class T, class W>
class WideProducts {
 public:
  typedef float Packed;
  static constexpr int kRows = kMaxRows;
  static constexpr int64_t kBlockTiles = 16;  // 192 rows of 1,024 inputs at AVX-512: 768 KiB stay in L2
  static int64_t row_length(int64_t depth) { return depth; }

  static void pack(const T* x, int64_t rows, int64_t depth, int64_t first, int64_t last, float* packed) {
    pack_row_tiles(x, depth, rows, depth, first, last, packed);
  }

  /// For the sake of several row tiles, narrower weights are converted once rather than by each of them.
  WideProducts(const W* panels, int64_t count, int64_t depth, int64_t tiles) : panels_(panels), depth_(depth) {
    if (sizeof(W) == sizeof(float) || tiles < kWideningTiles) return;
    const int64_t length = count * depth * kPanel;
    float* wide = scratch<float>(Scratch::kPanel, static_cast<size_t>(length));
    for (int64_t i = 0; i < length; i += kWidth) store(wide + i, load(panels + i));
    wide_ = wide;
  }

  void multiply(TileShapes&, const float* packed, int64_t rows, int64_t tile, int64_t count, float* out) const {
    if (wide_ != nullptr) {
      multiply_tile_panels(packed, rows, tile, depth_, wide_, count, out, kTileRow);
    } else {
      multiply_tile_panels(packed, rows, tile, depth_, panels_, count, out, kTileRow);
    }
  }

 private:
  const W* panels_;
  const float* wide_ = nullptr;
  int64_t depth_;
};

template <class T, class W, class Products>
void run(const LinearArgs& args) {
  constexpr int kRows = Products::kRows;
  constexpr int64_t kBlockTiles = Products::kBlockTiles;
  const int64_t rows = args.rows, depth = args.inputs, tiles = num_row_tiles<kRows>(rows);
  const int64_t num_panels = (args.outputs + kPanel - 1) / kPanel;
  const W* weight = static_cast<const W*>(args.weight);
  const size_t length = static_cast<size_t>(rows * Products::row_length(depth));
  auto* packed = scratch<typename Products::Packed>(Scratch::kPackedRows, length);
  const bool serial = rows * depth * args.outputs <= kSerialProducts;
  parallel_for(0, tiles, serial ? tiles : kBlockTiles, [&](int64_t first, int64_t last) {
    Products::pack(static_cast<const T*>(args.x), rows, depth, first, last, packed);
  });
  const int64_t groups = (num_panels + kMaxPanels - 1) / kMaxPanels;
  const int64_t blocks = (tiles + kBlockTiles - 1) / kBlockTiles;
  const auto task = [&](int64_t index) {
    alignas(64) float products[kRows * kTileRow];
    TileShapes shapes;
    const int64_t block = index / groups, panel = index % groups * kMaxPanels;
    const int64_t count = num_panels - panel < kMaxPanels ? num_panels - panel : kMaxPanels;
    const int64_t first = block * kBlockTiles, last = first + kBlockTiles < tiles ? first + kBlockTiles : tiles;
    const Products panels(weight + panel * depth * kPanel, count, depth, last - first);
    for (int64_t tile = first; tile < last; ++tile) {
      panels.multiply(shapes, packed, rows, tile, count, products);
      store_rows<T>(products, tile_begin<kRows>(rows, tile), tile_begin<kRows>(rows, tile + 1), panel * kPanel,
                    args.outputs, args.scale, args.bias, args.out);
    }
    shapes.release();
  };
  if (serial) {
    for (int64_t index = 0; index < blocks * groups; ++index) task(index);
  } else {
    parallel_tasks(blocks * groups, task);
  }
}

template <class T>
void run_weight(const LinearArgs& args) {
  if (args.weight_dtype == DType::kInt8) return run<T, int8_t, WideProducts<T, int8_t>>(args);
  SPCT_FLOAT_DTYPES(args.weight_dtype, run<T, Scalar, WideProducts<T, Scalar>>(args))
}

}  // namespace

void linear(const LinearArgs& args) {
  if (args.rows == 0 || args.outputs == 0) return;
#if defined(__AVX512BF16__)
  if (args.dtype == DType::kBFloat16 && args.weight_dtype == DType::kBFloat16) {
    return run<BFloat16, BFloat16, PairProducts>(args);
  }
#endif
  SPCT_FLOAT_DTYPES(args.dtype, run_weight<Scalar>(args))
}

SPCT_END_LEVEL
