// Few query lanes (decoding): keys and values are read once, at memory speed, for all heads that share them.
#include <algorithm>

#include "attention_work.h"

namespace preread {
namespace {

constexpr int kGroup = 4;  // lanes whose sums are in registers together

struct State {
  float* q;       // [lanes of all kv heads, padded dim]
  float* out;     // as q
  float* highest; // [lanes of all kv heads]
  float* total;   // as highest
};

template <class T>
inline Vec load_some(const T* from, int64_t count) {
  return count >= kLanes ? load(from) : load_part(from, int(count));
}

// scores [lanes, kKeyTile] of NL lanes with the keys of a tile; `next` are fetched from memory meanwhile.
template <class T, int NL, int DIM>
void score(const T* keys, const TileKeys& tile, const TileKeys& next, const float* q, int64_t dim, int64_t padded,
           float* scores) {
  if (DIM) dim = padded = DIM;
  Vec sums[NL][kLanes];
  for (int first = 0; first < tile.count; first += kLanes) {
    const int count = tile.count - first < kLanes ? tile.count - first : kLanes;
    for (int j = 0; j < count; j++) {
      const T* key = keys + tile.offset[first + j];
      const T* later = keys + next.offset[first + j < next.count ? first + j : 0];
      Vec sum[NL] = {};
#pragma GCC unroll 8
      for (int64_t i = 0; i < dim; i += kLanes) {
        const Vec value = DIM ? load(key + i) : load_some(key + i, dim - i);
        if (i * sizeof(T) % 64 == 0) __builtin_prefetch(later + i);
        for (int lane = 0; lane < NL; lane++) sum[lane] = fma(value, load(q + lane * padded + i), sum[lane]);
      }
      for (int lane = 0; lane < NL; lane++) sums[lane][j] = sum[lane];
    }
    for (int lane = 0; lane < NL; lane++) {
      for (int j = count; j < kLanes; j++) sums[lane][j] = Vec{};
      store(scores + lane * kKeyTile + first, sum_each(sums[lane]));
    }
  }
}

// out [lanes, padded] = out * factor + weights [lanes, kKeyTile] . values
template <class T, int NL, int NC, bool WHOLE>
void add_values(const T* values, const TileKeys& tile, const TileKeys& next, const float* weights, const float* factor,
                int64_t count, int64_t padded, float* out) {
  Vec sums[NL][NC];
  for (int lane = 0; lane < NL; lane++)
    for (int c = 0; c < NC; c++) sums[lane][c] = load(out + lane * padded + c * kLanes) * factor[lane];
  for (int j = 0; j < tile.count; j++) {
    const T* value = values + tile.offset[j];
    const T* later = values + next.offset[j < next.count ? j : 0];
    for (int c = 0; c < NC; c++) {
      const Vec part = WHOLE ? load(value + c * kLanes) : load_some(value + c * kLanes, count - c * kLanes);
      if (c * kLanes * sizeof(T) % 64 == 0) __builtin_prefetch(later + c * kLanes);
      for (int lane = 0; lane < NL; lane++)
        sums[lane][c] = fma(part, set1(weights[lane * kKeyTile + j]), sums[lane][c]);
    }
  }
  for (int lane = 0; lane < NL; lane++)
    for (int c = 0; c < NC; c++) store(out + lane * padded + c * kLanes, sums[lane][c]);
}

template <class T, int NL>
void add_all_values(const T* values, const TileKeys& tile, const TileKeys& next, const float* weights,
                    const float* factor, int64_t dim, int64_t padded, float* out) {
  int64_t i = 0;
  for (; i + 4 * kLanes <= dim; i += 4 * kLanes)
    add_values<T, NL, 4, true>(values + i, tile, next, weights, factor, dim - i, padded, out + i);
  for (; i < dim; i += kLanes)
    add_values<T, NL, 1, false>(values + i, tile, next, weights, factor, dim - i, padded, out + i);
}

// Turn scores of one lane into weights, relative to the highest score so far; returns what scales earlier results.
float weigh(float* scores, const TileKeys& tile, int32_t position, const AttendPlan& plan, float* highest_so_far,
            float* sum_so_far) {
  Vec best = set1(-INFINITY);
  const int count = tile.count;
  for (int j = count; j % kLanes != 0; j++) scores[j] = -INFINITY;
  if (tile.position[count - 1] > position || tile.position[0] <= position - plan.window)
    for (int j = 0; j < count; j++)
      if (tile.position[j] > position || tile.position[j] <= position - plan.window) scores[j] = -INFINITY;
  Vec invalid = {};
  for (int j = 0; j < count; j += kLanes) {
    const Vec score = load(scores + j);
    best = max(score, best);
    invalid += score != score ? set1(1.f) : Vec{};
  }
  float base = highest(best);
  base = base > *highest_so_far ? base : *highest_so_far;
  if (base == -INFINITY && total(invalid) == 0) {
    for (int j = 0; j < count; j++) scores[j] = 0;
    return 1;
  }
  const float factor = *highest_so_far == base ? 1.f : std::exp2(*highest_so_far - base);
  Vec sums = {};
  for (int j = 0; j < count; j += kLanes) {
    const Vec weight = exp2(load(scores + j) - base);
    sums += weight;
    store(scores + j, weight);
  }
  *highest_so_far = base;
  *sum_so_far = *sum_so_far * factor + total(sums);
  return factor;
}

// Scales of the keys and values of a tile and a kv head.
struct Scales {
  alignas(64) float keys[kKeyTile];
  alignas(64) float values[kKeyTile];
};

void multiply(float* numbers, const float* factors, int count) {
  for (int j = 0; j < count; j += kLanes) store(numbers + j, load(numbers + j) * load(factors + j));
}

template <class T, int NL, int DIM>
void attend_lanes(const T* keys, const T* values, const Scales& scales, const TileKeys& tile, const TileKeys& next,
                  const AttendPlan& plan, const int32_t* positions, const State& state, int64_t first,
                  int64_t padded) {
  float scores[NL * kKeyTile], factor[NL];
  const float* q = state.q + first * padded;
  score<T, NL, DIM>(keys, tile, next, q, plan.head_dim, padded, scores);
  for (int lane = 0; lane < NL; lane++) {
    float* of_lane = scores + lane * kKeyTile;
    if constexpr (kScaled<T>) multiply(of_lane, scales.keys, tile.count);
    factor[lane] =
        weigh(of_lane, tile, positions[lane], plan, state.highest + first + lane, state.total + first + lane);
    if constexpr (kScaled<T>) multiply(of_lane, scales.values, tile.count);
  }
  add_all_values<T, NL>(values, tile, next, scores, factor, plan.head_dim, padded, state.out + first * padded);
}

template <class T, int DIM>
void attend_tile(const Layer<T>& layer, const TileKeys& tile, const TileKeys& next, const AttendPlan& plan,
                 const int32_t* positions, int64_t lanes, const State& state, int64_t padded) {
  for (int64_t kv_head = 0; kv_head < plan.kv_heads; kv_head++) {
    const T* keys = layer.data + kv_head * layer.head_stride;
    const T* values = keys + layer.value_offset;
    Scales scales;
    if constexpr (kScaled<T>) {
      const float* of_keys = layer.scales + kv_head * plan.block_size;
      const float* of_values = of_keys + plan.kv_heads * plan.block_size;
      tile.copy_scales(of_keys, scales.keys);
      tile.copy_scales(of_values, scales.values);
      next.fetch_scales(of_keys);
      next.fetch_scales(of_values);
    }
    for (int64_t lane = 0; lane < lanes; lane += kGroup) {
      const auto run = [&](auto attend) {
        attend(keys, values, scales, tile, next, plan, positions + lane, state, kv_head * lanes + lane, padded);
      };
      switch (lanes - lane) {
        case 1: run(attend_lanes<T, 1, DIM>); break;
        case 2: run(attend_lanes<T, 2, DIM>); break;
        case 3: run(attend_lanes<T, 3, DIM>); break;
        default: run(attend_lanes<T, 4, DIM>); break;
      }
    }
  }
}

template <class T>
void attend_piece(const AttendArgs& args, const Piece& piece) {
  const AttendPlan& plan = *args.plan;
  const int64_t padded = (plan.head_dim + kLanes - 1) / kLanes * kLanes;
  const int64_t lanes = (piece.rows_end - piece.rows) * plan.group_size, all = lanes * plan.kv_heads;
  float* memory = static_cast<float*>(thread_scratch(kScratchAttention, size_t(all * (2 * padded + 2)) * 4));
  const State state{memory, memory + all * padded, memory + 2 * all * padded, memory + all * (2 * padded + 1)};
  for (int64_t i = 0; i < all * padded; i++) state.q[i] = state.out[i] = 0;
  for (int64_t i = 0; i < all; i++) state.highest[i] = -INFINITY, state.total[i] = 0;
  const int64_t group = plan.group_size;
  int32_t positions[kFewLanes];
  for (int64_t lane = 0; lane < lanes; lane++) positions[lane] = plan.positions[plan.rows[piece.rows + lane / group]];
  const int32_t lowest = *std::min_element(positions, positions + lanes);
  const int32_t latest = *std::max_element(positions, positions + lanes);

  const Layer<T> layer(args);
  TileKeys keys[2];
  int now = 0;
  int32_t shift = -1;
  keys[now].find(plan, plan.tiles[piece.tiles], layer);
  for (int32_t tile = piece.tiles; tile < piece.tiles_end; tile++, now ^= 1) {
    if (tile + 1 < piece.tiles_end)
      keys[now ^ 1].find(plan, plan.tiles[tile + 1], layer);
    else
      keys[now ^ 1] = keys[now];
    if (!plan.sees(lowest, latest, plan.tiles[tile])) continue;
    if (plan.tiles[tile].shift != shift) {
      shift = plan.tiles[tile].shift;
      for (int64_t i = 0; i < all; i++) {
        const int64_t lane = i % lanes;
        load_query(args, plan.rows[piece.rows + lane / group], i / lanes * group + lane % group, shift,
                   state.q + i * padded);
      }
    }
    if (plan.head_dim == 64)
      attend_tile<T, 64>(layer, keys[now], keys[now ^ 1], plan, positions, lanes, state, padded);
    else
      attend_tile<T, 0>(layer, keys[now], keys[now ^ 1], plan, positions, lanes, state, padded);
  }
  for (int64_t i = 0; i < all; i++) {
    const int64_t lane = i % lanes;
    const Target target = target_of(args, piece, lane / group, i / lanes * group + lane % group);
    const float total = state.total[i], scale = total == 0 ? 0 : 1 / total;
    for (int64_t j = 0; j < plan.head_dim; j++) target.out[j] = state.out[i * padded + j] * scale;
    if (target.lse != nullptr) *target.lse = state.highest[i] + std::log2(total);
  }
}

}  // namespace

void attend_few(const AttendArgs& args, const Piece& piece) {
  if (args.plan->dtype == kFloat32) attend_piece<float>(args, piece);
  if (args.plan->dtype == kBFloat16) attend_piece<BFloat16>(args, piece);
  if (args.plan->dtype == kFloat16) attend_piece<Float16>(args, piece);
  if (args.plan->dtype == kInt8) attend_piece<int8_t>(args, piece);
}

}  // namespace preread
