// kernels_test [--seed N] [--count N] [--first I] [--only NAME] [--levels NAME,…] [--best NAME]
//
// Runs `count` random configurations of every kernel at every CPU level that the machine (and this build) has, against
// plain loops in fp64. Exits with 1 at the first difference, and names the flags that run it again. `--best` is the
// level that has to be chosen without being asked for.
#include <functional>
#include <string>
#include <vector>

#include "common/level.hpp"
#include "harness.hpp"

namespace spct::test {
namespace {

struct Test {
  const char* name;
  void (*run)(Random&, const std::string&);
};

constexpr Test kTests[] = {
    {"linear", test_linear},           {"linear_w8a8", test_linear_w8a8},
    {"rms_norm", test_rms_norm},       {"gated_activation", test_gated_activation},
    {"rope_append", test_rope_append}, {"attention", test_attention},
    {"sample", test_sample},           {"token_logits", test_token_logits},
    {"philox", test_philox},
};
constexpr const char* kLevels[kNumLevels] = {"scalar",     "avx2", "avx512", "avx512vnni",
                                             "avx512bf16", "amx",  "neon",   "neondot"};

struct Options {
  uint64_t seed = 0;
  int64_t first = 0, count = 20;
  std::string only, levels, best;
};

Options parse(int count, char** words) {
  Options options;
  for (int i = 1; i < count; i += 2) {
    const std::string name = words[i], value = i + 1 < count ? words[i + 1] : "";
    if (value.empty()) fail("usage: " + name + " needs a value");
    if (name == "--seed") {
      options.seed = std::stoull(value);
    } else if (name == "--count") {
      options.count = std::stoll(value);
    } else if (name == "--first") {
      options.first = std::stoll(value);
    } else if (name == "--only") {
      options.only = value;
    } else if (name == "--levels") {
      options.levels = value;
    } else if (name == "--best") {
      options.best = value;
    } else {
      fail("usage: unknown flag " + name);
    }
  }
  return options;
}

bool listed(const std::string& list, const std::string& name) {
  return list.empty() || ("," + list + ",").find("," + name + ",") != std::string::npos;
}

void run_test(const Test& test, int level, const Options& options) {
  for (int64_t i = options.first; i < options.first + options.count; ++i) {
    // The configuration doesn't depend on the level: where one level fails and another doesn't, the data is the same.
    Random random(options.seed * 1000003 + static_cast<uint64_t>(i) * 7919 + std::hash<std::string>{}(test.name));
    use_threads(static_cast<int>(random.between(1, 4)));
    const std::string flags =
        " --seed " + std::to_string(options.seed) + " --first " + std::to_string(i) + " --count 1";
    test.run(random, std::string("--only ") + test.name + " --levels " + kLevels[level] + flags);
  }
}

int run(const Options& options) {
  int64_t done = 0;
  const std::string chosen = kLevels[static_cast<int>(active_level())];
  if (!options.best.empty() && options.best != chosen) fail("chose level " + chosen + ", expected " + options.best);
  for (int level = 0; level < kNumLevels; ++level) {
    if (!listed(options.levels, kLevels[level])) continue;
    if (!set_level(static_cast<Level>(level))) {
      if (!options.levels.empty()) std::printf("%s: this CPU does not have it\n", kLevels[level]);
      continue;
    }
    for (const Test& test : kTests) {
      if (!listed(options.only, test.name)) continue;
      run_test(test, level, options);
      done += options.count;
    }
    std::printf("%s: passed\n", kLevels[level]);
    std::fflush(stdout);
  }
  std::printf("%lld configurations passed\n", static_cast<long long>(done));
  return done > 0 || options.count == 0 ? 0 : 2;
}

}  // namespace
}  // namespace spct::test

int main(int count, char** words) { return spct::test::run(spct::test::parse(count, words)); }
