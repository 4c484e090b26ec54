// The small operations between matrix products: norms, activation, rotary embedding with the write into the KV cache,
// merging of partial attention. Each shares its rows over the team and ends without a barrier.
#pragma once

#include "common.h"

namespace preread {

// y = x / sqrt(mean(x^2) + eps) * weight over the last `dim` values of each head; in place where y == x.
struct RmsNormArgs {
  const float* x;  // [rows, heads, dim], rows x_stride apart
  float* y;        // [rows, heads, dim], rows y_stride apart
  const float* weight;  // [dim]
  int64_t x_stride, y_stride;
  int64_t rows, heads, dim;
  float eps;
};

// y = silu(gate) * up.
struct SiluMulArgs {
  const float* gate;  // [rows, dim], rows x_stride apart
  const float* up;    // as gate
  float* y;           // [rows, dim], rows y_stride apart
  int64_t x_stride, y_stride;
  int64_t rows, dim;
};

// Rotate k by the cos and sin of its row, if there are any, and store k and v at their slots of one layer. int8 is
// stored with a scale a head, behind all slots of the layer: [2, kv_heads, block_size] float32.
struct RopeWriteArgs {
  const float* k;        // [rows, kv_heads, head_dim], rows k_stride apart
  const float* v;        // as k, rows v_stride apart
  const float* cos;      // [rows, rotary_dim / 2], scaled; null: k is rotated already
  const float* sin;      // as cos
  const int64_t* slots;  // [rows], block_id * block_size + offset
  void* cache;           // [blocks, layers, 2, kv_heads, block_size, head_dim] of dtype
  int64_t k_stride, v_stride;
  int64_t rows, kv_heads, head_dim, rotary_dim;
  int64_t block_size, block_stride, layer_stride, layer;  // strides in elements of the cache
  int32_t interleaved;  // pairs are (0, 1), (2, 3), ... instead of (i, i + rotary_dim / 2)
  int32_t dtype;
};

// Merge attention over two disjoint sets of keys; the empty one is (0, -inf).
struct MergeArgs {
  const float* out_a;  // [rows, dim]
  const float* lse_a;  // [rows]
  const float* out_b;
  const float* lse_b;
  float* out;
  float* lse;
  int64_t rows, dim;
};

void rms_norm(const RmsNormArgs& args, const Team& team);
void silu_mul(const SiluMulArgs& args, const Team& team);
void rope_write_kv(const RopeWriteArgs& args, const Team& team);
void merge(const MergeArgs& args, const Team& team);

// Rotate one head x [dim] into y, which does not overlap it; angles of `rotary_dim / 2` pairs, the rest is copied.
static inline void rotate_head(const float* __restrict x, const float* __restrict cos, const float* __restrict sin,
                               int64_t dim, int64_t rotary_dim, bool interleaved, float* __restrict y) {
  const int64_t half = rotary_dim / 2;
  if (interleaved) {
    for (int64_t i = 0; i < half; i++) {
      const float a = x[2 * i], b = x[2 * i + 1];
      y[2 * i] = a * cos[i] - b * sin[i];
      y[2 * i + 1] = b * cos[i] + a * sin[i];
    }
  } else {
    for (int64_t i = 0; i < half; i++) {
      const float a = x[i], b = x[i + half];
      y[i] = a * cos[i] - b * sin[i];
      y[i + half] = b * cos[i] + a * sin[i];
    }
  }
  for (int64_t i = rotary_dim; i < dim; i++) y[i] = x[i];
}

}  // namespace preread
