// The passes of a draw. The noise of a token matters only if it can still win: with E = exp(-Gumbel) >= w, where w is
// the upper uniform of its bits, a token of mass m beats the value y only if w * exp(y) < m. So a pass makes the bits
// of every token and compares; the logarithms, in fp64, are taken of the few tokens (about log V of them) that pass.
#include "sample/sample.hpp"

#include "common/math.hpp"
#include "common/philox.hpp"
#include "sample/soft_cap.hpp"

SPCT_BEGIN_LEVEL
namespace {

typedef double vd __attribute__((vector_size(kWidth * 8)));

static_assert(kPadIds == kPhiloxIds && kPhiloxIds % kWidth == 0);

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
  uint32_t bits[kPhiloxIds];
  for (int64_t first = 0; first < args.count; first += kPhiloxIds) {
    const float* mass = args.mass + first;
    if (!any_above(mass, best.floor)) continue;
    philox_ids(best.key, static_cast<uint32_t>(first / 4), bits);
    vi hits{};
    for (int i = 0; i < kPhiloxIds; i += kWidth) {
      const vf m = load(mass + i);
      hits |= (half_upper_uniform(load_vector<vu>(bits + i)) * best.reach < m) & (m >= best.floor);
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

}  // namespace

void scan_logits(const ScanArgs& args) {
  vf best = splat(-__builtin_inff());
  vi failed{};
  for_vectors(args.count, [&](int64_t i, int count) {
    vf x = load_logits(args.logits + i, count);
    failed |= ~(x < __builtin_inff());  // true for NaN too
    if (args.softcap > 0.0f) {
      x = soft_cap(x, args.softcap);
      store_some(args.logits + i, x, count);
      if (count < kWidth) x = load_logits(args.logits + i, count);
    }
    best = max(x, best);
  });
  *args.failed = any(failed);
  *args.best = reduce_max(best);
  *args.best_index = *args.failed ? 0 : first_index(args.logits, args.count, *args.best);
}

void fill_mass(const MassArgs& args) {
  vd total{};
  for_vectors(args.count, [&](int64_t i, int count) {
    const vf distance = load_logits(args.logits + i, count) - args.best;
    const vf x = distance * args.scale;
    // Below e^-87 a token can't win, and subnormal numbers are slow on some CPUs.
    const vi matters = x > -87.0f;
    const vf e = exp(matters ? x : vf{});
    // `lost` is what the product lost, so that a heavy tail's mass is right to the last bits.
    const vf lost = fma(distance, splat(args.scale), -x) + distance * args.scale_low;
    const vf mass = matters ? fma(e, lost, e) : vf{};
    if (args.mass != nullptr) store_some(args.mass + i, mass, count);
    total += __builtin_convertvector(mass, vd);
  });
  if (args.mass != nullptr) {
    for (int64_t i = args.count; i % kPadIds != 0; ++i) args.mass[i] = 0.0f;
  }
  double sum = 0.0;
  for (int lane = 0; lane < kWidth; ++lane) sum += total[lane];
  *args.total = sum;
}

void fill_histogram(const HistogramArgs& args) {
  // Two sets of bins: equal logits would otherwise wait for each other's sum.
  Bin odd[kMaxBins];
  const int bits = bin_bits(args.count), bins = num_bins(args.count);
  std::memset(odd, 0, sizeof(Bin) * static_cast<size_t>(bins));
  std::memset(args.bins, 0, sizeof(Bin) * static_cast<size_t>(bins));
  for_vectors(args.count, [&](int64_t i, int count) {
    if (!any(load_some(args.mass + i, count) >= args.mass_floor)) return;
    int32_t places[kWidth];
    store(places, bin_of(load_logits(args.logits + i, count), args.best, bits));
    for (int lane = 0; lane < count; ++lane) {
      Bin& bin = lane % 2 == 0 ? args.bins[places[lane]] : odd[places[lane]];
      bin.mass += args.mass[i + lane];
      bin.count += 1;
    }
  });
  for (int bin = 0; bin < bins; ++bin) {
    args.bins[bin].mass += odd[bin].mass;
    args.bins[bin].count += odd[bin].count;
  }
}

void collect_bin(const BinTokensArgs& args) {
  const int bits = bin_bits(args.count);
  int64_t found = 0;
  for_vectors(args.count, [&](int64_t i, int count) {
    const vi match = bin_of(load_logits(args.logits + i, count), args.best, bits) == args.bin;
    if (!any(match)) return;
    for (int lane = 0; lane < count; ++lane) {
      if (match[lane] != 0) args.tokens[found++] = BinToken{args.logits[i + lane], args.mass[i + lane], i + lane};
    }
  });
  *args.num_tokens = found;
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
    const PhiloxKey key{static_cast<uint64_t>(args.seed[row]), static_cast<uint64_t>(args.position[row])};
    for (int64_t first = 0; first < args.count; first += kPhiloxIds) {
      philox_ids(key, static_cast<uint32_t>(first / 4), bits);
      for (int i = 0; i < kPhiloxIds && first + i < args.count; ++i) args.bits[row * args.count + first + i] = bits[i];
    }
  }
}

SPCT_END_LEVEL
