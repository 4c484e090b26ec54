// The inner loops of linear.cpp: a tile of rows x outputs over one chunk of the inputs.
#pragma once

#include <utility>

#include "linear.h"
#include "simd.h"

namespace preread {

// Inputs are worked off in chunks of `kChunk` 32-bit lanes of activations, whose meaning is that of the operation: the
// panels' chunk stays in the L1 cache while the tiles of rows pass over it, and short sums are no longer than that.
struct TileArgs {
  const uint32_t* a;  // [rows][kChunk] lanes
  const void* b;      // first strip (one vector of outputs) of the chunk; a step of the inputs is kWeightPanel elements on
  int64_t strip;      // elements from a strip to the next
  int64_t steps;      // at most kChunk
  const char* ahead;     // what will be read after this chunk is prefetched evenly by the tiles of this one:
  int64_t ahead_strip;  // bytes from a strip to the next
  int64_t ahead_step;   // bytes from a prefetch to the next
  float* c;           // sums [rows][c_stride]
  int64_t c_stride;
  bool first;          // c is written, not added to
  const BFloat16* groups;  // of weights that have them: what the first strip's sums of this chunk are multiplied with
  int64_t group_strip;     // elements from a strip's to the next
  const float* scales;    // [rows]: of whole numbers, what the sums of this chunk are multiplied with
  const int32_t* starts;  // [rows]: and what they start from
};

#if defined(__AVX512F__)
constexpr int kTileRows = 14;  // with two vectors of outputs: 28 sums, 2 weights and 1 activation in 32 registers
#else
constexpr int kTileRows = 6;  // 12 + 2 + 1 of 16
#endif

// float32: lanes are the activations themselves.
struct Float32Op {
  typedef Float32Op Shape;  // what has the same tiles
  typedef Vec Sum;
  struct Groups {};  // scales of one strip, once a tile
  typedef float Wide;  // what weights are widened to when several tiles use them
  static constexpr int kChunk = 64;
  static constexpr int kInputs = 1;  // of a lane
  static constexpr int kSteps = 1;   // lanes of one step of the packed weights
  static constexpr int kSumLanes = kLanes;
  static constexpr int kDirectRows = 4;  // so many rows widen weights as they read them
  static constexpr bool kHasGroups = false;
  template <class W>
  static Vec weight(const W* from) {
    return load(from);
  }
  static Vec activation(uint32_t lane) {
    float value;
    std::memcpy(&value, &lane, 4);
    return set1(value);
  }
  static Vec multiply_add(Vec x, Vec w, Vec sum) { return fma(x, w, sum); }
  // The sums of a chunk go on from those before, or are added to them.
  static Vec begin(const TileArgs& t, int, const float* c) { return t.first ? Vec{} : load(c); }
  template <bool kFirst>
  static void end(const TileArgs&, int, Vec sum, Groups, float* c) {
    store(c, sum);
  }
};

// The same for weights that are whole numbers with a scale a chunk: sums of chunks are scaled.
struct GroupedFloat32Op : Float32Op {
  struct Groups {
    Vec scales;
    Groups() = default;
    explicit Groups(const BFloat16* from) : scales(load(from)) {}
  };
  static constexpr bool kHasGroups = true;
  static_assert(kChunk == kGroupInputs, "a chunk has one scale");
  static Vec begin(const TileArgs&, int, const float*) { return Vec{}; }
  template <bool kFirst>
  static void end(const TileArgs&, int, Vec sum, const Groups& groups, float* c) {
    store(c, fma(sum, groups.scales, kFirst ? Vec{} : load(c)));
  }
};

#if defined(__AVX512FP16__)
// Rows of a tile of 1, 2, 3 or 4 vectors: at most 27 sums.
constexpr int kHalfRows[] = {12, 12, 8, 6};

// float16: lanes are pairs of the same half, so that a 32-bit broadcast (a load, no shuffle) feeds 32 of them. Sums over
// a chunk are in float16, sums of chunks in float32. The scales of rows and outputs keep the former below 2^16.
struct Float16Op {
  typedef Float16Op Shape;
  typedef __m512h Sum;
  struct Groups {};
  typedef Float16 Wide;
  static constexpr int kChunk = 64;
  static constexpr int kInputs = 1;
  static constexpr int kSteps = 1;
  static constexpr int kSumLanes = 32;
  static constexpr int kDirectRows = 12;
  static constexpr bool kHasGroups = false;
  static __m512h weight(const Float16* from) { return _mm512_loadu_ph(from); }
  static __m512h weight(const int8_t* from) {
    return _mm512_cvtepi16_ph(_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
  }
  static __m512h activation(uint32_t lane) { return (__m512h)_mm512_set1_epi32(int32_t(lane)); }
  static __m512h multiply_add(__m512h x, __m512h w, __m512h sum) { return _mm512_fmadd_ph(x, w, sum); }
  static __m512h begin(const TileArgs&, int, const float*) { return _mm512_setzero_ph(); }
  static void widen_sum(__m512h sum, Vec* low, Vec* high) {
    alignas(64) Float16 halves[32];
    _mm512_store_ph(halves, sum);
    asm volatile("" ::: "memory");  // two loads that widen cost less than a shuffle of the upper half
    *low = (Vec)_mm512_cvtxph_ps(_mm256_load_ph(halves));
    *high = (Vec)_mm512_cvtxph_ps(_mm256_load_ph(halves + 16));
  }
  template <bool kFirst>
  static void end(const TileArgs&, int, __m512h sum, Groups, float* c) {
    Vec low, high;
    widen_sum(sum, &low, &high);
    store(c, kFirst ? low : low + load(c));
    store(c + 16, kFirst ? high : high + load(c + 16));
  }
};

struct GroupedFloat16Op : Float16Op {
  struct Groups {
    Vec low, high;
    Groups() = default;
    explicit Groups(const BFloat16* from) : low(load(from)), high(load(from + 16)) {}
  };
  static constexpr bool kHasGroups = true;
  static_assert(kChunk == kGroupInputs, "a chunk has one scale");
  template <bool kFirst>
  static void end(const TileArgs&, int, __m512h sum, const Groups& groups, float* c) {
    Vec low, high;
    widen_sum(sum, &low, &high);
    store(c, kFirst ? low * groups.low : fma(low, groups.low, load(c)));
    store(c + 16, kFirst ? high * groups.high : fma(high, groups.high, load(c + 16)));
  }
};
#endif

// Four inputs of one packed output: whole numbers with an offset of 128.
struct Quad {
  uint8_t weights[4];
};

// Inputs whose activations share a scale.
constexpr int kScaleInputs = 128;

#if defined(__AVX512VNNI__)
// Whole numbers of 8 bits: lanes are four activations, signed. The weights' offset is taken off the sums at their start.
struct Int8Op {
  typedef Int8Op Shape;
  typedef __m512i Sum;
  struct Groups {};
  typedef Quad Wide;
  static constexpr int kChunk = kScaleInputs / 4;
  static constexpr int kInputs = 4;
  static constexpr int kSteps = 1;
  static constexpr int kSumLanes = 16;
  static constexpr int kDirectRows = kTileRows;
  static constexpr bool kHasGroups = false;
  static __m512i weight(const Quad* from) { return _mm512_loadu_si512(from); }
  static __m512i activation(uint32_t lane) { return _mm512_set1_epi32(int32_t(lane)); }
  static __m512i multiply_add(__m512i x, __m512i w, __m512i sum) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));  // GCC 12 copies and spills the sums of its builtin
    return sum;
  }
  static __m512i begin(const TileArgs& t, int row, const float*) { return _mm512_set1_epi32(t.starts[row]); }
  template <bool kFirst>
  static void end(const TileArgs& t, int row, __m512i sum, Groups, float* c) {
    store(c, fma((Vec)_mm512_cvtepi32_ps(sum), set1(t.scales[row]), kFirst ? Vec{} : load(c)));
  }
};
#else
// The same in float32, for processors without such instructions: sums of a chunk are below 2^24 and so exact.
struct Int8Op : Float32Op {
  static constexpr int kChunk = kScaleInputs;
  static constexpr int kSteps = 4;
  static constexpr int kDirectRows = 0;
  static Vec begin(const TileArgs&, int, const float*) { return Vec{}; }
  template <bool kFirst>
  static void end(const TileArgs& t, int row, Vec sum, Groups, float* c) {
    store(c, fma(sum, set1(t.scales[row]), kFirst ? Vec{} : load(c)));
  }
};
#endif

// One tile: kRows rows x kStrips vectors of outputs.
template <class Op, class W, int kRows, int kStrips>
void tile(const TileArgs& t) {
  typename Op::Sum sums[kRows][kStrips];
  float* const c = t.c;
  const int64_t c_stride = t.c_stride;
  const bool first = t.first;
#pragma GCC unroll 32
  for (int r = 0; r < kRows; r++)
#pragma GCC unroll 4
    for (int s = 0; s < kStrips; s++) sums[r][s] = Op::begin(t, r, c + r * c_stride + s * Op::kSumLanes);
  const W* b = static_cast<const W*>(t.b);
  const uint32_t* a = t.a;
  const char* ahead = t.ahead;
  const int64_t strip = t.strip, ahead_strip = t.ahead_strip, ahead_step = t.ahead_step;
  if constexpr (Op::kHasGroups) {
#pragma GCC unroll 4
    for (int s = 0; s < (Op::kSumLanes == kWeightPanel ? kStrips : 1); s++)
      __builtin_prefetch(ahead + s * ahead_strip - kGroupHead);
  }
  const auto step = [&](int i) __attribute__((always_inline)) {
    typename Op::Sum w[kStrips];
#pragma GCC unroll 4
    for (int s = 0; s < kStrips; s++) w[s] = Op::weight(b + s * strip + i * kWeightPanel);
#pragma GCC unroll 32
    for (int r = 0; r < kRows; r++) {
      const auto x = Op::activation(a[r * Op::kChunk + i]);
#pragma GCC unroll 4
      for (int s = 0; s < kStrips; s++) sums[r][s] = Op::multiply_add(x, w[s], sums[r][s]);
    }
  };
  constexpr int kUnroll = kRows <= 2 ? 4 : 2;  // steps at once, and a whole number of cache lines
  constexpr int kLines = kUnroll * kWeightPanel * int(sizeof(W)) / 64;
  int64_t left = t.steps;
  for (; left >= kUnroll; left -= kUnroll) {
#pragma GCC unroll 4
    for (int s = 0; s < (Op::kSumLanes == kWeightPanel ? kStrips : 1); s++)  // strips of one panel share their lines
#pragma GCC unroll 8
      for (int line = 0; line < kLines; line++) __builtin_prefetch(ahead + s * ahead_strip + line * ahead_step);
    ahead += kLines * ahead_step;
#pragma GCC unroll 4
    for (int i = 0; i < kUnroll; i++) step(i);
    a += kUnroll;
    b += kUnroll * kWeightPanel;
  }
  for (; left > 0; left--, a++, b += kWeightPanel) step(0);
  typename Op::Groups groups[kStrips];
  if constexpr (Op::kHasGroups) {
#pragma GCC unroll 4
    for (int s = 0; s < kStrips; s++) groups[s] = typename Op::Groups(t.groups + s * t.group_strip);
  }
  if (first) {
#pragma GCC unroll 32
    for (int r = 0; r < kRows; r++)
#pragma GCC unroll 4
      for (int s = 0; s < kStrips; s++)
        Op::template end<true>(t, r, sums[r][s], groups[s], c + r * c_stride + s * Op::kSumLanes);
  } else {
#pragma GCC unroll 32
    for (int r = 0; r < kRows; r++)
#pragma GCC unroll 4
      for (int s = 0; s < kStrips; s++)
        Op::template end<false>(t, r, sums[r][s], groups[s], c + r * c_stride + s * Op::kSumLanes);
  }
}

typedef void (*Tile)(const TileArgs&);

// tiles<...>()[rows - 1]
template <class Op, class W, int kStrips, int... kRows>
const Tile* tiles_of(std::integer_sequence<int, kRows...>) {
  static constexpr Tile table[] = {tile<Op, W, kRows + 1, kStrips>...};
  return table;
}
template <class Op, class W, int kStrips, int kMaxRows>
const Tile* tiles() {
  return tiles_of<Op, W, kStrips>(std::make_integer_sequence<int, kMaxRows>());
}

}  // namespace preread
