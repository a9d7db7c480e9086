#include "attention/attention.hpp"

#include "attention/tile.hpp"
#include "attention/walk.hpp"
#include "common/parallel.hpp"
#include "common/scratch.hpp"

SPCT_BEGIN_LEVEL
namespace {

// A task is one KV head and a block of rows. At most this many flattened rows (queries and outputs of D = 64 then take
// 128 KiB), and no fewer than 48 where a block is cut for the threads' sake: each block loads its tiles anew.
constexpr int64_t kMaxFlatRows = 256;
constexpr int64_t kMinFlatRows = 48;
// Below this many multiplications, waking another thread costs more than it saves.
constexpr int64_t kSerialProducts = 1 << 16;

SPCT_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// Rows of a block: a matter of speed only, no bit depends on it.
SPCT_INLINE int64_t block_rows(const AttentionArgs& args, int64_t group) {
  const int64_t wanted = ceil_div(3 * num_threads(), args.kv_heads);
  int64_t blocks = ceil_div(args.rows * group, kMaxFlatRows);
  const int64_t most = args.rows * group / kMinFlatRows;
  if (blocks < wanted) blocks = wanted < most ? wanted : (most > blocks ? most : blocks);
  return ceil_div(args.rows, blocks);
}

/// Multiplications of a call, at most.
SPCT_INLINE int64_t products(const AttentionArgs& args) {
  int64_t keys = 0;
  for (int64_t row = 0; row < args.rows; ++row) keys += args.row_position[row] + 1;
  return keys * args.heads * (args.key_dim + args.value_dim);
}

template <class T>
void load_queries(const AttentionArgs& args, int64_t head, int64_t first, int64_t last, const RowState& state) {
  const int64_t group = args.heads / args.kv_heads, dim = args.key_dim;
  for (int64_t row = first; row < last; ++row) {
    for (int64_t g = 0; g < group; ++g) {
      const T* from = static_cast<const T*>(args.q) + (row * args.heads + head * group + g) * dim;
      float* to = state.q + (row - first) * group + g;
      for (int64_t d = 0; d < dim; d += kWidth) {
        float values[kWidth];
        store(values, load(from + d));
        for (int lane = 0; lane < kWidth; ++lane) to[(d + lane) * state.stride] = values[lane];
      }
    }
  }
}

template <class T>
void store_outputs(const AttentionArgs& args, int64_t head, int64_t first, int64_t last, const RowState& state) {
  const int64_t group = args.heads / args.kv_heads, dim = args.value_dim;
  for (int64_t row = first; row < last; ++row) {
    for (int64_t g = 0; g < group; ++g) {
      const int64_t flat = (row - first) * group + g, index = row * args.heads + head * group + g;
      const float sum = state.sum[flat];
      const vf scale = splat(sum == 0.0f ? 0.0f : 1.0f / sum);
      T* out = static_cast<T*>(args.out) + index * dim;
      for (int64_t d = 0; d < dim; d += kWidth) store(out + d, load(state.out + flat * dim + d) * scale);
      args.lse[index] = state.maximum[flat] + log(splat(sum))[0];
    }
  }
}

/// Room for one task in the thread's scratch, outputs and sums at zero.
RowState make_state(const AttentionArgs& args, int64_t rows) {
  const int64_t stride =
      ceil_div(rows, kWidth) * kWidth + kWidth;  // never a power of two: columns would share cache sets
  float* memory =
      scratch<float>(Scratch::kRowState, static_cast<size_t>(stride * (args.key_dim + 2) + rows * args.value_dim));
  RowState state{};
  state.q = memory;
  state.stride = stride;
  state.maximum = memory + stride * args.key_dim;
  state.sum = state.maximum + stride;
  state.out = state.sum + stride;
  for (int64_t row = 0; row < rows; ++row) {
    state.maximum[row] = -__builtin_inff();
    state.sum[row] = 0.0f;
  }
  std::memset(state.out, 0, static_cast<size_t>(rows * args.value_dim) * sizeof(float));
  return state;
}

template <class KV>
void run_task(const AttentionArgs& args, int64_t head, int64_t first, int64_t last) {
  const int64_t group = args.heads / args.kv_heads;
  const int tile_keys = tile_keys_for(args.key_dim, args.value_dim);
  const RowState state = make_state(args, (last - first) * group);
  float* tiles = scratch<float>(Scratch::kKeyTile, static_cast<size_t>(tile_keys * (args.key_dim + args.value_dim)));
  const KeyTile tile{tiles, tiles + tile_keys * args.key_dim};
  SPCT_FLOAT_DTYPES(args.q_dtype, load_queries<Scalar>(args, head, first, last, state))
  const Walk walk{args, tile_keys, first, last};
  int64_t num_tiles = 0;
  walk.tiles([&](const TileTask&) { ++num_tiles; });
  TileTask* tasks = scratch<TileTask>(Scratch::kSlots, static_cast<size_t>(num_tiles));
  num_tiles = 0;
  walk.tiles([&](TileTask task) {
    if (walk.visible(task)) tasks[num_tiles++] = task;
  });
  int32_t slots[2][kMaxTileKeys];
  if (num_tiles > 0) walk.gather(tasks[0], slots[0]);
  for (int64_t t = 0; t < num_tiles; ++t) {
    load_keys<KV>(args.k, head, args.key_dim, slots[t % 2], tasks[t].keys, tile.k);
    load_values<KV>(args.v, head, args.value_dim, slots[t % 2], tasks[t].keys, tile.v);
    if (t + 1 < num_tiles) {
      int32_t* next = slots[(t + 1) % 2];
      walk.gather(tasks[t + 1], next);
      prefetch_tile<KV>(args.k, head, args.key_dim, next, tasks[t + 1].keys);
      prefetch_tile<KV>(args.v, head, args.value_dim, next, tasks[t + 1].keys);
    }
    walk.runs(tasks[t], [&](int64_t begin, int64_t end, KeyRange keys) {
      attend(args, state, (begin - first) * group, (end - first) * group, tile, keys);
    });
  }
  SPCT_FLOAT_DTYPES(args.q_dtype, store_outputs<Scalar>(args, head, first, last, state))
}

template <class KV>
void run(const AttentionArgs& args) {
  const int64_t rows = block_rows(args, args.heads / args.kv_heads);
  const int64_t blocks = ceil_div(args.rows, rows);
  const auto task = [&](int64_t index) {
    // Later rows of a prefill see more keys: they start first.
    const int64_t block = blocks - 1 - index / args.kv_heads, first = block * rows;
    run_task<KV>(args, index % args.kv_heads, first, first + rows < args.rows ? first + rows : args.rows);
  };
  if (products(args) <= kSerialProducts) {
    for (int64_t index = 0; index < blocks * args.kv_heads; ++index) task(index);
  } else {
    parallel_tasks(blocks * args.kv_heads, task);
  }
}

}  // namespace

void attention(const AttentionArgs& args) {
  if (args.rows == 0) return;
  if (args.kv_dtype == DType::kInt8) return run<int8_t>(args);
  SPCT_FLOAT_DTYPES(args.kv_dtype, run<Scalar>(args))
}

SPCT_END_LEVEL
