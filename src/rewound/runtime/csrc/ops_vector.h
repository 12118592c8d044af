// Vectors of floats of the instruction set that is being compiled (included by kernels.cc alone, once for each).
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "ops.h"

namespace rewound {
// Nameless, so that each instruction set keeps its own: the linker would otherwise choose one for all.
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float V __attribute__((vector_size(kLanes * sizeof(float))));
typedef int32_t I __attribute__((vector_size(kLanes * sizeof(int32_t))));

REWOUND_INLINE V load(const float* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
REWOUND_INLINE void store(float* p, V v) { std::memcpy(p, &v, sizeof v); }
REWOUND_INLINE V splat(float x) { return x - V{}; }

#if defined(__AVX2__) && !defined(__AVX512F__)
REWOUND_INLINE __m256i first_lanes(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
#endif

// The first n < kLanes floats, zeros after them; nothing beyond is touched.
REWOUND_INLINE V load(const float* p, int64_t n) {
#if defined(__AVX512F__)
  return reinterpret_cast<V>(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p));
#elif defined(__AVX2__)
  return reinterpret_cast<V>(_mm256_maskload_ps(p, first_lanes(n)));
#else
  V v = {};
  for (int64_t i = 0; i < n; ++i) v[i] = p[i];
  return v;
#endif
}
REWOUND_INLINE void store(float* p, V v, int64_t n) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), reinterpret_cast<__m512>(v));
#elif defined(__AVX2__)
  _mm256_maskstore_ps(p, first_lanes(n), reinterpret_cast<__m256>(v));
#else
  for (int64_t i = 0; i < n; ++i) p[i] = v[i];
#endif
}

REWOUND_INLINE I bits(V v) { return reinterpret_cast<I>(v); }
REWOUND_INLINE V floats(I i) { return reinterpret_cast<V>(i); }
REWOUND_INLINE V select(I mask, V yes, V no) {
#if defined(__AVX512F__)
  return reinterpret_cast<V>(_mm512_mask_blend_ps(_mm512_movepi32_mask(reinterpret_cast<__m512i>(mask)),
                                                  reinterpret_cast<__m512>(no), reinterpret_cast<__m512>(yes)));
#else
  return floats((bits(yes) & mask) | (bits(no) & ~mask));
#endif
}
REWOUND_INLINE V magnitude(V x) { return floats(bits(x) & 0x7fffffff); }
REWOUND_INLINE V with_sign(V x, V sign) { return floats(bits(x) | (bits(sign) & INT32_MIN)); }  // x >= 0
REWOUND_INLINE I is_nan(V x) { return x != x; }

// NaN of x stays NaN; bounds are numbers. The processor's maximum is its second operand where one is NaN.
REWOUND_INLINE V at_least(V x, V bound) {
#if defined(__AVX512F__)
  return reinterpret_cast<V>(_mm512_maskz_max_ps(0xffff, reinterpret_cast<__m512>(bound), reinterpret_cast<__m512>(x)));
#elif defined(__AVX2__)
  return reinterpret_cast<V>(_mm256_max_ps(reinterpret_cast<__m256>(bound), reinterpret_cast<__m256>(x)));
#else
  return select(x < bound, bound, x);
#endif
}
REWOUND_INLINE V at_most(V x, V bound) {
#if defined(__AVX512F__)
  return reinterpret_cast<V>(_mm512_maskz_min_ps(0xffff, reinterpret_cast<__m512>(bound), reinterpret_cast<__m512>(x)));
#elif defined(__AVX2__)
  return reinterpret_cast<V>(_mm256_min_ps(reinterpret_cast<__m256>(bound), reinterpret_cast<__m256>(x)));
#else
  return select(x > bound, bound, x);
#endif
}
// NaN if either is.
REWOUND_INLINE V larger(V a, V b) { return select(is_nan(a), a, at_least(b, a)); }
REWOUND_INLINE V smaller(V a, V b) { return select(is_nan(a), a, at_most(b, a)); }

REWOUND_INLINE V root(V x) {
#if defined(__AVX512F__)
  return reinterpret_cast<V>(_mm512_maskz_sqrt_ps(0xffff, reinterpret_cast<__m512>(x)));
#elif defined(__AVX2__)
  return reinterpret_cast<V>(_mm256_sqrt_ps(reinterpret_cast<__m256>(x)));
#else
  V y;
  for (int i = 0; i < kLanes; ++i) y[i] = __builtin_sqrtf(x[i]);
  return y;
#endif
}

REWOUND_INLINE float total(V v) {
  float sum[kLanes];
  store(sum, v);
  for (int n = kLanes / 2; n > 0; n /= 2)
    for (int i = 0; i < n; ++i) sum[i] += sum[i + n];
  return sum[0];
}
REWOUND_INLINE float largest(V v) {
  float x = v[0];
  for (int i = 1; i < kLanes; ++i) x = v[i] > x || v[i] != v[i] ? v[i] : x;
  return x;
}

template <size_t... N>
REWOUND_INLINE V even_lanes(V a, V b, std::index_sequence<N...>) {
  return __builtin_shufflevector(a, b, (2 * N)...);
}
// p[0], p[2], p[4], ...; 2 * kLanes floats are read.
REWOUND_INLINE V every_second(const float* p) {
  return even_lanes(load(p), load(p + kLanes), std::make_index_sequence<kLanes>());
}

// The same of which the first n <= kLanes lanes are wanted: nothing beyond p[2 * n - 2] is touched.
REWOUND_INLINE V every_second(const float* p, int64_t n) {
  const int64_t count = 2 * n - 1;
  return count < kLanes ? even_lanes(load(p, count), V{}, std::make_index_sequence<kLanes>())
                        : even_lanes(load(p), load(p + kLanes, count - kLanes), std::make_index_sequence<kLanes>());
}

// f(position, how many) for each vector of n floats; how many = kLanes but at the end. f takes it as a constant there.
struct Full {
  REWOUND_INLINE V load(const float* p) const { return rewound::load(p); }
  REWOUND_INLINE void store(float* p, V v) const { rewound::store(p, v); }
};
struct Rest {
  int64_t n;
  REWOUND_INLINE V load(const float* p) const { return rewound::load(p, n); }
  REWOUND_INLINE void store(float* p, V v) const { rewound::store(p, v, n); }
};
template <class F>
REWOUND_INLINE void each_vector(int64_t n, F f) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) f(i, Full{});
  if (i < n) f(i, Rest{n - i});
}

}  // namespace
}  // namespace rewound
