// bf16 arithmetic by AMX (TDPBF16PS), fp32 sums: PairTile's keys and values, 16 rows at a time.
//
// A row's arithmetic, whoever is computed beside it: score = q.k, blocks of 32 dimensions in order, the last of which
// ends with the last dimension; softmax.hpp in fp32; p rounded to bf16 (its sum is that of the unrounded ones); p.v,
// blocks of 32 keys in order, aligned to the tile; out = fma(out, alpha, p.v). Within a block the instruction sums even
// and odd places each by itself, fma after fma, then both, then onto what is there. A key that the row does not see
// has p = 0, and its value is finite or zero, so that it adds nothing; nor do blocks without a key that is seen, and
// they are left out. The instruction flushes subnormal numbers to zero and rounds to nearest, whatever the processor's
// mode.
#pragma once

#include "attention/tile_bf16.hpp"
#include "common/tiles.hpp"

#if defined(__AMX_BF16__)

SPCT_BEGIN_LEVEL

struct AmxTile {
  using Element = BFloat16;
  static constexpr int kHeight = kTileRows;
  static constexpr int kTerms = PairTile::kTerms;
  static constexpr int kBlockKeys = 2 * kTileWords;
  static constexpr int64_t kScoreBytes = kMaxTileKeys * sizeof(float), kPairBytes = kMaxTileKeys * sizeof(BFloat16);

  PairTile pairs;
  TileShapes* shapes;

  static size_t bytes(const AttentionArgs& args, int tile_keys) { return PairTile::bytes(args, tile_keys); }
  static AmxTile at(void* memory, const AttentionArgs& args, int tile_keys, TileShapes& shapes) {
    return {PairTile::at(memory, args, tile_keys, shapes), &shapes};
  }

  /// Words of a block of dimensions: 16, or all of them.
  static int64_t block_words(const AttentionArgs& args) {
    return args.key_dim / 2 < kTileWords ? args.key_dim / 2 : kTileWords;
  }

  /// Queries in whole blocks, [rows][blocks][16 pairs]; what the last one shares with the block before it is zero.
  static int64_t query_stride(const AttentionArgs& args, int64_t) {
    const int64_t block = block_words(args);
    return (args.key_dim / 2 + block - 1) / block * block;
  }
  static size_t query_bytes(const AttentionArgs& args, int64_t rows) {
    return static_cast<size_t>(rows * query_stride(args, rows)) * sizeof(uint32_t);
  }
  static void load_query(const AttentionArgs& args, int64_t index, const RowState& state, int64_t flat) {
    const BFloat16* from = static_cast<const BFloat16*>(args.q) + index * args.key_dim;
    BFloat16* to = static_cast<BFloat16*>(state.q) + flat * 2 * state.q_stride;
    const int64_t padding = 2 * state.q_stride - args.key_dim;
    const size_t whole = static_cast<size_t>(2 * (state.q_stride - block_words(args)));
    std::memcpy(to, from, whole * sizeof(BFloat16));
    std::memset(to + whole, 0, static_cast<size_t>(padding) * sizeof(BFloat16));
    std::memcpy(to + whole + padding, from + whole, (static_cast<size_t>(args.key_dim) - whole) * sizeof(BFloat16));
  }

  void load_keys(const CacheView& cache, int64_t head, int64_t dim, const int32_t* slots, KeyRange keys) const {
    pairs.load_keys(cache, head, dim, slots, keys);
  }

  /// As PairTile's; the other pairs of its blocks are zeros.
  bool load_values(const CacheView& cache, int64_t head, int64_t dim, const int32_t* slots, KeyRange keys) const {
    const KeyRange blocks = block_range(keys), loaded{keys.begin / 2, (keys.end + 1) / 2};
    const auto clear = [&](int64_t begin, int64_t end) {
      std::memset(pairs.v + begin * dim, 0, static_cast<size_t>((end - begin) * dim) * sizeof(uint32_t));
    };
    clear(blocks.begin / 2, loaded.begin);
    clear(loaded.end, blocks.end / 2);
    return pairs.load_values(cache, head, dim, slots, keys);
  }

  static KeyRange block_range(KeyRange keys) {
    return {keys.begin / kBlockKeys * kBlockKeys, (keys.end + kBlockKeys - 1) / kBlockKeys * kBlockKeys};
  }

  /// Sums of tiles 0 to 3 into `to`, 16 floats each, rows `stride` bytes apart.
  static void store_sums(float* to, int64_t stride, int count) {
    _tile_stored(0, to, stride);
    if (count > 1) _tile_stored(1, to + kPanel, stride);
    if (count > 2) _tile_stored(2, to + 2 * kPanel, stride);
    if (count > 3) _tile_stored(3, to + 3 * kPanel, stride);
  }

  static void clear_sums() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }

  /// Adds a block of rows, `row` bytes apart, times one of `count` panels, each 16 words at `panels`, `panel` words
  /// apart, with `step` bytes from pair to pair.
  static void add_block(const uint32_t* rows, int64_t row, const uint32_t* panels, int64_t panel, int64_t step,
                        int count) {
    _tile_loadd(4, rows, row);
    _tile_loadd(6, panels, step);
    _tile_dpbf16ps(0, 4, 6);
    if (count > 1) {
      _tile_loadd(7, panels + panel, step);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (count > 2) {
      _tile_loadd(6, panels + 2 * panel, step);
      _tile_dpbf16ps(2, 4, 6);
    }
    if (count > 3) {
      _tile_loadd(7, panels + 3 * panel, step);
      _tile_dpbf16ps(3, 4, 7);
    }
  }

  /// scores[m][key] of the rows for the panels that hold `keys`.
  void score(const AttentionArgs& args, const RowState& state, int64_t row, int height, KeyRange panels,
             float* scores) const {
    const int64_t words = args.key_dim / 2, block = block_words(args);
    const uint32_t* q = static_cast<const uint32_t*>(state.q) + row * state.q_stride;
    const int panel = panels.begin / kPanel, count = (panels.end - panels.begin) / kPanel;
    shapes->set(height, 0, static_cast<int>(block));
    finish_stores();
    clear_sums();
    for (int64_t word = 0; word < words; word += block) {
      const int64_t at = word + block < words ? word : words - block;
      add_block(q + word, state.q_stride * 4, pairs.k + (panel * words + at) * kPanel, words * kPanel, 64, count);
    }
    store_sums(scores + panels.begin, kScoreBytes, count);
  }

  /// out[m] = out[m] * alpha[m] + p . v
  void accumulate(const AttentionArgs& args, const RowState& state, int64_t row, int height, const uint32_t* p,
                  const float* alpha, KeyRange keys) const {
    alignas(64) float products[kHeight][4 * kPanel];
    const int64_t dim = args.value_dim;
    const KeyRange blocks = block_range(keys);
    shapes->set(height, 0, kTileWords);
    finish_stores();
    for (int64_t d = 0; d < dim; d += 4 * kPanel) {
      const int count = dim - d < 4 * kPanel ? static_cast<int>(dim - d) / kPanel : 4;
      clear_sums();
      for (int64_t pair = blocks.begin / 2; 2 * pair < blocks.end; pair += kTileWords) {
        add_block(p + pair, kPairBytes, pairs.v + pair * dim + d, kPanel, dim * 4, count);
      }
      store_sums(products[0], sizeof(products[0]), count);
      for (int m = 0; m < height; ++m) {
        float* out = state.out + (row + m) * dim + d;
        const vf factor = splat(alpha[m]);
        for (int i = 0; i < count * kPanel; i += kWidth)
          store(out + i, fma(load(out + i), factor, load(products[m] + i)));
      }
    }
  }

  /// No probability for the keys of a row's blocks that lie outside of its panels.
  static void clear_outside(KeyRange panels, KeyRange blocks, uint32_t* p) {
    if (blocks.begin < panels.begin) std::memset(p + blocks.begin / 2, 0, kPanel * sizeof(BFloat16));
    if (panels.end < blocks.end) std::memset(p + panels.end / 2, 0, kPanel * sizeof(BFloat16));
  }

  /// M rows from `row` on.
  template <int M>
  [[gnu::noinline]] void attend(const AttentionArgs& args, const ScoreRule& rule, const RowState& state, int64_t row,
                                const View& view) const {
    alignas(64) float scores[M][kMaxTileKeys];
    alignas(64) uint32_t p[M][kMaxTileKeys / 2];
    alignas(64) float base[kWidth], alpha[kWidth];
    const KeyRange panels = panel_range(view.keys), blocks = block_range(view.keys);
    score(args, state, row, M, panels, scores[0]);
    move_maxima<M, kTerms>(rule, state, row, view, scores, base, alpha);
    vf totals[M];
    for (int m = 0; m < M; ++m) {
      clear_outside(panels, blocks, p[m]);
      totals[m] = PairTile::probabilities(rule, scores[m], base[m], panels, p[m]);
    }
    move_sums<M>(state, row, totals, alpha);
    accumulate(args, state, row, M, p[0], alpha, view.keys);
  }
};

SPCT_END_LEVEL

#endif
