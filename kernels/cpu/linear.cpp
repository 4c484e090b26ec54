#include "linear.h"

#include <algorithm>

#include "linear_tiles.h"

namespace preread {
namespace {

constexpr int kBlockRows = 96;       // rows whose sums of one group of panels stay in the L1 cache
constexpr int kRowsPerThread = 32;   // with at least so many for each, threads share out rows, else panels
constexpr int kMaxGroup = 4;         // panels worked on at once
constexpr int kGroupLanes = kMaxGroup * kWeightPanel;

// What one thread has to do.
struct Job {
  const Linear& weight;
  const float* x;
  int64_t x_stride;
  float* y;
  int64_t y_stride;
  int32_t epilogue;
  int64_t first_row, last_row, first_panel, last_panel;
};

// The activations of a block of rows, in chunks: [chunk][row][kChunk] lanes.
struct Activations {
  uint32_t* lanes;
  float* scales;         // [row]: what y is multiplied with
  float* chunk_scales;   // [chunk][row], of whole numbers: what the sums of a chunk are multiplied with
  int32_t* chunk_starts;  // [chunk][row]: and what they start from
};

// ---- activations ----

void take_rows(const Job& job, int64_t row, int64_t rows, Float32Op, Activations* to) {
  constexpr int kChunk = Float32Op::kChunk;
  const int64_t inputs = job.weight.in_features;
  for (int64_t r = 0; r < rows; r++) {
    to->scales[r] = 1.f;
    const float* x = job.x + (row + r) * job.x_stride;
    for (int64_t k = 0; k < inputs; k += kChunk)
      std::memcpy(to->lanes + (k * rows + r * kChunk), x + k, size_t(std::min<int64_t>(kChunk, inputs - k)) * 4);
  }
}

// The power of two that brings a row's largest finite magnitude into [2, 4).
float row_scale(const float* x, int64_t count) {
  uint32_t largest = 0;
#if defined(__AVX512F__)
  const __m512i infinity = _mm512_set1_epi32(0x7f800000), sign = _mm512_set1_epi32(0x7fffffff);
  __m512i most = _mm512_setzero_si512();
  for (int64_t k = 0; k < count; k += 16) {
    const __mmask16 mask = count - k < 16 ? __mmask16((1u << (count - k)) - 1) : __mmask16(0xffff);
    const __m512i bits = _mm512_and_si512(_mm512_maskz_loadu_epi32(mask, x + k), sign);
    most = _mm512_mask_max_epu32(most, _mm512_cmplt_epu32_mask(bits, infinity), most, bits);
  }
  largest = _mm512_reduce_max_epu32(most);
#else
  for (int64_t k = 0; k < count; k++) {
    uint32_t bits;
    std::memcpy(&bits, x + k, 4);
    bits &= 0x7fffffff;
    if (bits < 0x7f800000) largest = std::max(largest, bits);
  }
#endif
  const uint32_t scale_bits = std::min(255 - (largest >> 23), 254u) << 23;
  float scale;
  std::memcpy(&scale, &scale_bits, 4);
  return scale;
}

#if defined(__AVX512FP16__)
// Rounds each row, scaled, to float16, and doubles it.
void take_rows(const Job& job, int64_t row, int64_t rows, Float16Op, Activations* to) {
  constexpr int kChunk = Float16Op::kChunk;
  constexpr int64_t kTogether = 4;  // rows written side by side: fewer pages at a time
  const int64_t inputs = job.weight.in_features;
  for (int64_t first = 0; first < rows; first += kTogether) {
    const int64_t last = std::min(first + kTogether, rows);
    __m512 scales[kTogether];
    for (int64_t r = first; r < last; r++) {
      const float scale = row_scale(job.x + (row + r) * job.x_stride, inputs);
      to->scales[r] = 1.f / scale;  // of a power of two: exact
      scales[r - first] = _mm512_set1_ps(scale);
    }
    for (int64_t chunk = 0; chunk < inputs; chunk += kChunk)
      for (int64_t r = first; r < last; r++) {
        const float* x = job.x + (row + r) * job.x_stride;
        uint32_t* lanes = to->lanes + (chunk * rows + r * kChunk);
        const int64_t end = std::min<int64_t>(chunk + kChunk, inputs);
        for (int64_t k = chunk; k < end; k += 16, lanes += 16) {
          const __mmask16 mask = end - k < 16 ? __mmask16((1u << (end - k)) - 1) : __mmask16(0xffff);
          const __m512 value = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + k), scales[r - first]);
          const __m512i half = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtxps_ph(value));
          _mm512_store_si512(lanes, _mm512_or_si512(half, _mm512_slli_epi32(half, 16)));
        }
      }
  }
}
#endif

// Rounds `count` activations to whole numbers with a scale of their own, and fills lanes up with zeros. The scale is
// NaN if one of them is not finite. Written in integers where the compiler may not reorder floats.
void round_chunk(const float* x, int64_t count, float row_scale, uint32_t* lanes, float* scale, int32_t* start) {
  float values[kScaleInputs] = {};
  int32_t most_bits = 0;
  for (int64_t i = 0; i < count; i++) values[i] = x[i] * row_scale;
  for (int64_t i = 0; i < kScaleInputs; i++) {
    int32_t bits;
    std::memcpy(&bits, values + i, 4);
    most_bits = std::max(most_bits, bits & 0x7fffffff);
  }
  float most;
  std::memcpy(&most, &most_bits, 4);
  const bool is_finite = most_bits < 0x7f800000;
  const float inverse = is_finite && most > 1e-30f ? 127.f / most : 0.f;
  *scale = is_finite ? most / 127.f : std::numeric_limits<float>::quiet_NaN();
  if (inverse == 0.f) std::memset(values, 0, sizeof values);
  constexpr float kMagic = 12582912.f;  // 1.5 * 2^23: adding it rounds to a whole number, in the lowest bits
  int32_t whole[kScaleInputs], total = 0;
  for (int64_t i = 0; i < kScaleInputs; i++) {
    const float shifted = values[i] * inverse + kMagic;
    std::memcpy(whole + i, &shifted, 4);
    whole[i] -= 0x4b400000;
    total += whole[i];
  }
  *start = -128 * total;
#if defined(__AVX512VNNI__)
  int8_t bytes[kScaleInputs];
  for (int64_t i = 0; i < kScaleInputs; i++) bytes[i] = int8_t(whole[i]);
  std::memcpy(lanes, bytes, sizeof bytes);
#else
  float numbers[kScaleInputs];
  for (int64_t i = 0; i < kScaleInputs; i++) numbers[i] = float(whole[i]);
  std::memcpy(lanes, numbers, sizeof numbers);
#endif
}

void take_rows(const Job& job, int64_t row, int64_t rows, Int8Op, Activations* to) {
  const int64_t inputs = job.weight.in_features;
  for (int64_t r = 0; r < rows; r++) {
    const float* x = job.x + (row + r) * job.x_stride;
    const float scale = row_scale(x, inputs);
    to->scales[r] = 1.f / scale;
    for (int64_t k = 0, chunk = 0; k < inputs; k += kScaleInputs, chunk++) {
      const int64_t at = chunk * rows + r;
      round_chunk(x + k, std::min<int64_t>(kScaleInputs, inputs - k), scale, to->lanes + at * Int8Op::kChunk,
                  to->chunk_scales + at, to->chunk_starts + at);
    }
  }
}

// ---- weights that several tiles use are widened once ----

template <class W>
void widen(const W* from, float* to, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) store(to + i, load(from + i));
}
[[maybe_unused]] void widen(const Quad* from, float* to, int64_t count) {
  for (int64_t k = 0; k < count / kWeightPanel; k++)
    for (int lane = 0; lane < kWeightPanel; lane++)
      to[k * kWeightPanel + lane] = float(from[k / 4 * kWeightPanel + lane].weights[k % 4]) - 128.f;
}
#if defined(__AVX512FP16__)
void widen(const int8_t* from, Float16* to, int64_t count) {
  for (int64_t i = 0; i < count; i += kWeightPanel) _mm512_storeu_ph(to + i, Float16Op::weight(from + i));
}
#endif

// ---- results ----

Vec silu_mul(Vec gate, Vec up) { return gate / (exp(-gate) + 1.f) * up; }

template <int32_t kEpilogue>
void put(float* y, Vec value, int64_t left) {
  if (left >= kLanes) {
    store(y, kEpilogue == kAdd ? load(y) + value : value);
  } else {
    store_part(y, kEpilogue == kAdd ? load_part(y, int(left)) + value : value, int(left));
  }
}

// Scales and bias of one vector of outputs.
struct Outputs {
  Vec scales, bias;

  Outputs(const Linear& weight, int64_t column)
      : scales(weight.scales != nullptr ? load(weight.scales + column) : set1(1.f)),
        bias(weight.bias != nullptr ? load(weight.bias + column) : Vec{}) {}

  Vec result(const float* c, float scale) const { return fma(load(c) * scales, set1(scale), bias); }
};

// Some rows of one group of panels: the sums become results.
struct Tail {
  const Job& job;
  int64_t panel, panels;

  int64_t outputs() const { return job.epilogue == kSiluMul ? job.weight.out_features / 2 : job.weight.out_features; }
  int64_t first_output() const { return (job.epilogue == kSiluMul ? panel / 2 : panel) * kWeightPanel; }

  // Results are written a little later: their cache lines are asked for now.
  void prefetch(int64_t row, int64_t rows) const {
    const int64_t count = job.epilogue == kSiluMul ? panels / 2 : panels;
    for (int64_t r = row; r < row + rows; r++) {
      const float* y = job.y + r * job.y_stride + first_output();
      for (int64_t i = 0; i < count * kWeightPanel; i += 16) __builtin_prefetch(y + i, 1);
    }
  }

  template <int32_t kEpilogue>
  void finish(const float* c, const float* scales, int64_t row, int64_t rows) const {
    constexpr int kStep = kEpilogue == kSiluMul ? 2 : 1;
    float* y = job.y + row * job.y_stride + first_output();
    int64_t left = outputs() - first_output();
    for (int64_t p = 0; p < panels; p += kStep)
      for (int i = 0; i < kWeightPanel && left > 0; i += kLanes, y += kLanes, left -= kLanes) {
        const int64_t column = (panel + p) * kWeightPanel + i;
        const Outputs out(job.weight, column), up(job.weight, column + (kStep - 1) * kWeightPanel);
        const float* from = c + p * kWeightPanel + i;
        for (int64_t r = 0; r < rows; r++, from += panels * kWeightPanel) {
          Vec value = out.result(from, scales[r]);
          if (kEpilogue == kSiluMul) value = silu_mul(value, up.result(from + kWeightPanel, scales[r]));
          put<kEpilogue>(y + r * job.y_stride, value, left);
        }
      }
  }

  void finish(const float* c, const float* scales, int64_t row, int64_t rows) const {
    switch (job.epilogue) {
      case kStore: return finish<kStore>(c, scales, row, rows);
      case kAdd: return finish<kAdd>(c, scales, row, rows);
      case kSiluMul: return finish<kSiluMul>(c, scales, row, rows);
    }
  }
};

// ---- the tiles of one chunk of one group of panels ----

// A tile is two vectors of one panel.
template <class Op, class W, class Shape>
void run_tile(Shape, int64_t rows, int64_t panels, int64_t panel_step, TileArgs t) {
  static const Tile* const table =
      tiles<Op, W, 2, std::is_same<W, typename Op::Wide>::value ? kTileRows : Op::kDirectRows>();
  const W* b = static_cast<const W*>(t.b);
  const char* ahead = t.ahead;
  float* c = t.c;
  const BFloat16* groups = t.groups;
  const int64_t group_panel = t.group_strip;
  t.strip = t.group_strip = Op::kSumLanes;
  for (int64_t p = 0; p < panels; p++)
    for (int i = 0; i < kWeightPanel; i += 2 * Op::kSumLanes) {
      t.b = b + p * panel_step + i;
      t.ahead = ahead + p * t.ahead_strip;
      t.c = c + p * kWeightPanel + i;
      t.groups = groups + p * group_panel + i;
      table[rows - 1](t);
    }
}

#if defined(__AVX512FP16__)
// Or the one vector of each panel.
template <class Op, class W>
void run_tile(Float16Op, int64_t rows, int64_t panels, int64_t panel_step, TileArgs t) {
  static const Tile* const tables[] = {tiles<Op, W, 1, kHalfRows[0]>(), tiles<Op, W, 2, kHalfRows[1]>(),
                                       tiles<Op, W, 3, kHalfRows[2]>(), tiles<Op, W, 4, kHalfRows[3]>()};
  t.strip = panel_step;
  tables[panels - 1][rows - 1](t);
}
#endif

template <class Op>
int64_t tile_rows(Op, int64_t) {
  return kTileRows;
}
template <class Op>
int64_t group_panels(Op, int64_t left, int64_t, bool) {
  return std::min<int64_t>(left, 2);
}
#if defined(__AVX512FP16__)
int64_t tile_rows(Float16Op, int64_t panels) { return kHalfRows[panels - 1]; }
int64_t group_panels(Float16Op, int64_t left, int64_t rows, bool gated) {
  if (rows <= kHalfRows[3] && left >= 4) return 4;  // more streams from memory, more sums in flight
  return left == 3 && !gated ? 3 : std::min<int64_t>(left, 2);
}
#endif

// All rows of a block, in tiles whose heights differ by one at most. `tail` is null but for the last chunk.
template <class Op, class W>
void run_tiles(int64_t row, int64_t rows, int64_t tiles, int64_t panels, int64_t panel_step, TileArgs t,
               const Tail* tail, const float* scales) {
  const TileArgs all = t;
  const int64_t prefetches = t.steps * kWeightPanel * int64_t(sizeof(W)) / 64;
  for (int64_t i = 0; i < tiles; i++) {
    const int64_t first = rows * i / tiles, count = rows * (i + 1) / tiles - first;
    t.a = all.a + first * Op::kChunk;
    t.c = all.c + first * t.c_stride;
    t.scales = all.scales + first;
    t.starts = all.starts + first;
    if (tail != nullptr) tail->prefetch(row + first, count);
    run_tile<Op, W>(typename Op::Shape(), count, panels, panel_step, t);
    if (tail != nullptr) tail->finish(t.c, scales + first, row + first, count);
    t.ahead += prefetches * t.ahead_step;
  }
}

template <class Op, class W>
void run_block(const Job& job, int64_t row, int64_t rows, const Activations& x, float* c, typename Op::Wide* wide) {
  using Wide = typename Op::Wide;
  using Shape = typename Op::Shape;
  constexpr bool is_wide = std::is_same<W, Wide>::value;
  constexpr int64_t kChunk = Op::kChunk, kHead = Op::kHasGroups ? kGroupHead / int64_t(sizeof(W)) : 0;
  constexpr int64_t kChunkElements = kHead + kChunk / Op::kSteps * kWeightPanel;
  const Linear& weight = job.weight;
  const int64_t lanes = (weight.in_features + Op::kInputs - 1) / Op::kInputs;
  const int64_t panel_step =
      (lanes + Op::kSteps - 1) / Op::kSteps * kWeightPanel + (lanes + kChunk - 1) / kChunk * kHead;
  const W* panels = static_cast<const W*>(weight.panels) + kHead;
  int64_t count;
  for (int64_t p = job.first_panel; p < job.last_panel; p += count) {
    count = group_panels(Shape(), job.last_panel - p, rows, weight.gated != 0);
    const int64_t most = tile_rows(Shape(), count), tiles = (rows + most - 1) / most;
    const W* next_group = panels + (p + count < job.last_panel ? p + count : p) * panel_step;
    const Tail tail = {job, p, count};
    for (int64_t chunk = 0; chunk * kChunk < lanes; chunk++) {
      const bool is_last = (chunk + 1) * kChunk >= lanes;
      const W *b = panels + p * panel_step + chunk * kChunkElements, *next = is_last ? next_group : b + kChunkElements;
      TileArgs t = {};
      t.a = x.lanes + chunk * rows * kChunk;
      t.b = b;
      t.steps = std::min(kChunk, lanes - chunk * kChunk);
      t.ahead = reinterpret_cast<const char*>(next);
      t.ahead_strip = panel_step * int64_t(sizeof(W));
      t.c = c;
      t.c_stride = count * kWeightPanel;
      t.first = chunk == 0;
      t.groups = reinterpret_cast<const BFloat16*>(b - kHead);
      t.group_strip = panel_step * int64_t(sizeof(W)) / int64_t(sizeof(BFloat16));
      t.scales = x.chunk_scales + chunk * rows;
      t.starts = x.chunk_starts + chunk * rows;
      const Tail* const end = is_last ? &tail : nullptr;
      if constexpr (is_wide || Op::kDirectRows > 0) {
        if (is_wide || (tiles == 1 && rows <= Op::kDirectRows)) {
          t.ahead_step = (64 + tiles - 1) / tiles;
          run_tiles<Op, W>(row, rows, tiles, count, panel_step, t, end, x.scales);
          continue;
        }
      }
      if constexpr (!is_wide) {
        for (int64_t i = 0; i < count; i++)
          widen(b + i * panel_step, wide + i * kChunk * kWeightPanel, t.steps * kWeightPanel);
        t.b = wide;
        t.ahead_step = (int64_t(64 * sizeof(W) / (sizeof(Wide) * Op::kSteps)) + tiles - 1) / tiles;
        run_tiles<Op, Wide>(row, rows, tiles, count, kChunk * kWeightPanel, t, end, x.scales);
      }
    }
  }
}

// Cuts memory into arrays, each a multiple of 64 bytes.
template <class T>
T* cut(char** memory, int64_t count) {
  T* const array = reinterpret_cast<T*>(*memory);
  *memory += (size_t(count) * sizeof(T) + 63) / 64 * 64;
  return array;
}

template <class Op, class W>
void run(const Job& job) {
  if (job.first_row >= job.last_row || job.first_panel >= job.last_panel) return;
  const int64_t rows = job.last_row - job.first_row, blocks = (rows + kBlockRows - 1) / kBlockRows;
  const int64_t most = (rows + blocks - 1) / blocks, inputs = Op::kChunk * Op::kInputs;
  const int64_t chunks = (job.weight.in_features + inputs - 1) / inputs;
  const int64_t words = (kBlockRows + Op::kChunk) * kGroupLanes + most + chunks * most * (Op::kChunk + 2) + 6 * 16;
  char* memory = static_cast<char*>(thread_scratch(kScratchLinear, size_t(words) * 4));
  float* c = cut<float>(&memory, kBlockRows * kGroupLanes);
  auto* wide = cut<typename Op::Wide>(&memory, Op::kChunk * kGroupLanes);
  Activations x;
  x.lanes = cut<uint32_t>(&memory, chunks * most * Op::kChunk);
  x.scales = cut<float>(&memory, most);
  x.chunk_scales = cut<float>(&memory, chunks * most);
  x.chunk_starts = cut<int32_t>(&memory, chunks * most);
  for (int64_t i = 0; i < blocks; i++) {
    const int64_t first = job.first_row + rows * i / blocks, last = job.first_row + rows * (i + 1) / blocks;
    take_rows(job, first, last - first, Op(), &x);
    run_block<Op, W>(job, first, last - first, x, c, wide);
  }
}

}  // namespace

void linear(const Linear& weight, const float* x, int64_t x_stride, float* y, int64_t y_stride, int64_t rows,
            int32_t epilogue, const Team& team) {
  // A grid of threads: each converts the activations that it reads itself, so there is nothing to wait for.
  const int row_parts = int(std::max<int64_t>(1, std::min<int64_t>(team.size, rows / kRowsPerThread)));
  const int panel_parts = team.size / row_parts;
  if (team.rank >= row_parts * panel_parts) return;
  Job job = {weight, x, x_stride, y, y_stride, epilogue, 0, 0, 0, 0};
  const Team of_rows = {team.rank / panel_parts, row_parts, nullptr};
  const Team of_panels = {team.rank % panel_parts, panel_parts, nullptr};
  const int64_t half = (weight.out_features / 2 + kWeightPanel - 1) / kWeightPanel;
  const int64_t panels = weight.gated ? 2 * half : (weight.out_features + kWeightPanel - 1) / kWeightPanel;
  of_rows.share(rows, 1, &job.first_row, &job.last_row);
  of_panels.share(panels, weight.gated ? 2 : 1, &job.first_panel, &job.last_panel);
#if defined(__AVX512FP16__)
  using HalfOp = Float16Op;
  using GroupedOp = GroupedFloat16Op;
#else
  using HalfOp = Float32Op;
  using GroupedOp = GroupedFloat32Op;
#endif
  switch (weight.format) {
    case kFloat32: return run<Float32Op, float>(job);
    case kBFloat16: return run<Float32Op, BFloat16>(job);
    case kFloat16: return run<HalfOp, Float16>(job);
    case kInt8: return run<GroupedOp, int8_t>(job);
    case kInt8Dynamic: return run<Int8Op, Quad>(job);
  }
}

}  // namespace preread

namespace {

struct LinearArgs {
  preread::Linear weight;
  const float* x;
  int64_t x_stride;
  float* y;
  int64_t y_stride;
  int64_t rows;
  int32_t epilogue;
};

}  // namespace

PREREAD_API void preread_linear(const LinearArgs* args) {
  preread::run_team([args](const preread::Team& team) {
    preread::linear(args->weight, args->x, args->x_stride, args->y, args->y_stride, args->rows, args->epilogue, team);
  });
}
