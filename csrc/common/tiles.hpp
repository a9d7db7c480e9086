// AMX tiles: eight registers of up to 16 rows of 64 bytes. Shapes and contents belong to the thread, and other
// libraries on it set their own: a kernel assumes nothing of what it finds, sets its shapes, and releases the tiles
// when it is done (a thread without tiles in use is cheaper to switch, too).
//
// Our use of them, for sums[m][16 p + j] += rows[m][k] * panel p[k][j] where k runs over up to 16 words:
//
//   0 1 2 3   sums: one tile of rows by four panels, or two (0 1 and 2 3) by two
//   4 5       rows: the first and the second tile, 64 bytes of a row
//   6 7       panels: 16 words of each of 16 outputs
#pragma once

#include "common/simd.hpp"

SPCT_BEGIN_LEVEL

#if defined(__AMX_TILE__)
constexpr int kTileRows = 16, kTileWords = 16, kTileBytes = 64;

/// What tile instructions read in memory is there: GCC does not know that they read.
SPCT_INLINE void finish_stores() { __asm__ volatile("" ::: "memory"); }

/// Shapes of the calling thread's tiles, from the first `set` to `release`. No destructor does that: its frame would
/// need C++'s handler of exceptions, a symbol that all levels share.
class TileShapes {
 public:
  /// Tiles of `first` and `second` rows (0: there is none), `words` of 4 bytes in a row. Clears all tiles where this
  /// is a change.
  void set(int first, int second, int words) {
    if (first == first_ && second == second_ && words == words_) return;
    first_ = first;
    second_ = second;
    words_ = words;
    const int other = second == 0 ? first : second;
    Configuration made{};
    made.palette = 1;
    for (int tile = 0; tile < 8; ++tile) {
      const bool is_panel = tile >= 6, is_second = tile == 2 || tile == 3 || tile == 5;
      made.rows[tile] = static_cast<uint8_t>(is_panel ? words : is_second ? other : first);
      made.row_bytes[tile] = static_cast<uint16_t>(tile == 4 || tile == 5 ? 4 * words : 64);
    }
    finish_stores();
    _tile_loadconfig(&made);
  }

  void release() {
    if (first_ != 0) _tile_release();
    first_ = 0;
  }

 private:
  /// As LDTILECFG reads it.
  struct alignas(64) Configuration {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  };

  int first_ = 0, second_ = 0, words_ = 0;
};
#else
/// Nothing: this level has no tiles.
struct TileShapes {
  void release() {}
};
#endif

SPCT_END_LEVEL
