// CPU levels. Every `*.kernel.cpp` is compiled once per level, in a namespace of that level's name
// (-DSPCT_LEVEL=avx2 with -mavx2 -mfma -mf16c, and so on; see setup.py); the level is chosen at run time.
//
// Rule for kernel sources: no inline function or template of the standard library that could be emitted out of line.
// The linker keeps one copy of such a function for all levels, perhaps the AVX-512 one. The build checks this.
#pragma once

#if defined(__x86_64__)
#define SPCT_X86 1
#else
#define SPCT_X86 0
#endif

namespace spct {

enum class Level : int { kScalar = 0, kAvx2 = 1, kAvx512 = 2 };
constexpr int kNumLevels = 3;

/// True if this build holds the level and this CPU (and its system) can run it.
bool level_supported(Level level);

/// The level that kernels run at: the best supported one, unless `set_level` lowered it.
Level active_level();

/// Makes kernels run at `level`; false, without an effect, where it is not supported.
bool set_level(Level level);

}  // namespace spct

// SPCT_KERNEL(name, Args) declares `void name(const Args&)` in every level's namespace and a dispatching
// `spct::name(const Args&)`. The `*.kernel.cpp` defines it inside SPCT_BEGIN_LEVEL / SPCT_END_LEVEL.
#if SPCT_X86
#define SPCT_KERNEL(name, Args)                                \
  namespace spct::scalar {                                     \
  void name(const Args& args);                                 \
  }                                                            \
  namespace spct::avx2 {                                       \
  void name(const Args& args);                                 \
  }                                                            \
  namespace spct::avx512 {                                     \
  void name(const Args& args);                                 \
  }                                                            \
  namespace spct {                                             \
  [[maybe_unused]] static inline void name(const Args& args) { \
    switch (active_level()) {                                  \
      case Level::kAvx512:                                     \
        return avx512::name(args);                             \
      case Level::kAvx2:                                       \
        return avx2::name(args);                               \
      default:                                                 \
        return scalar::name(args);                             \
    }                                                          \
  }                                                            \
  }
#else
#define SPCT_KERNEL(name, Args)                                                             \
  namespace spct::scalar {                                                                  \
  void name(const Args& args);                                                              \
  }                                                                                         \
  namespace spct {                                                                          \
  [[maybe_unused]] static inline void name(const Args& args) { return scalar::name(args); } \
  }
#endif

#define SPCT_BEGIN_LEVEL namespace spct::SPCT_LEVEL {
#define SPCT_END_LEVEL }
