// Elementary functions on vectors, to within a few units in the last place of float32 (tests/runtime/test_program.py), and
// the activations. NaN stays NaN; infinities give what the limits are.
#pragma once

#include <limits>

#include "ops_vector.h"

namespace rewound {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// x = n ln 2 + r with |r| <= ln 2 / 2; for |x| < 2^20.
struct Reduced {
  I n;
  V r;
};
REWOUND_INLINE Reduced reduce_exponent(V x) {
  const V magic = splat(12582912.0f);  // 1.5 * 2^23: the sum's last bits are the rounded integer
  const V shifted = x * 1.44269504f + magic;
  const V n = shifted - magic;
  // ln 2 in two parts, the first of so few bits that its product with n is exact
  const V r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  return {bits(shifted) - bits(magic), r};
}
REWOUND_INLINE V power_of_two(I n) { return floats((n + 127) << 23); }  // -126 <= n <= 127

// (e^r - 1 - r) / r^2, |r| <= .35
REWOUND_INLINE V exponential_tail(V r) {
  V p = splat(1.9841270e-4f);
  p = p * r + 1.3888889e-3f;
  p = p * r + 8.3333333e-3f;
  p = p * r + 4.1666667e-2f;
  p = p * r + 1.6666667e-1f;
  return p * r + 0.5f;
}

REWOUND_INLINE V exponential(V x) {
#if defined(__AVX512F__)
  const V near = at_most(at_least(x, splat(-105.0f)), splat(90.0f));
  const __m512 whole = _mm512_maskz_roundscale_ps(0xffff, reinterpret_cast<__m512>(near * 1.44269504f), 8);
  const V k = reinterpret_cast<V>(whole);
  const V rest = (near - k * 0.693359375f) - k * -2.12194440e-4f;
  const V power = (exponential_tail(rest) * rest * rest + rest) + 1.0f;
  return reinterpret_cast<V>(_mm512_maskz_scalef_ps(0xffff, reinterpret_cast<__m512>(power), whole));
#else
  // Beyond these the result is 0 or infinity anyhow; NaN passes.
  const V bounded = at_most(at_least(x, splat(-104.0f)), splat(89.0f));
  const Reduced e = reduce_exponent(bounded);
  const V p = (exponential_tail(e.r) * e.r * e.r + e.r) + 1.0f;
  const I half = e.n >> 1;  // two steps: results may be denormal, or infinite
  return p * power_of_two(half) * power_of_two(e.n - half);
#endif
}

// e^x - 1 for x <= 88
REWOUND_INLINE V exponential_minus_one(V x) {
  const V bounded = at_most(at_least(x, splat(-60.0f)), splat(88.0f));
  const Reduced e = reduce_exponent(bounded);
  const V p = exponential_tail(e.r) * e.r * e.r + e.r;
  const V scale = power_of_two(e.n);
  return p * scale + (scale - 1.0f);
}

// The natural logarithm (Cephes' polynomial).
REWOUND_INLINE V logarithm(V x) {
  const I tiny = x < 1.17549435e-38f;
  const V y = select(tiny, x * 8388608.0f, x);
  I n = ((bits(y) >> 23) & 255) - 126;
  V m = floats((bits(y) & 0x007fffff) | 0x3f000000);  // [.5, 1)
  const I low = m < 0.707106781f;
  n = n + low;  // a mask is -1
  m = select(low, m + m, m) - 1.0f;
  n = n - (tiny & 23);
  const V e = __builtin_convertvector(n, V);
  const V z = m * m;
  V p = splat(7.0376836292e-2f);
  p = p * m - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  V r = p * m * z;
  r = r + e * -2.12194440e-4f;
  r = r - 0.5f * z;
  r = (m + r) + e * 0.693359375f;
  r = select(x == 0.0f, splat(-kInfinity), r);
  r = select(x < 0.0f, splat(std::numeric_limits<float>::quiet_NaN()), r);
  return select(is_nan(x) | (x == kInfinity), x, r);
}

// log(1 + x), 0 <= x <= 1
REWOUND_INLINE V logarithm_plus_one(V x) {
  const V w = x + 1.0f;
  return logarithm(w) + (x - (w - 1.0f)) / w;
}

REWOUND_INLINE V tanh_of(V x) {
  const V e = exponential_minus_one(-2.0f * magnitude(x));  // (-1, 0]
  const V y = with_sign(magnitude(e / (e + 2.0f)), x);
  return select(is_nan(x), x, y);
}

REWOUND_INLINE V logistic(V x) { return 1.0f / (exponential(-x) + 1.0f); }

// The error function and its complement by two minimax polynomials (after N. Juffa): erf(t) = 1 - e^far(t) for larger t, and
// near(t) for smaller ones.
struct Error {
  V near, rest;  // erf(x) where |x| is small; 1 - |erf(x)| where it is not
  I small;
};
REWOUND_INLINE Error error_function(V x) {
  const V t = magnitude(x), s = x * x;
  V far = -1.72853470e-5f * t + 3.83197126e-4f;
  const V u = -3.88396438e-3f * t + 2.42546219e-2f;
  far = far * s + u;
  far = far * t - 1.06777877e-1f;
  far = far * t - 6.34846687e-1f;
  far = far * t - 1.28717512e-1f;
  far = far * t - t;
  V near = splat(-5.96761703e-4f);
  near = near * s + 4.99119423e-3f;
  near = near * s - 2.67681349e-2f;
  near = near * s + 1.12819925e-1f;
  near = near * s - 3.76125336e-1f;
  near = near * s + 1.28379166e-1f;
  near = near * x + x;
  return {near, select(t > 4.0f, V{}, exponential(far)), t <= 0.927734375f};
}
REWOUND_INLINE V erf_of(V x) {
  const Error e = error_function(x);
  return select(is_nan(x), x, select(e.small, e.near, with_sign(1.0f - e.rest, x)));
}

// x / 2 * (1 + erf(x / sqrt 2)), without cancelling where x is negative
REWOUND_INLINE V gelu(V x) {
  const Error e = error_function(x * 0.707106781f);
  const V both = select(e.small, 1.0f + e.near, select(x < 0.0f, e.rest, 2.0f - e.rest));
  return x * 0.5f * both;
}
// x / 2 * (1 + tanh(...)): the same as a logistic function of twice the argument
REWOUND_INLINE V gelu_by_tanh(V x) { return x * logistic(1.59576912f * (x + 0.044715f * (x * x * x))); }

REWOUND_INLINE V softplus(V x) {
  const V y = at_least(x, splat(0.0f)) + logarithm_plus_one(exponential(-magnitude(x)));
  return select(is_nan(x), x, y);
}

REWOUND_INLINE V mish(V x) {
  const V e = exponential(at_most(x, splat(20.0f)));
  const V w = e * (e + 2.0f);
  return select(x > 20.0f, x, x * w / (w + 2.0f));
}

// f on n floats in place.
template <class F>
REWOUND_INLINE void map(float* y, int64_t n, F f) {
  each_vector(n, [&](int64_t i, auto part) { part.store(y + i, f(part.load(y + i))); });
}
template <class F>
REWOUND_INLINE void map_lanes(float* y, int64_t n, F f) {
  for (int64_t i = 0; i < n; ++i) y[i] = f(y[i]);
}

// An activation of n floats in place.
[[gnu::noinline]] void activate(const Activation& activation, float* y, int64_t n) {
  const V a = splat(activation.a), b = splat(activation.b);
  switch (activation.kind) {
    case Act::kNone: return;
    case Act::kClamp: return map(y, n, [=](V x) { return at_most(at_least(x, a), b); });
    case Act::kLeakyRelu: return map(y, n, [=](V x) { return select(x > 0.0f, x, x * a); });
    case Act::kElu:
      return map(y, n, [=](V x) { return select(x > 0.0f, x, a * exponential_minus_one(at_most(x, V{}))); });
    case Act::kGelu: return map(y, n, [](V x) { return gelu(x); });
    case Act::kGeluTanh: return map(y, n, [](V x) { return gelu_by_tanh(x); });
    case Act::kQuickGelu: return map(y, n, [](V x) { return x * logistic(1.702f * x); });
    case Act::kSilu: return map(y, n, [](V x) { return x / (exponential(-x) + 1.0f); });
    case Act::kHardSwish:
      return map(y, n, [](V x) { return x * at_most(at_least(x + 3.0f, V{}), splat(6.0f)) / 6.0f; });
    case Act::kHardSigmoid:
      return map(y, n, [](V x) { return at_most(at_least(x + 3.0f, V{}), splat(6.0f)) / 6.0f; });
    case Act::kSigmoid: return map(y, n, [](V x) { return logistic(x); });
    case Act::kTanh: return map(y, n, [](V x) { return tanh_of(x); });
    case Act::kExp: return map(y, n, [](V x) { return exponential(x); });
    case Act::kErf: return map(y, n, [](V x) { return erf_of(x); });
    case Act::kSqrt: return map(y, n, [](V x) { return root(x); });
    case Act::kRsqrt: return map(y, n, [](V x) { return 1.0f / root(x); });
    case Act::kNeg: return map(y, n, [](V x) { return floats(bits(x) ^ INT32_MIN); });
    case Act::kAbs: return map(y, n, [](V x) { return magnitude(x); });
    case Act::kLog: return map(y, n, [](V x) { return logarithm(x); });
    case Act::kSoftplus: return map(y, n, [](V x) { return softplus(x); });
    case Act::kMish: return map(y, n, [](V x) { return mish(x); });
    case Act::kReciprocal: return map(y, n, [](V x) { return 1.0f / x; });
    case Act::kSquare: return map(y, n, [](V x) { return x * x; });
    case Act::kSin: return map_lanes(y, n, [](float x) { return __builtin_sinf(x); });
    case Act::kCos: return map_lanes(y, n, [](float x) { return __builtin_cosf(x); });
  }
}

}  // namespace
}  // namespace rewound
