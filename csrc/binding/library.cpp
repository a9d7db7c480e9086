// The `spct` library of torch ops: hands torch's thread pool to the kernels, and lets Python see and lower the CPU
// level. Each family of ops adds its own fragment (linear.cpp, attention.cpp, …).
#include "binding/tensor.hpp"
#include "common/level.hpp"
#include "common/parallel.hpp"

namespace spct::binding {
namespace {

void run_in_torch_pool(int64_t begin, int64_t end, int64_t grain, RangeBody body, void* context) {
  STABLE_TORCH_ERROR_CODE_CHECK(torch_parallel_for(begin, end, grain, body, context));
}

int torch_threads() { return static_cast<int>(torch::stable::get_num_threads()); }

int64_t cpu_level() { return static_cast<int64_t>(active_level()); }

bool cpu_level_supported(int64_t level) {
  return level >= 0 && level < kNumLevels && level_supported(static_cast<Level>(level));
}

bool set_cpu_level(int64_t level) { return cpu_level_supported(level) && set_level(static_cast<Level>(level)); }

}  // namespace
}  // namespace spct::binding

STABLE_TORCH_LIBRARY(spct, m) {
  spct::set_thread_pool(spct::binding::run_in_torch_pool, spct::binding::torch_threads);
  m.def("cpu_level() -> int");
  m.def("cpu_level_supported(int level) -> bool");
  m.def("set_cpu_level(int level) -> bool");
}

STABLE_TORCH_LIBRARY_IMPL(spct, CompositeExplicitAutograd, m) {
  m.impl("cpu_level", TORCH_BOX(&spct::binding::cpu_level));
  m.impl("cpu_level_supported", TORCH_BOX(&spct::binding::cpu_level_supported));
  m.impl("set_cpu_level", TORCH_BOX(&spct::binding::set_cpu_level));
}
