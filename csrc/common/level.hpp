// CPU levels. Every `*.kernel.cpp` is compiled once per level, in a namespace of that level's name
// (-DSPCT_LEVEL=avx2 with -mavx2 -mfma -mf16c, and so on; see setup.py); the level is chosen at run time.
//
// Rule for kernel sources: no inline function or template of the standard library that could be emitted out of line.
// The linker keeps one copy of such a function for all levels, perhaps the AVX-512 one. The build checks this.
#pragma once

#if defined(__x86_64__)
#define SPCT_X86 1
#define SPCT_ARM 0
#elif defined(__aarch64__)
#define SPCT_X86 0
#define SPCT_ARM 1
#else
#define SPCT_X86 0
#define SPCT_ARM 0
#endif

namespace spct {

/// Each holds what the ones of its architecture before it hold. kAvx512Vnni adds dot products of bytes, kAvx512Bf16
/// those of bfloat16, kAmx matrix products of both; kNeonDot adds dot products of bytes to kNeon.
enum class Level : int {
  kScalar = 0,
  kAvx2 = 1,
  kAvx512 = 2,
  kAvx512Vnni = 3,
  kAvx512Bf16 = 4,
  kAmx = 5,
  kNeon = 6,
  kNeonDot = 7,
};
constexpr int kNumLevels = 8;

/// True if this build holds the level and this CPU (and its system) can run it. The first question after kAmx asks the
/// system for leave to use tiles, for the whole process.
bool level_supported(Level level);

/// The level that kernels run at: the best supported one, unless `set_level` lowered it.
Level active_level();

/// Makes kernels run at `level`; false, without an effect, where it is not supported.
bool set_level(Level level);

}  // namespace spct

// SPCT_KERNEL(name, Args) declares `void name(const Args&)` in every level's namespace and a dispatching
// `spct::name(const Args&)`. The `*.kernel.cpp` defines it inside SPCT_BEGIN_LEVEL / SPCT_END_LEVEL.
#define SPCT_DECLARE(level, name, Args) \
  namespace spct::level {               \
  void name(const Args& args);          \
  }
#if SPCT_X86
#define SPCT_KERNEL(name, Args)                                \
  SPCT_DECLARE(scalar, name, Args)                             \
  SPCT_DECLARE(avx2, name, Args)                               \
  SPCT_DECLARE(avx512, name, Args)                             \
  SPCT_DECLARE(avx512vnni, name, Args)                         \
  SPCT_DECLARE(avx512bf16, name, Args)                         \
  SPCT_DECLARE(amx, name, Args)                                \
  namespace spct {                                             \
  [[maybe_unused]] static inline void name(const Args& args) { \
    switch (active_level()) {                                  \
      case Level::kAmx:                                        \
        return amx::name(args);                                \
      case Level::kAvx512Bf16:                                 \
        return avx512bf16::name(args);                         \
      case Level::kAvx512Vnni:                                 \
        return avx512vnni::name(args);                         \
      case Level::kAvx512:                                     \
        return avx512::name(args);                             \
      case Level::kAvx2:                                       \
        return avx2::name(args);                               \
      default:                                                 \
        return scalar::name(args);                             \
    }                                                          \
  }                                                            \
  }
#elif SPCT_ARM
#define SPCT_KERNEL(name, Args)                                \
  SPCT_DECLARE(scalar, name, Args)                             \
  SPCT_DECLARE(neon, name, Args)                               \
  SPCT_DECLARE(neondot, name, Args)                            \
  namespace spct {                                             \
  [[maybe_unused]] static inline void name(const Args& args) { \
    switch (active_level()) {                                  \
      case Level::kNeonDot:                                    \
        return neondot::name(args);                            \
      case Level::kNeon:                                       \
        return neon::name(args);                               \
      default:                                                 \
        return scalar::name(args);                             \
    }                                                          \
  }                                                            \
  }
#else
#define SPCT_KERNEL(name, Args)                                                             \
  SPCT_DECLARE(scalar, name, Args)                                                          \
  namespace spct {                                                                          \
  [[maybe_unused]] static inline void name(const Args& args) { return scalar::name(args); } \
  }
#endif

#define SPCT_BEGIN_LEVEL namespace spct::SPCT_LEVEL {
#define SPCT_END_LEVEL }
