#include "common/level.hpp"

#if SPCT_X86 && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#define SPCT_AMX 1
#else
#define SPCT_AMX 0
#endif

#if SPCT_ARM && defined(__linux__)
#include <sys/auxv.h>
#elif SPCT_ARM && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace spct {
namespace {

#if SPCT_AMX
/// The processor has tiles with int8 and bf16 products, and the system saves them.
bool has_tiles() {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(1, 0, &a, &b, &c, &d) || (c & bit_OSXSAVE) == 0) return false;
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr unsigned states = 3u << 17;  // the tiles' shapes and their data
  if ((low & states) != states) return false;
  constexpr unsigned features = 1u << 22 | 1u << 24 | 1u << 25;  // AMX-BF16, AMX-TILE, AMX-INT8
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & features) == features;
}

/// Linux hands out the tiles' data only to processes that ask for it; it may refuse.
bool may_use_tiles() {
  constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool granted = has_tiles() && syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
  return granted;
}
#endif

#if SPCT_ARM
/// SDOT, which ARMv8.2 offers and ARMv8.4 requires.
bool has_dot_products() {
#if defined(__linux__)
  constexpr unsigned long dot_products = 1ul << 20;  // HWCAP_ASIMDDP
  return (getauxval(AT_HWCAP) & dot_products) != 0;
#elif defined(__APPLE__)
  int present = 0;
  size_t size = sizeof(present);
  return sysctlbyname("hw.optional.arm.FEAT_DotProd", &present, &size, nullptr, 0) == 0 && present != 0;
#else
  return false;
#endif
}
#endif

Level best_level() {
  for (int level = kNumLevels - 1; level > 0; --level) {
    if (level_supported(static_cast<Level>(level))) return static_cast<Level>(level);
  }
  return Level::kScalar;
}

Level& current_level() {
  static Level level = best_level();
  return level;
}

}  // namespace

bool level_supported(Level level) {
  switch (level) {
    case Level::kScalar:
      return true;
#if SPCT_X86
    case Level::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    case Level::kAvx512:
      return level_supported(Level::kAvx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    case Level::kAvx512Vnni:
      return level_supported(Level::kAvx512) && __builtin_cpu_supports("avx512vnni");
    case Level::kAvx512Bf16:
      return level_supported(Level::kAvx512Vnni) && __builtin_cpu_supports("avx512bf16");
#if SPCT_AMX
    case Level::kAmx:
      return level_supported(Level::kAvx512Bf16) && may_use_tiles();
#endif
#endif
#if SPCT_ARM
    case Level::kNeon:
      return true;
    case Level::kNeonDot:
      return has_dot_products();
#endif
    default:
      return false;
  }
}

Level active_level() { return current_level(); }

bool set_level(Level level) {
  if (!level_supported(level)) return false;
  current_level() = level;
  return true;
}

}  // namespace spct
