// Many query lanes (prefill, shared runs): lanes are the vector, keys and values are broadcast, so that the softmax
// needs no sums across a register. Scores^T [keys, lanes] = K . Q^T and out^T [dim, lanes] += V^T . weights^T.
#include <algorithm>
#include <cstring>

#include "attention_work.h"

namespace preread {
namespace {

#if defined(__AVX512F__)
constexpr int kRows = 13;  // with two vectors: 26 sums, 2 operands and a broadcast in 32 registers
#else
constexpr int kRows = 6;
#endif
constexpr int kWide = 2 * kLanes;  // lanes of one float32 product
constexpr int kBlock = 4;          // key tiles that are converted together
// Bound on partial sums of scores (base 2) up to which float16 sums are close enough, and on |V| below which no sum
// of kKeyTile weighted values overflows.
constexpr float kHalfScores = 512.f, kHalfValues = 60000.f / kKeyTile;

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

// Keys and values of a tile, converted.
struct Tile {
  const KeyTile* range;
  TileKeys keys;
  bool has_floats;
  float *k, *v;         // [kKeyTile, dim]
  uint32_t *k2, *v2;    // [kKeyTile, dim], each float16 twice
  float* k_limit;       // [dim], largest magnitude of any key
  float v_limit;

  static int64_t bytes(int64_t dim) { return (dim * kKeyTile * 16 + dim * 4 + 63) / 64 * 64; }
  void place(char* memory, int64_t dim) {
    k2 = reinterpret_cast<uint32_t*>(memory);
    v2 = k2 + kKeyTile * dim;
    k = reinterpret_cast<float*>(v2 + kKeyTile * dim);
    v = k + kKeyTile * dim;
    k_limit = v + kKeyTile * dim;
  }
};

template <class T>
void copy_row(const T* from, int64_t dim, float* to) {
  int64_t i = 0;
  for (; i + kLanes <= dim; i += kLanes) store(to + i, load(from + i));
  for (; i < dim; i++) to[i] = to_float(from[i]);
}

template <class T>
void load_floats(const T* keys, int64_t value_offset, int64_t dim, Tile& tile) {
  for (int j = 0; j < tile.keys.count; j++) {
    copy_row(keys + tile.keys.offset[j], dim, tile.k + j * dim);
    copy_row(keys + tile.keys.offset[j] + value_offset, dim, tile.v + j * dim);
  }
  tile.has_floats = true;
}

// Rotate the queries of a panel for a shift, and turn them so that lanes are adjacent.
void load_panel(const AttendArgs& args, const Piece& piece, int64_t first_lane, int32_t shift, Panel& panel) {
  const AttendPlan& plan = *args.plan;
  const int64_t dim = plan.head_dim, padded = (dim + kLanes - 1) / kLanes * kLanes;
  float rows[kLanes * 1024];
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
      for (int i = 0; i < kLanes; i++) square[i] = load(rows + i * padded + d);
      transpose(square);
      for (int i = 0; i < kLanes && d + i < dim; i++) store(panel.q + (d + i) * kPanel + first, square[i]);
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
      Vec square[kLanes] = {};
      const int64_t wide = std::min<int64_t>(kLanes, dim - d);
      for (int64_t i = 0; i < wide; i++) square[i] = load(panel.out + (d + i) * kPanel + first) * scale;
      transpose(square);
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

// One key tile against NV vectors of lanes in float32.
template <int NV, int DIM>
void attend_floats(const AttendPlan& plan, const Tile& tile, bool masked, int64_t first, Panel& panel) {
  const int64_t dim = DIM ? DIM : plan.head_dim;
  const int count = tile.keys.count;
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

template <int DIM>
void attend_tile(const AttendPlan& plan, const Tile& tile, bool masked, Panel& panel) {
  for (int64_t first = 0; first < panel.lanes; first += kWide) {
    if (panel.lanes - first > kLanes)
      attend_floats<2, DIM>(plan, tile, masked, first, panel);
    else
      attend_floats<1, DIM>(plan, tile, masked, first, panel);
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
  int32_t shift = -1;
  for (int32_t next = piece.tiles; next < piece.tiles_end;) {
    int count = 0;
    for (; next < piece.tiles_end && count < kBlock; next++) {
      const KeyTile& range = plan.tiles[next];
      if (!plan.sees(lowest, latest, range)) continue;
      if (count > 0 && range.shift != tiles[0].range->shift) break;
      tiles[count].range = &range;
      tiles[count].keys.find(plan, range, layer);
      load_floats(keys, layer.value_offset, dim, tiles[count]);
      count++;
    }
    if (count == 0) break;
    if (tiles[0].range->shift != shift) {
      shift = tiles[0].range->shift;
      for (int64_t i = 0; i < num_panels; i++) load_panel(args, piece, i * kPanel, shift, panels[i]);
    }
    for (int64_t i = 0; i < num_panels; i++) {
      Panel& panel = panels[i];
      for (int t = 0; t < count; t++) {
        const KeyTile& range = *tiles[t].range;
        if (!plan.sees(panel.lowest, panel.latest, range)) continue;
        const bool masked = range.last > panel.lowest || range.first <= panel.latest - plan.window;
        if (dim == 64)
          attend_tile<64>(plan, tiles[t], masked, panel);
        else
          attend_tile<0>(plan, tiles[t], masked, panel);
      }
    }
  }
  for (int64_t i = 0; i < num_panels; i++) finish_panel(args, piece, i * kPanel, panels[i]);
}

}  // namespace

void attend_panels(const AttendArgs& args, const Piece& piece) {
  if (args.plan->dtype == kFloat32) attend_piece<float>(args, piece);
  if (args.plan->dtype == kBFloat16) attend_piece<BFloat16>(args, piece);
  if (args.plan->dtype == kFloat16) attend_piece<Float16>(args, piece);
}

}  // namespace preread
