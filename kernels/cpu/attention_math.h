// Vector pieces of attention: powers of two, transposition, sums over registers.
#pragma once

#include <utility>

#include "simd.h"

namespace preread {

// 2^x for x <= 127, to 2 ulp; below -126 gives 0, NaN stays NaN.
static inline Vec exp2(Vec x) {
#if defined(__AVX512F__)
  const Vec clamped = (Vec)_mm512_max_ps((__m512)set1(-200.f), (__m512)x);  // the second operand where one is NaN
  const Vec n = (Vec)_mm512_roundscale_ps((__m512)clamped, _MM_FROUND_TO_NEAREST_INT);
#else
  const Vec clamped = x < -126.f ? set1(-126.f) : x;
  const Vec magic = set1(12582912.f);  // 1.5 * 2^23: adding it rounds to a whole number
  const Vec n = (clamped + magic) - magic;
#endif
  const Vec r = clamped - n;
  Vec p = set1(1.5403530e-4f);
  p = fma(p, r, set1(1.3333558e-3f));
  p = fma(p, r, set1(9.6181291e-3f));
  p = fma(p, r, set1(5.5504109e-2f));
  p = fma(p, r, set1(2.4022651e-1f));
  p = fma(p, r, set1(6.9314718e-1f));
  p = fma(p, r, set1(1.f));
#if defined(__AVX512F__)
  return (Vec)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  const VecI exponent = (__builtin_convertvector(n, VecI) + 127) << 23;
  Vec scale;
  std::memcpy(&scale, &exponent, sizeof scale);
  return x < -126.f ? Vec{} : p * scale;
#endif
}

// One step of a transposition: lanes whose index has bit W of `a` and `b` change places with the others.
template <int W, int... I>
static inline __attribute__((always_inline)) void exchange(Vec& a, Vec& b, std::integer_sequence<int, I...>) {
  const Vec low = __builtin_shufflevector(a, b, (I & W ? kLanes + I - W : I)...);
  const Vec high = __builtin_shufflevector(a, b, (I & W ? kLanes + I : I + W)...);
  a = low;
  b = high;
}

template <int W = kLanes / 2>
static inline __attribute__((always_inline)) void transpose(Vec* rows) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; i++)
    if (!(i & W)) exchange<W>(rows[i], rows[i + W], std::make_integer_sequence<int, kLanes>());
  if constexpr (W > 1) transpose<W / 2>(rows);
}

// Lane i of the result is the sum of vector i.
template <int W = kLanes / 2>
static inline __attribute__((always_inline)) Vec sum_each(Vec* vectors) {
#pragma GCC unroll 16
  for (int i = 0; i < W; i++) {
    exchange<W>(vectors[i], vectors[i + W], std::make_integer_sequence<int, kLanes>());
    vectors[i] += vectors[i + W];
  }
  if constexpr (W > 1)
    return sum_each<W / 2>(vectors);
  else
    return vectors[0];
}

static inline float highest(Vec value) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)value);
#endif
  float result = value[0];
  for (int i = 1; i < kLanes; i++) result = value[i] > result ? value[i] : result;
  return result;
}

static inline float total(Vec value) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)value);
#else
  return sum(value);
#endif
}

}  // namespace preread
