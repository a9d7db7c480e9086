// Which key tiles a range of rows meets, and for which rows each is computed at once.
//
// Tile t covers positions [t*B, (t+1)*B) of a row's path, whatever the nodes. A tile whose last position lies in node i
// is the same for every row at or below i: computed once for all of them, its slots gathered along i's ancestors where
// a node boundary cuts it. The tile in which a node's tokens end before its last position belongs to the node's own
// rows. Nodes come in order, parents first, so that every row meets its tiles in increasing order.
#pragma once

#include "attention/attention.hpp"
#include "common/simd.hpp"

SPCT_BEGIN_LEVEL

/// Keys [begin, end) of a tile, counted from its first position.
struct KeyRange {
  int begin, end;
};

/// The smallest range that holds both.
SPCT_INLINE KeyRange join(KeyRange a, KeyRange b) {
  return {a.begin < b.begin ? a.begin : b.begin, a.end > b.end ? a.end : b.end};
}

/// One tile to compute, for those of rows [begin, end) that see any of it and are the node's own if `own`.
struct TileTask {
  int64_t node, position, begin, end;
  int length;     // keys that the path has in the tile
  KeyRange keys;  // those that some row sees
  bool own;
  bool uniform;  // every row sees all of `keys`
};

struct Walk {
  const AttentionArgs& args;
  int tile_keys;        // B
  int64_t first, last;  // the rows of this task

  /// The keys of a tile that row `row` sees; an empty range where it sees none.
  KeyRange seen(const TileTask& tile, int64_t row) const {
    if (tile.own && args.row_node[row] != tile.node) return {0, 0};
    const int64_t at = args.row_position[row];
    const int64_t past = at - tile.position + 1;
    const int64_t oldest = args.window == INT64_MAX ? 0 : at - args.window + 1 - tile.position;
    return {static_cast<int>(oldest > 0 ? (oldest < tile.length ? oldest : tile.length) : 0),
            static_cast<int>(past < tile.length ? (past > 0 ? past : 0) : tile.length)};
  }

  /// True if some row sees part of the tile; sets tile.keys and tile.uniform.
  bool visible(TileTask& tile) const {
    tile.keys = {tile.length, 0};
    KeyRange all{0, tile.length};
    for (int64_t row = tile.begin; row < tile.end; ++row) {
      const KeyRange keys = seen(tile, row);
      if (keys.begin > all.begin) all.begin = keys.begin;
      if (keys.end < all.end) all.end = keys.end;
      if (keys.begin < keys.end) tile.keys = join(tile.keys, keys);
    }
    tile.uniform = all.begin == tile.keys.begin && all.end == tile.keys.end;
    return tile.keys.begin < tile.keys.end;
  }

  /// accept(tile) for every tile that the rows may see, in order.
  template <class Accept>
  void tiles(const Accept& accept) const {
    for (int64_t node = 0; node < args.nodes; ++node) {
      const int64_t begin = args.node_row_begin[node] > first ? args.node_row_begin[node] : first;
      const int64_t end = args.node_row_end[node] < last ? args.node_row_end[node] : last;
      if (begin >= end) continue;
      const int64_t start = args.node_start[node];
      const int64_t stop = start + args.node_offset[node + 1] - args.node_offset[node];
      for (int64_t t = start / tile_keys; t < stop / tile_keys; ++t) {
        accept(TileTask{node, t * tile_keys, begin, end, tile_keys, {0, 0}, false, false});
      }
      const int rest = static_cast<int>(stop % tile_keys);
      if (rest != 0) accept(TileTask{node, stop - rest, begin, end, rest, {0, 0}, true, false});
    }
  }

  /// Slots of the tile's keys, gathered from its node up, into slots[keys.begin:keys.end].
  void gather(const TileTask& tile, int32_t* slots) const {
    int64_t key = tile.keys.end, node = tile.node;
    while (key > tile.keys.begin) {
      const int64_t start = args.node_start[node] - tile.position;  // the node's first key, may be negative
      const int64_t from = start > tile.keys.begin ? start : tile.keys.begin;
      const int32_t* node_slots = args.node_slots + args.node_offset[node] - start;
      for (int64_t k = from; k < key; ++k) slots[k] = node_slots[k];
      key = from < key ? from : key;
      node = args.node_parent[node];
    }
  }

  /// compute(first row, past the last) for every run of neighbouring rows that see something of the tile, of the same
  /// keys if `equal`.
  template <class Compute>
  void runs(const TileTask& tile, bool equal, const Compute& compute) const {
    if (tile.uniform) return compute(tile.begin, tile.end);
    int64_t row = tile.begin;
    while (row < tile.end) {
      const KeyRange keys = seen(tile, row);
      int64_t next = row + 1;
      if (keys.begin < keys.end) {
        while (next < tile.end) {
          const KeyRange other = seen(tile, next);
          if (equal ? other.begin != keys.begin || other.end != keys.end : other.begin >= other.end) break;
          ++next;
        }
        compute(row, next);
      }
      row = next;
    }
  }
};

SPCT_END_LEVEL
