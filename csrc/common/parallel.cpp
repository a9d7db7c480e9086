#include "common/parallel.hpp"

namespace spct {
namespace {

void run_serial(int64_t begin, int64_t end, int64_t, RangeBody body, void* context) { body(begin, end, context); }
int one_thread() { return 1; }

RunParallel g_run = run_serial;
int (*g_num_threads)() = one_thread;

}  // namespace

void set_thread_pool(RunParallel run, int (*num_threads)()) {
  g_run = run;
  g_num_threads = num_threads;
}

void run_parallel(int64_t begin, int64_t end, int64_t grain, RangeBody body, void* context) {
  g_run(begin, end, grain, body, context);
}

int num_threads() { return g_num_threads(); }

}  // namespace spct
