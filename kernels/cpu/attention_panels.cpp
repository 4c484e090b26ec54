// Many query lanes (prefill, shared runs): lanes are the vector, keys and values are broadcast, so that the softmax
// needs no sums across a register. Scores^T [keys, lanes] = K . Q^T and out^T [dim, lanes] += V^T . weights^T.
#include <algorithm>
#include <cstring>
#include <type_traits>

#include "attention_work.h"

namespace preread {
namespace {

#if defined(__AVX512F__)
constexpr int kRows = 13;  // with two vectors: 26 sums, 2 operands and a broadcast in 32 registers
#else
constexpr int kRows = 6;
#endif
constexpr int kWide = 2 * kLanes;  // lanes of one float32 product
constexpr int kMaxDim = 1024;
constexpr int kBlock = 2;          // key tiles that are converted together
// Bound on partial sums of scores (base 2) up to which float16 sums are close enough, and on |V| below which no sum
// of kKeyTile weighted values overflows.
constexpr float kHalfScores = 512.f, kHalfValues = 60000.f / kKeyTile;
[[maybe_unused]] constexpr float kHalfNormal = 6.1e-5f;  // float16 below it have fewer bits

struct Floats {
  typedef Vec V;
  typedef float Shared;  // the operand that is broadcast
  typedef float Lane;
  static constexpr int lanes = kLanes;
  static V spread(const Shared* from) { return set1(*from); }
  static V get(const Lane* from) { return load(from); }
  static V multiply_add(V a, V b, V c) { return fma(a, b, c); }
};

#if defined(__AVX512FP16__)
struct Halves {
  typedef __m512h V;
  typedef uint32_t Shared;  // twice the same float16: broadcasting 32 bits needs no shuffle
  typedef _Float16 Lane;
  static constexpr int lanes = 32;
  static V spread(const Shared* from) { return _mm512_castsi512_ph(_mm512_set1_epi32(int(*from))); }
  static V get(const Lane* from) { return _mm512_loadu_ph(from); }
  static V multiply_add(V a, V b, V c) { return _mm512_fmadd_ph(a, b, c); }
};
#endif

// Sum over n of a[r * row + n * step] * b[n * ldb + lanes], for R rows and NV vectors of lanes; finish(r, v, sum).
template <class M, int R, int NV, class Finish>
inline __attribute__((always_inline)) void product(const typename M::Shared* a, int64_t row, int64_t step,
                                                   const typename M::Lane* b, int64_t ldb, int64_t n, Finish finish) {
  typename M::V sums[R][NV];
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 2
    for (int v = 0; v < NV; v++) sums[r][v] = typename M::V{};
  for (int64_t i = 0; i < n; i++) {
    typename M::V lanes[NV];
#pragma GCC unroll 2
    for (int v = 0; v < NV; v++) lanes[v] = M::get(b + v * M::lanes);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      const typename M::V shared = M::spread(a + r * row);
#pragma GCC unroll 2
      for (int v = 0; v < NV; v++) sums[r][v] = M::multiply_add(shared, lanes[v], sums[r][v]);
    }
    a += step;
    b += ldb;
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 2
    for (int v = 0; v < NV; v++) finish(r, v, sums[r][v]);
}

// Call work(integral_constant<R>, first) for `count` rows, in blocks of kRows and a smaller rest.
template <int R = kRows, class Work>
inline __attribute__((always_inline)) void by_rows(int64_t count, Work work) {
  int64_t first = 0;
  for (; first + R <= count; first += R) work(std::integral_constant<int, R>(), first);
  if constexpr (R > 1) {
    if (first < count) {
      // one of the smaller blocks takes the whole rest
      const auto rest = [&](auto self, auto size) -> void {
        if (count - first == size) return work(size, first);
        if constexpr (size > 1) self(self, std::integral_constant<int, size - 1>());
      };
      rest(rest, std::integral_constant<int, R - 1>());
    }
  }
}

// Query lanes of one kv head with their state.
struct Panel {
  int32_t lanes, lowest, latest;  // used lanes; their lowest and highest position
  bool wide;                      // has met numbers too large for float16: stays with float32
  float* q;                       // [dim, kPanel], rotated and scaled
  float* out;                     // [dim, kPanel], not normalised
  float* best;                    // [kPanel], highest score so far
  float* total;                   // [kPanel]
  int32_t* position;              // [kPanel]
  float* q_limit;                 // [dim], largest magnitude of any lane
  Float16* q_half;                // [dim, kPanel]

  static int64_t bytes(int64_t dim) { return (dim * kPanel * 10 + 3 * kPanel * 4 + dim * 4 + 63) / 64 * 64; }
  void place(char* memory, int64_t dim) {
    const auto take = [&](int64_t count, int64_t size) {
      char* taken = memory;
      memory += count * size;
      return taken;
    };
    q = reinterpret_cast<float*>(take(dim * kPanel, 4));
    out = reinterpret_cast<float*>(take(dim * kPanel, 4));
    q_half = reinterpret_cast<Float16*>(take(dim * kPanel, 2));
    best = reinterpret_cast<float*>(take(kPanel, 4));
    total = reinterpret_cast<float*>(take(kPanel, 4));
    position = reinterpret_cast<int32_t*>(take(kPanel, 4));
    q_limit = reinterpret_cast<float*>(take(dim, 4));
  }
};

// Whether keys and values of this type are worked on in float16 where their magnitudes allow it.
#if defined(__AVX512FP16__)
template <class T>
constexpr bool kInHalves = std::is_same_v<T, Float16> || std::is_same_v<T, int8_t>;
#else
template <class T>
constexpr bool kInHalves = false;
#endif

// Keys and values of a tile, converted; those of int8 times their scales.
struct Tile {
  const KeyTile* range;
  TileKeys keys;
  alignas(64) float k_scales[kKeyTile] = {}, v_scales[kKeyTile] = {};  // of int8
  bool has_floats;
  float *k, *v;         // [kKeyTile, dim]
  uint32_t *k2, *v2;    // [kKeyTile, dim], each float16 twice
  float* k_limit;       // [dim rounded up to 32], largest magnitude of any key
  float v_limit;

  static int64_t bytes(int64_t dim) { return (dim * kKeyTile * 16 + (dim + 31) / 32 * 32 * 4 + 63) / 64 * 64; }
  void place(char* memory, int64_t dim) {
    k2 = reinterpret_cast<uint32_t*>(memory);
    v2 = k2 + kKeyTile * dim;
    k = reinterpret_cast<float*>(v2 + kKeyTile * dim);
    v = k + kKeyTile * dim;
    k_limit = v + kKeyTile * dim;
  }
};

template <class T>
void copy_row(const T* from, int64_t dim, float scale, float* to) {
  const auto scaled = [scale](auto value) { return kScaled<T> ? value * scale : value; };
  int64_t i = 0;
  for (; i + kLanes <= dim; i += kLanes) store(to + i, scaled(load(from + i)));
  for (; i < dim; i++) to[i] = scaled(to_float(from[i]));
}

template <class T>
void load_floats(const T* keys, int64_t value_offset, int64_t dim, Tile& tile) {
  for (int j = 0; j < tile.keys.count; j++) {
    copy_row(keys + tile.keys.offset[j], dim, tile.k_scales[j], tile.k + j * dim);
    copy_row(keys + tile.keys.offset[j] + value_offset, dim, tile.v_scales[j], tile.v + j * dim);
  }
  tile.has_floats = true;
}

// Ask memory for the queries of a panel.
void fetch_queries(const AttendArgs& args, const Piece& piece, int64_t first_lane, const Panel& panel) {
  const AttendPlan& plan = *args.plan;
  const int64_t group = plan.group_size, width = group * plan.head_dim;
  for (int64_t row = first_lane / group; row <= (first_lane + panel.lanes - 1) / group; row++) {
    const float* q = args.q + plan.rows[piece.rows + row] * args.q_stride + piece.kv_head * width;
    for (int64_t i = 0; i < width; i += 16) __builtin_prefetch(q + i);
  }
}

// Ask memory for where the results of a panel go.
void fetch_targets(const AttendArgs& args, const Piece& piece, int64_t first_lane, const Panel& panel) {
  const AttendPlan& plan = *args.plan;
  const int64_t group = plan.group_size, width = group * plan.head_dim;
  for (int64_t row = first_lane / group; row <= (first_lane + panel.lanes - 1) / group; row++) {
    const float* out = target_of(args, piece, row, 0).out;
    for (int64_t i = 0; i < width; i += 16) __builtin_prefetch(out + i, 1);
  }
}

// Rotate the queries of a panel for a shift, and turn them so that lanes are adjacent.
void load_panel(const AttendArgs& args, const Piece& piece, int64_t first_lane, int32_t shift, Panel& panel) {
  const AttendPlan& plan = *args.plan;
  const int64_t dim = plan.head_dim, padded = (dim + kLanes - 1) / kLanes * kLanes;
  float rows[kLanes * kMaxDim];
  for (int64_t first = 0; first < kPanel; first += kLanes) {
    for (int64_t i = 0; i < kLanes; i++) {
      const int64_t lane = first_lane + first + i;
      float* row = rows + i * padded;
      if (first + i < panel.lanes)
        load_query(args, plan.rows[piece.rows + lane / plan.group_size],
                   piece.kv_head * plan.group_size + lane % plan.group_size, shift, row);
      else
        std::memset(row, 0, size_t(dim) * 4);
      for (int64_t d = dim; d < padded; d++) row[d] = 0;
    }
    for (int64_t d = 0; d < dim; d += kLanes) {
      Vec square[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; i++) square[i] = load(rows + i * padded + d);
      transpose(square);
      if (d + kLanes <= dim) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; i++) store(panel.q + (d + i) * kPanel + first, square[i]);
        continue;
      }
      for (int i = 0; d + i < dim; i++) store(panel.q + (d + i) * kPanel + first, square[i]);
    }
  }
}

void start_panel(const AttendPlan& plan, const Piece& piece, int64_t first_lane, int64_t lanes, Panel& panel) {
  panel.lanes = int32_t(lanes);
  panel.wide = false;
  std::memset(panel.out, 0, size_t(plan.head_dim) * kPanel * 4);
  for (int64_t i = 0; i < kPanel; i++) {
    const int64_t lane = first_lane + (i < lanes ? i : 0);
    panel.best[i] = -INFINITY;
    panel.total[i] = 0;
    panel.position[i] = plan.positions[plan.rows[piece.rows + lane / plan.group_size]];
  }
  panel.lowest = *std::min_element(panel.position, panel.position + lanes);
  panel.latest = *std::max_element(panel.position, panel.position + lanes);
}

void finish_panel(const AttendArgs& args, const Piece& piece, int64_t first_lane, const Panel& panel) {
  const AttendPlan& plan = *args.plan;
  const int64_t dim = plan.head_dim;
  for (int64_t first = 0; first < panel.lanes; first += kLanes) {
    Target targets[kLanes];
    const Vec total = load(panel.total + first);
    const Vec scale = total == 0.f ? Vec{} : 1.f / total;
    const int64_t count = std::min<int64_t>(kLanes, panel.lanes - first);
    for (int64_t i = 0; i < count; i++) {
      const int64_t lane = first_lane + first + i;
      targets[i] = target_of(args, piece, lane / plan.group_size, lane % plan.group_size);
      if (targets[i].lse != nullptr) *targets[i].lse = panel.best[first + i] + std::log2(panel.total[first + i]);
    }
    for (int64_t d = 0; d < dim; d += kLanes) {
      Vec square[kLanes];
      const int64_t wide = std::min<int64_t>(kLanes, dim - d);
      const float* out = panel.out + d * kPanel + first;
#pragma GCC unroll 16
      for (int64_t i = 0; i < kLanes; i++) square[i] = load(out + (i < wide ? i : 0) * kPanel) * scale;
      transpose(square);
      if (count == kLanes && wide == kLanes) {
#pragma GCC unroll 16
        for (int64_t i = 0; i < kLanes; i++) store(targets[i].out + d, square[i]);
        continue;
      }
      for (int64_t i = 0; i < count; i++) {
        if (wide == kLanes)
          store(targets[i].out + d, square[i]);
        else
          store_part(targets[i].out + d, square[i], int(wide));
      }
    }
  }
}

// Hide the scores of lanes that do not see a key.
inline Vec visible(Vec score, VecI lane_position, int32_t key_position, int32_t window) {
  const VecI seen = (lane_position >= key_position) & (lane_position - window < key_position);
  return seen ? score : set1(-INFINITY);
}

// The first `count` keys of a tile against NV vectors of lanes in float32.
template <int NV, int DIM>
void attend_floats(const AttendPlan& plan, const Tile& tile, int count, bool masked, int64_t first, Panel& panel) {
  const int64_t dim = DIM ? DIM : plan.head_dim;
  alignas(64) float scores[kKeyTile * kWide];
  by_rows(count, [&](auto size, int64_t row) {
    product<Floats, size, NV>(tile.k + row * dim, dim, 1, panel.q + first, kPanel, dim, [&](int r, int v, Vec sum) {
      store(scores + (row + r) * kWide + v * kLanes, sum);
    });
  });
  Vec factor[NV];
  for (int v = 0; v < NV; v++) {
    float* lane = scores + v * kLanes;
    const int64_t at = first + v * kLanes;
    VecI position;
    std::memcpy(&position, panel.position + at, sizeof position);
    const Vec before = load(panel.best + at);
    Vec best = before;
    for (int j = 0; j < count; j++) {
      Vec score = load(lane + j * kWide);
      if (masked) {
        score = visible(score, position, tile.keys.position[j], plan.window);
        store(lane + j * kWide, score);
      }
      best = max(score, best);
    }
    const Vec base = best == -INFINITY ? Vec{} : best;
    factor[v] = exp2(before - base);
    Vec total = {};
    for (int j = 0; j < count; j++) {
      const Vec weight = exp2(load(lane + j * kWide) - base);
      total += weight;
      store(lane + j * kWide, weight);
    }
    store(panel.best + at, best);
    store(panel.total + at, fma(load(panel.total + at), factor[v], total));
  }
  by_rows(dim, [&](auto size, int64_t row) {
    product<Floats, size, NV>(tile.v + row, 1, dim, scores, kWide, count, [&](int r, int v, Vec sum) {
      float* out = panel.out + (row + r) * kPanel + first + v * kLanes;
      store(out, fma(load(out), factor[v], sum));
    });
  });
}

#if defined(__AVX512FP16__)

inline Vec low_half(__m512h x) { return (Vec)_mm512_cvtxph_ps(_mm512_castph512_ph256(x)); }
inline Vec high_half(__m512h x) {
  return (Vec)_mm512_cvtxph_ps(_mm256_castsi256_ph(_mm512_extracti64x4_epi64(_mm512_castph_si512(x), 1)));
}
inline __m512h halves(Vec low, Vec high) {
  const __m256i a = _mm256_castph_si256(_mm512_cvtxps_ph((__m512)low));
  const __m256i b = _mm256_castph_si256(_mm512_cvtxps_ph((__m512)high));
  return _mm512_castsi512_ph(_mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1));
}

// 2^x for x <= 0 to 2^-11, by 2^floor(x) and a cubic for the rest.
inline __m512h exp2_half(__m512h x) {
  const __m512h r = _mm512_reduce_ph(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  __m512h p = _mm512_set1_ph(0.078024523f);
  p = _mm512_fmadd_ph(p, r, _mm512_set1_ph(0.22606716f));
  p = _mm512_fmadd_ph(p, r, _mm512_set1_ph(0.69583282f));
  p = _mm512_fmadd_ph(p, r, _mm512_set1_ph(1.f));
  return _mm512_scalef_ph(p, x);
}

// The bits of 32 float16, of which `used` are read.
template <bool WHOLE>
inline __m512i load_columns(const Float16* from, __mmask32 used, float) {
  return WHOLE ? _mm512_loadu_si512(from) : _mm512_maskz_loadu_epi16(used, from);
}
template <bool WHOLE>
inline __m512i load_columns(const int8_t* from, __mmask32 used, float scale) {
  const __m256i bytes = WHOLE ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))
                              : _mm256_maskz_loadu_epi8(used, from);
  const __m512i low = _mm512_cvtepi8_epi32(_mm256_castsi256_si128(bytes));
  const __m512i high = _mm512_cvtepi8_epi32(_mm256_extracti128_si256(bytes, 1));
  return _mm512_castph_si512(halves((Vec)_mm512_cvtepi32_ps(low) * scale, (Vec)_mm512_cvtepi32_ps(high) * scale));
}

// Convert 32 dimensions of the keys or values of a tile to pairs. Returns the largest magnitude of each as the bits of
// a float16, where NaN is the highest.
template <class T>
inline __m512i spread_columns(const T* from, const float* scales, const TileKeys& keys, int64_t dim, int64_t first,
                              uint32_t* to) {
  const __m512i magnitude = _mm512_set1_epi16(0x7fff);
  const __m512i low = _mm512_set_epi16(15, 15, 14, 14, 13, 13, 12, 12, 11, 11, 10, 10, 9, 9, 8, 8, 7, 7, 6, 6, 5, 5, 4,
                                       4, 3, 3, 2, 2, 1, 1, 0, 0);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  const int64_t count = std::min<int64_t>(32, dim - first);
  __m512i limit = _mm512_setzero_si512();
  from += first;
  to += first;
  if (count == 32) {
    for (int j = 0; j < keys.count; j++) {
      const __m512i x = load_columns<true>(from + keys.offset[j], 0, scales[j]);
      limit = _mm512_max_epu16(_mm512_and_si512(x, magnitude), limit);
      _mm512_storeu_si512(to + j * dim, _mm512_permutexvar_epi16(low, x));
      _mm512_storeu_si512(to + j * dim + 16, _mm512_permutexvar_epi16(high, x));
    }
    return limit;
  }
  const uint32_t used = (uint32_t(1) << count) - 1;
  for (int j = 0; j < keys.count; j++) {
    const __m512i x = load_columns<false>(from + keys.offset[j], used, scales[j]);
    limit = _mm512_max_epu16(_mm512_and_si512(x, magnitude), limit);
    _mm512_mask_storeu_epi32(to + j * dim, __mmask16(used), _mm512_permutexvar_epi16(low, x));
    _mm512_mask_storeu_epi32(to + j * dim + 16, __mmask16(count < 16 ? 0 : used >> 16), _mm512_permutexvar_epi16(high, x));
  }
  return limit;
}

template <class T>
void load_halves(const T* keys, int64_t value_offset, int64_t dim, Tile& tile) {
  __m512i value_limit = _mm512_setzero_si512();
  for (int64_t i = 0; i < dim; i += 32) {
    const __m512i limit = spread_columns(keys, tile.k_scales, tile.keys, dim, i, tile.k2);
    alignas(64) Float16 limits[32];
    _mm512_store_si512(limits, limit);
    store(tile.k_limit + i, load(limits));
    store(tile.k_limit + i + kLanes, load(limits + kLanes));
    value_limit = _mm512_max_epu16(
        value_limit, spread_columns(keys + value_offset, tile.v_scales, tile.keys, dim, i, tile.v2));
  }
  const __m512i low = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(value_limit));
  const __m512i high = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(value_limit, 1));
  tile.v_limit = to_float(Float16{uint16_t(_mm512_reduce_max_epu32(_mm512_max_epu32(low, high)))});
  // int8 may stand for values of which float16 would keep few bits
  if (kScaled<T> && tile.v_limit < kHalfNormal && tile.v_limit > 0) tile.v_limit = INFINITY;
}

// Make the float16 form of a panel's queries.
void load_half_panel(int64_t dim, Panel& panel) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  for (int64_t d = 0; d < dim; d++) {
    __m512i limit = _mm512_setzero_si512();
    for (int i = 0; i < kPanel; i += kLanes) {
      const Vec q = load(panel.q + d * kPanel + i);
      limit = _mm512_max_epi32(limit, _mm512_and_si512((__m512i)q, magnitude));
      store(panel.q_half + d * kPanel + i, q);
    }
    const int32_t bits = _mm512_reduce_max_epi32(limit);
    std::memcpy(panel.q_limit + d, &bits, 4);
  }
}

// Whether float16 sums are close enough: no partial sum exceeds what the largest magnitudes give. NaN does not fit.
inline bool fits_halves(const Panel& panel, const Tile& tile, int64_t dim) {
  Vec bound = {};
  int64_t d = 0;
  for (; d + kLanes <= dim; d += kLanes) bound = fma(load(panel.q_limit + d), load(tile.k_limit + d), bound);
  float total = _mm512_reduce_add_ps((__m512)bound);
  for (; d < dim; d++) total += panel.q_limit[d] * tile.k_limit[d];
  return total < kHalfScores && tile.v_limit < kHalfValues;
}

inline __mmask32 visible_lanes(const int32_t* position, int32_t key, int32_t window) {
  const __m512i a = _mm512_loadu_si512(position), b = _mm512_loadu_si512(position + 16);
  const __m512i first = _mm512_set1_epi32(key), beyond = _mm512_set1_epi32(key + window);
  const __mmask16 low = _mm512_mask_cmplt_epi32_mask(_mm512_cmpge_epi32_mask(a, first), a, beyond);
  const __mmask16 high = _mm512_mask_cmplt_epi32_mask(_mm512_cmpge_epi32_mask(b, first), b, beyond);
  return _mm512_kunpackw(high, low);
}

// As `attend_floats`, with float16 products that are summed over at most kKeyTile keys, or one head.
template <int NV, int DIM>
void attend_halves(const AttendPlan& plan, const Tile& tile, int count, bool masked, Panel& panel) {
  const int64_t dim = DIM ? DIM : plan.head_dim;
  const _Float16* q = reinterpret_cast<const _Float16*>(panel.q_half);
  alignas(64) _Float16 scores[kKeyTile * kPanel];
  __m512h highest[NV];
  for (int v = 0; v < NV; v++) highest[v] = _mm512_set1_ph(-INFINITY);
  by_rows(count, [&](auto size, int64_t row) {
    product<Halves, size, NV>(tile.k2 + row * dim, dim, 1, q, kPanel, dim, [&](int r, int v, __m512h sum) {
      _mm512_store_ph(scores + (row + r) * kPanel + v * 32, sum);
      highest[v] = _mm512_max_ph(highest[v], sum);
    });
  });
  Vec factor[2 * NV];
  for (int v = 0; v < NV; v++) {
    _Float16* lane = scores + v * 32;
    const int64_t at = v * 32;
    __m512h best_half = highest[v];
    if (masked) {
      best_half = _mm512_set1_ph(-INFINITY);
      for (int j = 0; j < count; j++) {
        const __mmask32 seen = visible_lanes(panel.position + at, tile.keys.position[j], plan.window);
        const __m512h score = _mm512_mask_blend_ph(seen, _mm512_set1_ph(-INFINITY), _mm512_load_ph(lane + j * kPanel));
        _mm512_store_ph(lane + j * kPanel, score);
        best_half = _mm512_max_ph(best_half, score);
      }
    }
    const Vec before[2] = {load(panel.best + at), load(panel.best + at + kLanes)};
    const Vec best[2] = {max(low_half(best_half), before[0]), max(high_half(best_half), before[1])};
    const Vec base[2] = {best[0] == -INFINITY ? Vec{} : best[0], best[1] == -INFINITY ? Vec{} : best[1]};
    const __m512h base_half = halves(base[0], base[1]);
    Vec total[2] = {};
    const __m512h lowest = _mm512_set1_ph(-40.f);  // 2^-40 is 0, and so is what is hidden
    for (int first = 0; first < count; first += 4) {
      __m512h partial = _mm512_setzero_ph();
      const auto weigh = [&](int j) {
        const __m512h x = _mm512_max_ph(_mm512_sub_ph(_mm512_load_ph(lane + j * kPanel), base_half), lowest);
        const __m512h weight = exp2_half(x);
        _mm512_store_ph(lane + j * kPanel, weight);
        partial = _mm512_add_ph(partial, weight);
      };
      if (first + 4 <= count) {
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) weigh(first + j);
      } else {
        for (int j = first; j < count; j++) weigh(j);
      }
      total[0] += low_half(partial);
      total[1] += high_half(partial);
    }
    for (int i = 0; i < 2; i++) {
      factor[2 * v + i] = exp2(before[i] - base[i]);
      store(panel.best + at + i * kLanes, best[i]);
      store(panel.total + at + i * kLanes, fma(load(panel.total + at + i * kLanes), factor[2 * v + i], total[i]));
    }
  }
  by_rows(dim, [&](auto size, int64_t row) {
    product<Halves, size, NV>(tile.v2 + row, 1, dim, scores, kPanel, count, [&](int r, int v, __m512h sum) {
      float* out = panel.out + (row + r) * kPanel + v * 32;
      store(out, fma(load(out), factor[2 * v], low_half(sum)));
      store(out + kLanes, fma(load(out + kLanes), factor[2 * v + 1], high_half(sum)));
    });
  });
}

#endif

template <int DIM, class T>
void attend_tile(const AttendPlan& plan, const T* keys, int64_t value_offset, Tile& tile, bool masked, Panel& panel) {
  int count = tile.keys.count;  // without what lies after every query
  while (tile.keys.position[count - 1] > panel.latest) count--;
#if defined(__AVX512FP16__)
  if constexpr (kInHalves<T>) {
    if (!panel.wide && fits_halves(panel, tile, plan.head_dim)) {
      if (panel.lanes > 32)
        attend_halves<2, DIM>(plan, tile, count, masked, panel);
      else
        attend_halves<1, DIM>(plan, tile, count, masked, panel);
      return;
    }
    panel.wide = true;
  }
#endif
  if (!tile.has_floats) load_floats(keys, value_offset, plan.head_dim, tile);
  for (int64_t first = 0; first < panel.lanes; first += kWide) {
    if (panel.lanes - first > kLanes)
      attend_floats<2, DIM>(plan, tile, count, masked, first, panel);
    else
      attend_floats<1, DIM>(plan, tile, count, masked, first, panel);
  }
}

// Ask memory for the share `part` of `parts` of a tile's keys and values.
template <class T>
void fetch(const T* keys, int64_t value_offset, int64_t dim, const TileKeys& tile, int64_t part, int64_t parts) {
  for (int64_t j = tile.count * part / parts; j < tile.count * (part + 1) / parts; j++) {
    for (int64_t i = 0; i < dim; i += int64_t(64 / sizeof(T))) {
      __builtin_prefetch(keys + tile.offset[j] + i);
      __builtin_prefetch(keys + tile.offset[j] + value_offset + i);
    }
  }
}

template <class T>
void attend_piece(const AttendArgs& args, const Piece& piece) {
  const AttendPlan& plan = *args.plan;
  const int64_t dim = plan.head_dim, lanes = (piece.rows_end - piece.rows) * plan.group_size;
  const int64_t num_panels = (lanes + kPanel - 1) / kPanel;
  char* memory = static_cast<char*>(
      thread_scratch(kScratchAttention, size_t(kBlock * Tile::bytes(dim) + num_panels * (Panel::bytes(dim) + int64_t(sizeof(Panel))))));
  Tile tiles[kBlock];
  for (Tile& tile : tiles) {
    tile.place(memory, dim);
    memory += Tile::bytes(dim);
  }
  Panel* panels = reinterpret_cast<Panel*>(memory + num_panels * Panel::bytes(dim));
  for (int64_t i = 0; i < num_panels; i++) {
    panels[i].place(memory + i * Panel::bytes(dim), dim);
    start_panel(plan, piece, i * kPanel, std::min<int64_t>(kPanel, lanes - i * kPanel), panels[i]);
  }
  int32_t lowest = panels[0].lowest, latest = panels[0].latest;
  for (int64_t i = 1; i < num_panels; i++) {
    lowest = std::min(lowest, panels[i].lowest);
    latest = std::max(latest, panels[i].latest);
  }

  const Layer<T> layer(args);
  const T* keys = layer.data + piece.kv_head * layer.head_stride;
  const float* scales = layer.scales + piece.kv_head * plan.block_size;
  int32_t next = piece.tiles, shift = -1;
  // the next tiles of one shift that any row sees
  const auto look_ahead = [&](TileKeys* found, const KeyTile** ranges) {
    int count = 0;
    for (; next < piece.tiles_end && count < (num_panels > 1 ? kBlock : 1); next++) {
      const KeyTile& range = plan.tiles[next];
      if (!plan.sees(lowest, latest, range)) continue;
      if (count > 0 && range.shift != ranges[0]->shift) break;
      found[count].find(plan, range, layer);
      ranges[count++] = &range;
    }
    return count;
  };
  TileKeys ahead[kBlock];
  const KeyTile* ranges[kBlock];
  int count = look_ahead(ahead, ranges);
  while (count > 0) {
    for (int t = 0; t < count; t++) {
      tiles[t].range = ranges[t];
      tiles[t].keys = ahead[t];
      tiles[t].has_floats = false;
      if constexpr (kScaled<T>) {
        tiles[t].keys.copy_scales(scales, tiles[t].k_scales);
        tiles[t].keys.copy_scales(scales + plan.kv_heads * plan.block_size, tiles[t].v_scales);
      }
#if defined(__AVX512FP16__)
      if constexpr (kInHalves<T>) load_halves(keys, layer.value_offset, dim, tiles[t]);
#endif
    }
    const bool turned = tiles[0].range->shift != shift;
    shift = tiles[0].range->shift;
    const int next_count = look_ahead(ahead, ranges);
    for (int t = 0; t < count; t++) {
      for (int64_t i = 0; i < num_panels; i++) {
        Panel& panel = panels[i];
        if (t == 0 && turned) {
          load_panel(args, piece, i * kPanel, shift, panel);
#if defined(__AVX512FP16__)
          if constexpr (kInHalves<T>) load_half_panel(dim, panel);
#endif
          if (i + 1 < num_panels) fetch_queries(args, piece, (i + 1) * kPanel, panels[i + 1]);
        }
        if (t == 0 && next_count == 0) fetch_targets(args, piece, i * kPanel, panel);
        if (t < next_count) fetch(keys, layer.value_offset, dim, ahead[t], i, num_panels);
        const KeyTile& range = *tiles[t].range;
        if (!plan.sees(panel.lowest, panel.latest, range)) continue;
        const bool masked = range.last > panel.lowest || range.first <= panel.latest - plan.window;
        if (dim == 64)
          attend_tile<64>(plan, keys, layer.value_offset, tiles[t], masked, panel);
        else
          attend_tile<0>(plan, keys, layer.value_offset, tiles[t], masked, panel);
      }
    }
    count = next_count;
  }
  for (int64_t i = 0; i < num_panels; i++) finish_panel(args, piece, i * kPanel, panels[i]);
}

}  // namespace

void attend_panels(const AttendArgs& args, const Piece& piece) {
  if (args.plan->dtype == kFloat32) attend_piece<float>(args, piece);
  if (args.plan->dtype == kBFloat16) attend_piece<BFloat16>(args, piece);
  if (args.plan->dtype == kFloat16) attend_piece<Float16>(args, piece);
  if (args.plan->dtype == kInt8) attend_piece<int8_t>(args, piece);
}

}  // namespace preread
