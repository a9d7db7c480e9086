// Which key tiles a range of rows meets, and for which rows each is computed at once.
//
// Tile t covers positions [t*B, (t+1)*B) of a row's path, whatever the nodes. A tile whose last position lies in node i is the
// same for every row at or below i: computed once for all of them, its slots gathered along i's ancestors where a node
// boundary cuts it. The tile in which a node's tokens end before its last position belongs to the node's own rows.
// Nodes come in order, parents first, so that every row meets its tiles in increasing order.
#pragma once

#include "attention/attention.hpp"
#include "common/simd.hpp"

SPCT_BEGIN_LEVEL

/// Keys [begin, end) of a tile, counted from its first position.
struct KeyRange {
  int begin, end;
};

struct Walk {
  const AttentionArgs& args;
  int tile_keys;           // B
  int64_t first, last;     // the rows of this task
  int32_t* slots;          // room for B: where the tile's keys are

  /// The keys of the tile at `position` that row `row` sees, of the `length` that its path has there.
  KeyRange seen(int64_t row, int64_t position, int length) const {
    const int64_t at = args.row_position[row];
    const int64_t past = at - position + 1;
    const int64_t oldest = args.window == INT64_MAX ? 0 : at - args.window + 1 - position;
    return {static_cast<int>(oldest > 0 ? (oldest < length ? oldest : length) : 0),
            static_cast<int>(past < length ? (past > 0 ? past : 0) : length)};
  }

  /// Slots of keys `keys` of the tile at `position`, gathered from node `node` up.
  void gather(int64_t node, int64_t position, KeyRange keys) const {
    int64_t key = keys.end;
    while (key > keys.begin) {
      const int64_t start = args.node_start[node] - position;  // the node's first key, may be negative
      const int64_t from = start > keys.begin ? start : keys.begin;
      const int32_t* node_slots = args.node_slots + args.node_offset[node] - start;
      for (int64_t k = from; k < key; ++k) slots[k] = node_slots[k];
      key = from < key ? from : key;
      node = args.node_parent[node];
    }
  }

  /// One tile for those of rows [begin, end) that see any of it (and are the node's own, if `own`): load(keys) once, then
  /// compute(first, last, keys) for every run of neighbouring rows that see the same keys.
  template <class Load, class Compute>
  void tile(int64_t node, int64_t position, int length, int64_t begin, int64_t end, bool own, const Load& load,
            const Compute& compute) const {
    KeyRange all{length, 0};
    for (int64_t row = begin; row < end; ++row) {
      if (own && args.row_node[row] != node) continue;
      const KeyRange keys = seen(row, position, length);
      if (keys.begin >= keys.end) continue;
      if (keys.begin < all.begin) all.begin = keys.begin;
      if (keys.end > all.end) all.end = keys.end;
    }
    if (all.begin >= all.end) return;
    gather(node, position, all);
    load(all);
    int64_t row = begin;
    while (row < end) {
      const KeyRange keys = seen(row, position, length);
      int64_t next = row + 1;
      if (keys.begin < keys.end && !(own && args.row_node[row] != node)) {
        while (next < end && !(own && args.row_node[next] != node)) {
          const KeyRange other = seen(next, position, length);
          if (other.begin != keys.begin || other.end != keys.end) break;
          ++next;
        }
        compute(row, next, keys);
      }
      row = next;
    }
  }

  template <class Load, class Compute>
  void run(const Load& load, const Compute& compute) const {
    for (int64_t node = 0; node < args.nodes; ++node) {
      const int64_t begin = args.node_row_begin[node] > first ? args.node_row_begin[node] : first;
      const int64_t end = args.node_row_end[node] < last ? args.node_row_end[node] : last;
      if (begin >= end) continue;
      const int64_t start = args.node_start[node];
      const int64_t stop = start + args.node_offset[node + 1] - args.node_offset[node];
      for (int64_t t = start / tile_keys; t < stop / tile_keys; ++t) {
        tile(node, t * tile_keys, tile_keys, begin, end, false, load, compute);
      }
      if (stop % tile_keys != 0) {
        tile(node, stop / tile_keys * tile_keys, static_cast<int>(stop % tile_keys), begin, end, true, load, compute);
      }
    }
  }
};

SPCT_END_LEVEL
