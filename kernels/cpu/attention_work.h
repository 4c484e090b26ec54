// What the two ways to attend share: where keys lie, rotated queries, where results go.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>

#include "attention.h"
#include "attention_math.h"
#include "elementwise.h"

namespace preread {

constexpr float kLog2e = 1.44269504f;

template <class T>
constexpr bool kScaled = std::is_same_v<T, int8_t>;

// Elements of K and V of one layer.
template <class T>
struct Layer {
  const T* data;
  const float* scales;  // of int8: [2, kv_heads, block_size]
  int64_t block_stride, head_stride, value_offset, row_stride;

  explicit Layer(const AttendArgs& args) {
    const AttendPlan& plan = *args.plan;
    row_stride = plan.head_dim;
    head_stride = plan.block_size * plan.head_dim;
    value_offset = plan.kv_heads * head_stride;
    block_stride = plan.block_stride;
    data = static_cast<const T*>(args.cache) + args.layer * plan.layer_stride;
    scales = reinterpret_cast<const float*>(data + 2 * value_offset);
  }
};

// Where the keys of a tile lie (elements from Layer::data, of head 0) and their prompt positions.
struct TileKeys {
  int32_t count;
  int64_t offset[kKeyTile];
  int32_t position[kKeyTile];
  // Scales (from Layer::scales, of the keys of head 0) are adjacent for keys of one block: from first[i] to first[i + 1].
  int32_t num_blocks;
  int64_t scale[kKeyTile];
  int32_t first[kKeyTile + 1];

  template <class T>
  void find(const AttendPlan& plan, const KeyTile& tile, const Layer<T>& layer) {
    count = num_blocks = 0;
    int32_t run = tile.run, token = tile.offset;
    while (count < tile.count) {
      const KeyRun& keys = plan.runs[run];
      const int32_t* block = plan.blocks.data() + keys.blocks + token / plan.block_size;
      int32_t slot = int32_t(token % plan.block_size);
      while (count < tile.count && token < keys.num_tokens) {
        const int64_t base = *block++ * layer.block_stride;
        if constexpr (kScaled<T>) {
          scale[num_blocks] = base / int64_t(sizeof(float)) + slot;
          first[num_blocks++] = count;
        }
        for (; slot < plan.block_size && count < tile.count && token < keys.num_tokens; slot++, token++, count++) {
          offset[count] = base + slot * layer.row_stride;
          position[count] = keys.start + token;
        }
        slot = 0;
      }
      run++;
      token = 0;
    }
    first[num_blocks] = count;
  }

  void fetch_scales(const float* scales) const {
    for (int32_t i = 0; i < num_blocks; i++) __builtin_prefetch(scales + scale[i]);
  }

  // Copy the scales of the keys, and zeros up to a whole vector; `scales` are those of a head's keys, or of its values.
  void copy_scales(const float* scales, float* to) const {
    for (int32_t i = 0; i < num_blocks; i++) {
      const float* from = scales + scale[i];
      if (first[i + 1] - first[i] == 16) {
        std::memcpy(to + first[i], from, 16 * sizeof(float));
        continue;
      }
      for (int32_t j = first[i]; j < first[i + 1]; j++) to[j] = *from++;
    }
    for (int32_t j = count; j % kLanes != 0; j++) to[j] = 0;
  }
};

// Rotate a query head for keys of a shift and scale it so that scores are exponents of 2. y is padded by the caller.
static inline void load_query(const AttendArgs& args, int32_t row, int64_t head, int32_t shift, float* y) {
  const AttendPlan& plan = *args.plan;
  const float* q = args.q + row * args.q_stride + head * plan.head_dim;
  rotate_head(q, plan.cos(shift) + row * plan.half, plan.sin(shift) + row * plan.half, plan.head_dim, plan.rotary_dim,
              plan.interleaved, y);
  const float scale = plan.softmax_scale * kLog2e;
  for (int64_t i = 0; i < plan.head_dim; i++) y[i] *= scale;
}

// Where the result of lane (row of the piece, head of the piece) goes; lse only if it is a part.
struct Target {
  float* out;
  float* lse;
};
static inline Target target_of(const AttendArgs& args, const Piece& piece, int64_t row, int64_t head) {
  const AttendPlan& plan = *args.plan;
  const int64_t piece_heads = piece.kv_head < 0 ? plan.heads : plan.group_size;
  if (piece.part >= 0) {
    const int64_t part = piece.part + row * piece_heads + head;
    return {plan.part_out() + part * plan.head_dim, plan.part_lse() + part};
  }
  const int64_t first = piece.kv_head < 0 ? 0 : piece.kv_head * plan.group_size;
  return {args.out + plan.rows[piece.rows + row] * args.out_stride + (first + head) * plan.head_dim, nullptr};
}

void attend_few(const AttendArgs& args, const Piece& piece);
void attend_panels(const AttendArgs& args, const Piece& piece);

}  // namespace preread
