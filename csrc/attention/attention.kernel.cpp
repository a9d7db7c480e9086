#include "attention/attention.hpp"

#include "attention/tile.hpp"
#include "attention/tile_amx.hpp"
#include "attention/tile_bf16.hpp"
#include "attention/walk.hpp"
#include "common/parallel.hpp"
#include "common/scratch.hpp"

SPCT_BEGIN_LEVEL
namespace {

// bf16 queries on bf16 caches.
#if defined(__AMX_BF16__)
using NarrowTile = AmxTile;
#elif defined(__AVX512BF16__)
using NarrowTile = PairTile;
#endif

// A task is a block of rows and some or all KV heads; of one head at most this many flattened rows: queries and outputs
// of D = 64 then take 128 KiB in fp32.
constexpr int64_t kMaxFlatRows = 256;
// What loading a tile costs, in flattened rows that are computed over it: every block loads its tiles anew.
constexpr int64_t kTileLoadRows = 4;
// Below this many multiplications, waking another thread costs more than it saves.
constexpr int64_t kSerialProducts = 1 << 16;

SPCT_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// B: by the layer's shape only, so that a tile's K and V (fp32) stay within 64 KiB.
SPCT_INLINE int tile_keys_for(int64_t key_dim, int64_t value_dim) { return key_dim > 128 || value_dim > 128 ? 32 : 64; }

/// How the work is cut, so that the threads finish together: a matter of speed only, no bit depends on it.
struct Blocks {
  int64_t rows, heads;  // of a task
  int64_t cost;         // of the busiest thread, in flattened rows over a tile

  Blocks(const AttentionArgs& args, int64_t heads_of_task) : rows(1), heads(heads_of_task), cost(INT64_MAX) {
    const int64_t group = args.heads / args.kv_heads, parts = ceil_div(args.kv_heads, heads);
    const int64_t threads = num_threads(), fewest = ceil_div(args.rows * group, kMaxFlatRows);
    for (int64_t blocks = fewest; blocks <= args.rows && blocks < fewest + 2 * threads; ++blocks) {
      const int64_t height = ceil_div(args.rows, blocks);
      const int64_t now = ceil_div(blocks * parts, threads) * heads * (height * group + kTileLoadRows);
      if (now < cost) {
        rows = height;
        cost = now;
      }
    }
  }
};

/// All heads in one task where the threads have rows enough: a slot's keys then come from memory in one run (with 3
/// heads of 128 bytes 27 GB/s were measured, against 9 head by head).
SPCT_INLINE Blocks choose_blocks(const AttentionArgs& args) {
  const Blocks together(args, args.kv_heads), apart(args, 1);
  return 8 * apart.cost < 7 * together.cost ? apart : together;
}

/// Multiplications of a call, at most.
SPCT_INLINE int64_t products(const AttentionArgs& args) {
  int64_t keys = 0;
  for (int64_t row = 0; row < args.rows; ++row) keys += args.row_position[row] + 1;
  return keys * args.heads * (args.key_dim + args.value_dim);
}

/// Asks for the keys and values of the next tile, every head of a slot at once, a few slots at each step of the present
/// one: asked for all at once they would fill the queue of misses, and the processor would wait.
template <class Element>
struct PrefetchOf {
  const AttentionArgs& args;
  int64_t head_begin, head_end;
  const int32_t* slots;
  KeyRange keys;
  int64_t steps, done = 0;

  void step() {
    if (done >= steps) return;
    const int64_t count = keys.end - keys.begin;
    const KeyRange some{static_cast<int>(keys.begin + count * done / steps),
                        static_cast<int>(keys.begin + count * (done + 1) / steps)};
    prefetch_slots<Element>(args.k, head_begin, head_end, args.key_dim, slots, some);
    prefetch_slots<Element>(args.v, head_begin, head_end, args.value_dim, slots, some);
    ++done;
  }
};

/// KV heads [head_begin, head_end) and rows [first, last), in the arithmetic of `Tile`.
template <class Tile>
struct Task {
  using Prefetch = PrefetchOf<typename Tile::Element>;

  const AttentionArgs& args;
  int64_t head_begin, head_end, first, last;
  int64_t group = args.heads / args.kv_heads;
  int64_t flat_rows = (last - first) * group;  // of one head
  ScoreRule rule{args};
  RowState states{};  // of the first head; the others' follow
  TileShapes shapes{};
  Tile tile{};

  /// Room in the thread's scratch; outputs and sums at zero, queries loaded.
  void begin(int tile_keys) {
    const int64_t heads = head_end - head_begin, vector = flat_rows + kWidth, out = flat_rows * args.value_dim;
    const size_t query_bytes = query_bytes_of_head();
    char* memory =
        scratch<char>(Scratch::kRowState, static_cast<size_t>(heads) *
                                              (query_bytes + static_cast<size_t>(2 * vector + out) * sizeof(float)));
    states.q = memory;
    states.q_stride = Tile::query_stride(args, flat_rows);
    states.out = reinterpret_cast<float*>(memory + static_cast<size_t>(heads) * query_bytes);
    states.maximum = states.out + heads * out;
    states.sum = states.maximum + heads * vector;
    std::memset(states.out, 0, static_cast<size_t>(heads * out) * sizeof(float));
    for (int64_t row = 0; row < heads * vector; ++row) {
      states.maximum[row] = -__builtin_inff();
      states.sum[row] = 0.0f;
    }
    tile = Tile::at(scratch<char>(Scratch::kKeyTile, Tile::bytes(args, tile_keys)), args, tile_keys, shapes);
    for (int64_t head = head_begin; head < head_end; ++head) {
      const RowState state = state_of(head);
      for (int64_t flat = 0; flat < flat_rows; ++flat) Tile::load_query(args, index_of(head, flat), state, flat);
    }
  }

  size_t query_bytes_of_head() const { return (Tile::query_bytes(args, flat_rows) + 63) / 64 * 64; }

  RowState state_of(int64_t head) const {
    const int64_t at = head - head_begin, vector = flat_rows + kWidth;
    RowState state = states;
    state.q = static_cast<char*>(states.q) + static_cast<size_t>(at) * query_bytes_of_head();
    state.out += at * flat_rows * args.value_dim;
    state.maximum += at * vector;
    state.sum += at * vector;
    return state;
  }

  /// Where flattened row `flat` of a KV head stands in [T, H].
  int64_t index_of(int64_t head, int64_t flat) const {
    return (first + flat / group) * args.heads + head * group + flat % group;
  }

  /// The tile's keys that M flattened rows see: their union, and each row's own where they differ.
  template <int M>
  View view_of(const Walk& walk, const TileTask& task, int64_t flat, KeyRange (&rows)[M]) const {
    if (task.uniform) return {task.keys, nullptr};
    KeyRange keys{task.length, 0};
    bool equal = true;
    for (int m = 0; m < M; ++m) {
      const bool new_row = m == 0 || (flat + m) % group == 0;
      rows[m] = new_row ? walk.seen(task, first + (flat + m) / group) : rows[m - 1];
      keys = join(keys, rows[m]);
      equal = equal && rows[m].begin == rows[0].begin && rows[m].end == rows[0].end;
    }
    return {keys, equal ? nullptr : rows};
  }

  /// Rows [begin, end) over a tile, a register tile at a time.
  void attend(const RowState& state, const Walk& walk, const TileTask& task, int64_t begin, int64_t end,
              Prefetch& ahead) const {
    const int64_t from = (begin - first) * group, rows = (end - begin) * group,
                  tiles = num_row_tiles<Tile::kHeight>(rows);
    for (int64_t index = 0; index < tiles; ++index) {
      const int64_t at = tile_begin<Tile::kHeight>(rows, index), next = tile_begin<Tile::kHeight>(rows, index + 1);
      ahead.step();
      with_height<Tile::kHeight>(next - at, [&]<int M>() {
        KeyRange own[M];
        tile.template attend<M>(args, rule, state, from + at, view_of<M>(walk, task, from + at, own));
      });
    }
  }

  /// One head over a tile, its keys and values gathered from `slots`.
  void compute(int64_t head, const Walk& walk, const TileTask& task, const int32_t* slots, Prefetch& ahead) const {
    ahead.step();
    tile.load_keys(args.k, head, args.key_dim, slots, task.keys);
    ahead.step();
    const bool finite = tile.load_values(args.v, head, args.value_dim, slots, task.keys);
    // Zero times a NaN is NaN: rows that don't see it must not meet it, so those that see the same keys go alone, with
    // no other values in the tile.
    const bool equal = !finite && !task.uniform;
    const RowState state = state_of(head);
    walk.runs(task, equal, [&](int64_t begin, int64_t end) {
      if (equal) tile.load_values(args.v, head, args.value_dim, slots, walk.seen(task, begin));
      attend(state, walk, task, begin, end, ahead);
    });
  }

  template <class Out>
  void store_outputs(int64_t head) const {
    const int64_t dim = args.value_dim;
    const RowState state = state_of(head);
    for (int64_t flat = 0; flat < flat_rows; ++flat) {
      const int64_t index = index_of(head, flat);
      const float sum = state.sum[flat];
      const vf scale = splat(sum == 0.0f ? 0.0f : 1.0f / sum);
      Out* out = static_cast<Out*>(args.out) + index * dim;
      for (int64_t d = 0; d < dim; d += kWidth) store(out + d, load(state.out + flat * dim + d) * scale);
      args.lse[index] = state.maximum[flat] * static_cast<float>(kLn2) + log(splat(sum))[0];
    }
  }

  void run() {
    const int tile_keys = tile_keys_for(args.key_dim, args.value_dim);
    begin(tile_keys);
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
      int32_t* next = slots[(t + 1) % 2];
      Prefetch ahead{args, head_begin, head_end, next, {0, 0}, 0};
      if (t + 1 < num_tiles) {
        walk.gather(tasks[t + 1], next);
        ahead.keys = tasks[t + 1].keys;
        // A step each before the keys, the values and every register tile.
        ahead.steps =
            (head_end - head_begin) * (2 + num_row_tiles<Tile::kHeight>((tasks[t].end - tasks[t].begin) * group));
      }
      for (int64_t head = head_begin; head < head_end; ++head) compute(head, walk, tasks[t], slots[t % 2], ahead);
      while (ahead.done < ahead.steps) ahead.step();
    }
    shapes.release();
    for (int64_t head = head_begin; head < head_end; ++head) {
      SPCT_FLOAT_DTYPES(args.out_dtype, store_outputs<Scalar>(head))
    }
  }
};

template <class Tile>
void run(const AttentionArgs& args) {
  const Blocks size = choose_blocks(args);
  const int64_t blocks = ceil_div(args.rows, size.rows), parts = ceil_div(args.kv_heads, size.heads);
  const auto task = [&](int64_t index) {
    // Later rows of a prefill see more keys: they start first.
    const int64_t first = (blocks - 1 - index / parts) * size.rows, last = first + size.rows;
    const int64_t head = index % parts * size.heads, end = head + size.heads;
    Task<Tile>{args, head, end < args.kv_heads ? end : args.kv_heads, first, last < args.rows ? last : args.rows}.run();
  };
  if (products(args) <= kSerialProducts) {
    for (int64_t index = 0; index < blocks * parts; ++index) task(index);
  } else {
    parallel_tasks(blocks * parts, task);
  }
}

}  // namespace

void attention(const AttentionArgs& args) {
  if (args.rows == 0) return;
#if defined(__AVX512BF16__)
  const bool scaled = args.k.scale != nullptr || args.v.scale != nullptr;
  if (args.q_dtype == DType::kBFloat16 && args.kv_dtype == DType::kBFloat16 && !scaled) return run<NarrowTile>(args);
#endif
  if (args.kv_dtype == DType::kInt8) return run<WideTile<int8_t>>(args);
  SPCT_FLOAT_DTYPES(args.kv_dtype, run<WideTile<Scalar>>(args))
}

SPCT_END_LEVEL
