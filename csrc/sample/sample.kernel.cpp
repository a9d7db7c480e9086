// The passes of a draw. The noise of a token matters only if it can still win: with E = exp(-Gumbel) >= w, where w is
// the upper uniform of its bits, a token of mass m beats the value y only if w * exp(y) < m. So a pass makes the bits
// of every token and compares; the logarithms, in fp64, are taken of the few tokens (about log V of them) that pass.
#include "sample/sample.hpp"

#include "common/math.hpp"
#include "common/philox.hpp"
#include "sample/lanes.hpp"
#include "sample/soft_cap.hpp"

SPCT_BEGIN_LEVEL
namespace {

static_assert(kPadIds == kPhiloxIds && kPhiloxIds % kWidth == 0);

// Tokens that a sample takes in a row.
constexpr int64_t kRun = 16;

SPCT_INLINE int64_t shorter(int64_t a, int64_t b) { return a < b ? a : b; }

SPCT_INLINE vf load_logits(const float* from, int count) {
  return count == kWidth ? load(from) : load_first(from, count, -__builtin_inff());
}

SPCT_INLINE vi bin_of(vf logits, float best, int bits) {
  const vi bin = (bits_as<vi>(best - logits) >> (23 - bits)) - ((127 - 8) << bits);  // from 2^-8
  const vi last = splat((16 << bits) - 1);
  return bin < 0 ? splat(0) : (bin > last ? last : bin);
}

SPCT_INLINE int64_t first_index(const float* logits, int64_t count, float value) {
  int64_t i = 0;
  while (i + kWidth <= count && !any(load(logits + i) == value)) i += kWidth;
  while (i < count - 1 && logits[i] != value) ++i;
  return i;
}

/// Keeps the best of the tokens that it is shown; ties go to the lower index.
struct NoisyArgmax {
  const DrawArgs& args;
  PhiloxKey key;
  int64_t chosen;
  double value;
  float reach;  // a token can win only if (its upper uniform in units of 2^-31) * reach < its mass,
  float floor;  // and only if its mass is at least this

  SPCT_INLINE NoisyArgmax start(const DrawArgs& args) {
    const uint32_t id = static_cast<uint32_t>(args.ids != nullptr ? args.ids[args.best_index] : args.best_index);
    NoisyArgmax best{args, {args.seed, args.position}, args.best_index, 0.0, 0.0f, 0.0f};
    best.value = gumbel(philox_id(best.key, id));
    best.update_bounds();
    return best;
  }

  void update_bounds() {
    const double scale = __builtin_exp(value) * (1.0 - kBoundMargin);
    const double least = scale * 0x1p-33;  // the smallest upper uniform
    const double cut = args.cut_mass * (1.0 - kBoundMargin);
    reach = static_cast<float>(scale * 0x1p-31);
    floor = static_cast<float>(least > cut ? least : cut);
  }

  void show(int64_t index, uint32_t bits) {
    const float logit = args.logits[index];
    if (logit < args.cut.logit || (logit == args.cut.logit && index > args.cut.index)) return;
    const double distance = static_cast<double>(logit) - static_cast<double>(args.best);
    const double noisy = distance / args.temperature + gumbel(bits);
    if (noisy > value || (noisy == value && index < chosen)) {
      value = noisy;
      chosen = index;
      update_bounds();
    }
  }
};

SPCT_INLINE float half_upper_uniform(uint32_t bits) { return static_cast<float>(static_cast<int32_t>(~bits >> 1)); }
SPCT_INLINE vf half_upper_uniform(vu bits) { return to_float(bits_as<vi>(~bits >> 1)); }

/// Whether one of kPhiloxIds tokens is heavy enough to win at all.
SPCT_INLINE bool any_above(const float* mass, float floor) {
  vf largest{};
  for (int i = 0; i < kPhiloxIds; i += kWidth) largest = max(load(mass + i), largest);
  return any(largest >= floor);
}

void draw_dense(NoisyArgmax& best) {
  const DrawArgs& args = best.args;
  const PhiloxStream noise(best.key);
  uint32_t bits[kPhiloxIds];
  for (int64_t first = 0; first < args.count; first += kPhiloxIds) {
    const float* mass = args.mass + first;
    if (!any_above(mass, best.floor)) continue;
    noise.ids(static_cast<uint32_t>(first / 4), bits);
    vi hits{};
    for (int i = 0; i < kPhiloxIds; i += kWidth) {
      hits |= half_upper_uniform(load_vector<vu>(bits + i)) * best.reach < load(mass + i);
    }
    if (!any(hits)) continue;
    for (int i = 0; i < kPhiloxIds; ++i) {
      if (mass[i] >= best.floor && half_upper_uniform(bits[i]) * best.reach < mass[i]) best.show(first + i, bits[i]);
    }
  }
}

void draw_listed(NoisyArgmax& best) {
  const DrawArgs& args = best.args;
  for (int64_t i = 0; i < args.count; ++i) {
    if (args.mass[i] >= best.floor) best.show(i, philox_id(best.key, static_cast<uint32_t>(args.ids[i])));
  }
}

// Lighter than e^-40 a token can't win, as no two tokens' noise differs by more than 26, and all of them together
// weigh nothing.
constexpr float kLightest = 40.0f;

/// `kScaled`: the masses' scale is not 1.
template <bool kScaled>
void mass_pass(const MassArgs& args) {
  Sum total;
  for_vectors(args.count, [&](int64_t i, int count) {
    const vf distance = load_logits(args.logits + i, count) - args.best;
    const vf x = kScaled ? distance * args.scale : distance;
    if (!any(x > -kLightest)) {
      if (args.mass != nullptr) store_some(args.mass + i, vf{}, count);
      return;
    }
    vf mass = exp_mass(x);
    if (kScaled) {
      // What the product lost, so that a heavy tail's mass is right to the last bits.
      const vf lost = fma(distance, splat(args.scale), -x) + distance * args.scale_low;
      mass = fma(mass, lost, mass);
    }
    mass = x > -kLightest ? mass : vf{};
    if (args.mass != nullptr) store_some(args.mass + i, mass, count);
    total.add(mass);
  });
  if (args.mass != nullptr) {
    for (int64_t i = args.count; i % kPadIds != 0; ++i) args.mass[i] = 0.0f;
  }
  *args.total = total.total();
}

}  // namespace

void scan_logits(const ScanArgs& args) {
  // In blocks, so that only one has to be searched for the best logit's index.
  constexpr int64_t kBlock = 1024;
  float best = -__builtin_inff();
  int64_t best_block = 0;
  vi failed{};
  for (int64_t first = 0; first < args.count; first += kBlock) {
    float* logits = args.logits + first;
    vf largest = splat(-__builtin_inff());
    for_vectors(shorter(kBlock, args.count - first), [&](int64_t i, int count) {
      vf x = load_logits(logits + i, count);
      failed |= ~(x < __builtin_inff());  // true for NaN too
      if (args.softcap > 0.0f) {
        x = soft_cap(x, args.softcap);
        store_some(logits + i, x, count);
        if (count < kWidth) x = load_logits(logits + i, count);
      }
      largest = max(x, largest);
    });
    const float value = reduce_max(largest);
    if (value > best) {
      best = value;
      best_block = first;
    }
  }
  *args.failed = any(failed);
  *args.best = best;
  *args.best_index = best_block;
  if (!*args.failed) {
    *args.best_index += first_index(args.logits + best_block, shorter(kBlock, args.count - best_block), best);
  }
}

void fill_mass(const MassArgs& args) {
  if (args.scale == 1.0f && args.scale_low == 0.0f) {
    mass_pass<false>(args);
  } else {
    mass_pass<true>(args);
  }
}

void fill_histogram(const HistogramArgs& args) {
  const int bits = bin_bits(args.count);
  std::memset(args.bins, 0, sizeof(Bin) * static_cast<size_t>(num_bins(args.count)));
  for (int64_t run = 0; run < args.count; run += kRun * args.step) {
    for_vectors(shorter(kRun, args.count - run), [&](int64_t i, int count) {
      int32_t places[kWidth];
      store(places, bin_of(load_logits(args.logits + run + i, count), args.best, bits));
      for (int lane = 0; lane < count; ++lane) {
        Bin& bin = args.bins[places[lane]];
        bin.mass += args.mass[run + i + lane];
        bin.count += 1;
      }
    });
  }
}

void list_between(const BetweenArgs& args) {
  Sum mass_above;
  vi count_above{};
  int64_t found = 0;
  for_vectors(args.count, [&](int64_t i, int count) {
    const vf logits = load_logits(args.logits + i, count);
    const vi reached = logits >= args.low;
    if (!any(reached)) return;
    const vi above = logits > args.high;
    count_above -= above;
    mass_above.add(above ? load_some(args.mass + i, count) : vf{});
    found += list_lanes(reached & ~above, count, i, args.listed + found);
  });
  *args.num_listed = found;
  *args.above = {mass_above.total(), 0};
  for (int lane = 0; lane < kWidth; ++lane) args.above->count += count_above[lane];
}

void draw_token(const DrawArgs& args) {
  NoisyArgmax best = NoisyArgmax::start(args);
  if (args.ids == nullptr) {
    draw_dense(best);
  } else {
    draw_listed(best);
  }
  *args.chosen = best.chosen;
}

void philox_bits(const BitsArgs& args) {
  uint32_t bits[kPhiloxIds];
  for (int64_t row = 0; row < args.rows; ++row) {
    const PhiloxStream noise({static_cast<uint64_t>(args.seed[row]), static_cast<uint64_t>(args.position[row])});
    for (int64_t first = 0; first < args.count; first += kPhiloxIds) {
      noise.ids(static_cast<uint32_t>(first / 4), bits);
      for (int i = 0; i < kPhiloxIds && first + i < args.count; ++i) args.bits[row * args.count + first + i] = bits[i];
    }
  }
}

SPCT_END_LEVEL
