// Vectors of float32 in the widest registers of the variant, and the element types that are loaded into them.
// Written with compiler vectors so that one source serves every variant; intrinsics only where they are faster.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "common.h"

namespace preread {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t VecI __attribute__((vector_size(kLanes * 4)));
typedef float VecU __attribute__((vector_size(kLanes * 4), aligned(4)));  // unaligned in memory

static inline Vec set1(float value) { return value - Vec{}; }

static inline float to_float(float value) { return value; }
static inline float to_float(BFloat16 value) {
  const uint32_t bits = uint32_t(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}
static inline float to_float(Float16 value) {
  _Float16 half;
  std::memcpy(&half, &value, 2);
  return float(half);
}
static inline float to_float(int8_t value) { return float(value); }

static inline void from_float(float value, float* to) { *to = value; }
static inline void from_float(float value, BFloat16* to) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
  to->bits = is_nan ? uint16_t(bits >> 16 | 0x40) : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
static inline void from_float(float value, Float16* to) {
  const _Float16 half = _Float16(value);
  std::memcpy(to, &half, 2);
}

// Load kLanes elements as float32.
static inline Vec load(const float* from) { return *reinterpret_cast<const VecU*>(from); }
static inline Vec load(const BFloat16* from) {
#if defined(__AVX512F__)
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16);
#elif defined(__AVX2__)
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return (Vec)_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16);
#else
  Vec result;
  for (int i = 0; i < kLanes; i++) result[i] = to_float(from[i]);
  return result;
#endif
}
static inline Vec load(const Float16* from) {
#if defined(__AVX512F__)
  return (Vec)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__F16C__)
  return (Vec)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
  Vec result;
  for (int i = 0; i < kLanes; i++) result[i] = to_float(from[i]);
  return result;
#endif
}
static inline Vec load(const int8_t* from) {
#if defined(__AVX512F__)
  return (Vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#elif defined(__AVX2__)
  return (Vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
#else
  Vec result;
  for (int i = 0; i < kLanes; i++) result[i] = float(from[i]);
  return result;
#endif
}

// Store kLanes float32 values, rounded to nearest even.
static inline void store(float* to, Vec value) { *reinterpret_cast<VecU*>(to) = value; }
static inline void store(Float16* to, Vec value) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < kLanes; i++) from_float(value[i], to + i);
#endif
}
static inline void store(BFloat16* to, Vec value) {
#if defined(__AVX512BF16__)
  const __m256bh bits = _mm512_cvtneps_pbh((__m512)value);
  std::memcpy(to, &bits, 32);
#else
  for (int i = 0; i < kLanes; i++) from_float(value[i], to + i);
#endif
}

// Load and store the first n < kLanes elements; the rest read as 0.
template <class T>
static inline Vec load_part(const T* from, int n) {
  Vec result = {};
  for (int i = 0; i < n; i++) result[i] = to_float(from[i]);
  return result;
}
template <class T>
static inline void store_part(T* to, Vec value, int n) {
  for (int i = 0; i < n; i++) from_float(value[i], to + i);
}

static inline Vec fma(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}
static inline Vec max(Vec a, Vec b) { return a > b ? a : b; }

static inline float sum(Vec value) {
  float total = 0;
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; i++) value[i] += value[i + width];
  total = value[0];
  return total;
}

// e^x for any x: 2 ulp or so; -inf and anything below -87.3 gives 0, NaN stays NaN (Cody-Waite reduction, degree-6 polynomial).
static inline Vec exp(Vec x) {
  const Vec clamped = x < -87.3f ? set1(-87.3f) : (x > 88.3f ? set1(88.3f) : x);
#if defined(__AVX512F__)
  const Vec n = (Vec)_mm512_roundscale_ps((__m512)(clamped * 1.44269504f), _MM_FROUND_TO_NEAREST_INT);
#elif defined(__AVX2__)
  const Vec n = (Vec)_mm256_round_ps((__m256)(clamped * 1.44269504f), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const Vec magic = set1(12582912.f);  // 1.5 * 2^23: adding it rounds to a whole number
  const Vec n = (clamped * 1.44269504f + magic) - magic;
#endif
  Vec r = fma(n, set1(-0.693359375f), clamped);
  r = fma(n, set1(2.12194440e-4f), r);
  Vec p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  p = fma(p, r * r, r) + 1.f;
  const VecI exponent = (__builtin_convertvector(n, VecI) + 127) << 23;
  Vec scale;
  std::memcpy(&scale, &exponent, sizeof scale);
  const Vec result = x < -87.3f ? Vec{} : p * scale;
  return x != x ? x : result;
}

}  // namespace preread
