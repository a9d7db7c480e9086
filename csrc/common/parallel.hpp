// Parallelism through the caller's thread pool only (torch's own; serial until the binding has handed it over).
#pragma once

#include <cstdint>

namespace spct {

using RangeBody = void (*)(int64_t begin, int64_t end, void* context);
using RunParallel = void (*)(int64_t begin, int64_t end, int64_t grain, RangeBody body, void* context);

/// Hands over the pool: how to run a range in parallel, and how many threads it has.
void set_thread_pool(RunParallel run, int (*num_threads)());
void run_parallel(int64_t begin, int64_t end, int64_t grain, RangeBody body, void* context);
int num_threads();

/// f(begin, end) over contiguous ranges of at least `grain` that cover [begin, end).
template <class F>
static inline void parallel_for(int64_t begin, int64_t end, int64_t grain, const F& f) {
  if (end - begin <= grain) {
    if (begin < end) f(begin, end);
    return;
  }
  run_parallel(
      begin, end, grain,
      [](int64_t first, int64_t last, void* context) { (*static_cast<const F*>(context))(first, last); },
      const_cast<void*>(static_cast<const void*>(&f)));
}

/// f(task) for every task in [0, num_tasks), each once; a free thread takes the next, so unequal tasks balance.
template <class F>
static inline void parallel_tasks(int64_t num_tasks, const F& f) {
  const int64_t workers = num_threads() < num_tasks ? num_threads() : num_tasks;
  int64_t next = 0;
  const auto drain = [&](int64_t, int64_t) {
    for (;;) {
      const int64_t task = __atomic_fetch_add(&next, int64_t{1}, __ATOMIC_RELAXED);
      if (task >= num_tasks) return;
      f(task);
    }
  };
  if (workers <= 1) {
    drain(0, 1);
  } else {
    parallel_for(0, workers, 1, drain);
  }
}

}  // namespace spct
