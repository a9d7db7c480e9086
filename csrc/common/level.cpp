#include "common/level.hpp"

namespace spct {
namespace {

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
