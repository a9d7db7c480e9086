// Elementary functions on vectors of floats. Polynomials are our own minimax fits (iterated weighted least squares on
// Chebyshev nodes); each line says the fit's error. Within 2 ulp of the true value where no other bound is given.
#pragma once

#include "common/simd.hpp"

SPCT_BEGIN_LEVEL

/// e^(x - n ln2), for n the whole number nearest to x / ln2.
SPCT_INLINE vf exp_fraction(vf x, vf n) {
  vf r = fma(n, splat(-0.693359375f), x);  // ln 2 in two parts: n * 0.693359375 is exact
  r = fma(n, splat(2.12194440e-4f), r);
  // (e^r - 1 - r) / r^2 on |r| <= ln2/2, error 1.4e-9
  vf p = splat(1.99076401e-4f);
  p = fma(p, r, splat(1.39336881e-3f));
  p = fma(p, r, splat(8.33328593e-3f));
  p = fma(p, r, splat(4.16664646e-2f));
  p = fma(p, r, splat(1.66666668e-1f));
  p = fma(p, r, splat(0.5f));
  return fma(r * r, p, r) + 1.0f;
}

/// e^x. Overflow gives +Inf, -Inf gives 0, subnormal results are kept, NaN stays.
SPCT_INLINE vf exp(vf x) {
  // Beyond these bounds the result is 0 or Inf all the same; the comparisons keep NaN.
  const vf clamped = x < -104.0f ? splat(-104.0f) : (x > 89.0f ? splat(89.0f) : x);
  const vf n = round_small(clamped * 1.44269504f);
  const vf y = exp_fraction(clamped, n);
  // 2^n in two factors, since n down to -150 has no normal 2^n.
  const vi whole = to_int(n), half = whole >> 1;
  const vf first = bits_as<vf>((half + 127) << 23), second = bits_as<vf>((whole - half + 127) << 23);
  const vf result = y * first * second;
  return x == x ? result : x;
}

/// e^x for -87 < x <= 0; nothing useful for other x.
SPCT_INLINE vf exp_mass(vf x) {
  const vf magic = splat(12582912.0f);  // see round_small: n is left in the sum's last bits
  const vf sum = fma(x, splat(1.44269504f), magic);
  return bits_as<vf>(bits_as<vi>(exp_fraction(x, sum - magic)) + (bits_as<vi>(sum) << 23));
}

/// Natural logarithm. log(0) = -Inf, negative numbers give NaN, subnormals are exact, NaN and +Inf stay.
SPCT_INLINE vf log(vf x) {
  const vi subnormal = (x < 1.17549435e-38f) & (x > 0.0f);
  const vf scaled = subnormal ? x * 8388608.0f : x;  // 2^23
  const vi bits = bits_as<vi>(scaled);
  // Mantissa into [sqrt(1/2), sqrt(2)): subtracting the bits of sqrt(1/2) carries into the exponent at the right place.
  const vi shifted = bits - 0x3f3504f3;
  const vi exponent = (shifted >> 23) - (subnormal & 23);
  const vf mantissa = bits_as<vf>((shifted & 0x007fffff) + 0x3f3504f3);
  const vf f = mantissa - 1.0f, e = to_float(exponent);
  // (log(1+f) - f + f^2/2) / f^3, error of the logarithm 7e-10 relative
  vf p = splat(0.069164697f);
  p = fma(p, f, splat(-0.11791639f));
  p = fma(p, f, splat(0.11873461f));
  p = fma(p, f, splat(-0.12384090f));
  p = fma(p, f, splat(0.14218565f));
  p = fma(p, f, splat(-0.16669262f));
  p = fma(p, f, splat(0.20002231f));
  p = fma(p, f, splat(-0.24999986f));
  p = fma(p, f, splat(0.33333310f));
  const vf f2 = f * f;
  vf y = fma(p * f2, f, e * -2.12194440e-4f);
  y = fma(f2, splat(-0.5f), y);
  y = y + f;
  y = fma(e, splat(0.693359375f), y);
  y = x == 0.0f ? splat(-__builtin_inff()) : y;
  y = x == __builtin_inff() ? x : y;
  return x >= 0.0f ? y : splat(__builtin_nanf(""));
}

SPCT_INLINE vf tanh(vf x) {
  const vf a = abs(x);
  // x + x^3 P(x^2) below 0.625, error 2e-10
  const vf z = x * x;
  vf p = splat(0.0021309049f);
  p = fma(p, z, splat(-0.0081650360f));
  p = fma(p, z, splat(0.0216960710f));
  p = fma(p, z, splat(-0.0539459937f));
  p = fma(p, z, splat(0.1333320062f));
  p = fma(p, z, splat(-0.3333333069f));
  const vf small = fma(p * z, x, x);
  const vf large = copysign(1.0f - 2.0f / (exp(a + a) + 1.0f), x);
  return a < 0.625f ? small : (x == x ? large : x);
}

/// 1 / (1 + e^-x)
SPCT_INLINE vf sigmoid(vf x) { return 1.0f / (1.0f + exp(-x)); }

/// erfc(a) for a >= 1, as accurate relatively as e^(-a^2) can be.
SPCT_INLINE vf erfc_positive(vf argument) {
  const vf a = min(argument, splat(20.0f));  // erfc(20) is 0 in fp32 already
  // e^(-a^2) Q(t), t = 1/(1 + 0.4 a), fitted on 1 <= a <= 10, error 5e-9 of Q
  const vf t = 1.0f / fma(a, splat(0.4f), splat(1.0f));
  vf q = splat(-0.115802331f);
  q = fma(q, t, splat(0.241498575f));
  q = fma(q, t, splat(0.0119062474f));
  q = fma(q, t, splat(0.209849178f));
  q = fma(q, t, splat(0.200353732f));
  q = fma(q, t, splat(0.226257674f));
  q = fma(q, t, splat(0.225690212f));
  q = fma(q, t, splat(-3.73346917e-6f));
  // a^2 with its rounding error, or e^(-a^2) would lose a^2 ulp
  const vf high = a * a;
  const vf low = fma(a, a, -high);
  const vf e = exp(-high);
  return fma(-low, e, e) * q;
}

/// erf(x) for |x| <= 1: x P(x^2), error 3e-11.
SPCT_INLINE vf erf_small(vf x) {
  const vf z = x * x;
  vf p = splat(-9.6801401e-6f);
  p = fma(p, z, splat(1.12705458e-4f));
  p = fma(p, z, splat(-8.48471163e-4f));
  p = fma(p, z, splat(5.22107489e-3f));
  p = fma(p, z, splat(-2.68654458e-2f));
  p = fma(p, z, splat(1.12837827e-1f));
  p = fma(p, z, splat(-3.76126385e-1f));
  p = fma(p, z, splat(1.12837917f));
  return p * x;
}

/// The standard normal distribution function, Phi(x) = erfc(-x / sqrt 2) / 2.
SPCT_INLINE vf normal_cdf(vf x) {
  const vf y = x * 0.70710678f, a = abs(y);
  const vf tail = 0.5f * erfc_positive(a);
  const vf outside = x < 0.0f ? tail : 1.0f - tail;
  return a < 1.0f ? fma(erf_small(y), splat(0.5f), splat(0.5f)) : (x == x ? outside : x);
}

SPCT_END_LEVEL
