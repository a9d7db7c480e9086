#include <algorithm>
#include <thread>
#include <vector>

#include "common/parallel.hpp"
#include "harness.hpp"

namespace spct::test {
namespace {

int g_count = 1;
int count_threads() { return g_count; }

void run(int64_t begin, int64_t end, int64_t grain, RangeBody body, void* context) {
  const int64_t most = (end - begin + std::max<int64_t>(grain, 1) - 1) / std::max<int64_t>(grain, 1);
  const int64_t parts = std::min<int64_t>(g_count, std::max<int64_t>(most, 1));
  std::vector<std::thread> threads;
  for (int64_t part = 1; part < parts; ++part) {
    threads.emplace_back(
        [=] { body(begin + (end - begin) * part / parts, begin + (end - begin) * (part + 1) / parts, context); });
  }
  body(begin, begin + (end - begin) / parts, context);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

void use_threads(int count) {
  g_count = count;
  set_thread_pool(run, count_threads);
}

}  // namespace spct::test
