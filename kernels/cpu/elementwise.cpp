#include "elementwise.h"

#include <cmath>

#include "simd.h"

namespace preread {
namespace {

void norm_one(const float* x, const float* weight, float eps, int64_t dim, float* y) {
  Vec squares = {};
  float rest = 0;
  int64_t i = 0;
  for (; i + kLanes <= dim; i += kLanes) {
    const Vec value = load(x + i);
    squares = fma(value, value, squares);
  }
  for (int64_t j = i; j < dim; j++) rest += x[j] * x[j];
  const float factor = 1.f / std::sqrt((sum(squares) + rest) / float(dim) + eps);
  for (i = 0; i + kLanes <= dim; i += kLanes) store(y + i, load(x + i) * factor * load(weight + i));
  for (; i < dim; i++) y[i] = x[i] * factor * weight[i];
}

Vec silu(Vec x) { return x / (1.f + exp(-x)); }

template <class T>
void store_row(const float* from, int64_t dim, T* to) {
  int64_t i = 0;
  for (; i + kLanes <= dim; i += kLanes) store(to + i, load(from + i));
  for (; i < dim; i++) from_float(from[i], to + i);
}

template <class T>
void rope_write(const RopeWriteArgs& args, const Team& team) {
  int64_t first, last;
  team.share(args.rows, 1, &first, &last);
  const int64_t half = args.rotary_dim / 2, head_size = args.block_size * args.head_dim;
  const int64_t part = args.kv_heads * head_size;
  float* rotated = static_cast<float*>(thread_scratch(kScratchOther, size_t(args.head_dim) * 4));
  for (int64_t row = first; row < last; row++) {
    const int64_t block = args.slots[row] / args.block_size, offset = args.slots[row] % args.block_size;
    T* keys = static_cast<T*>(args.cache) + (block * args.num_layers + args.layer) * 2 * part + offset * args.head_dim;
    const float* k = args.k + row * args.k_stride;
    const float* v = args.v + row * args.v_stride;
    for (int64_t head = 0; head < args.kv_heads; head++) {
      const float* key = k + head * args.head_dim;
      if (args.cos != nullptr) {
        rotate_head(key, args.cos + row * half, args.sin + row * half, args.head_dim, args.rotary_dim,
                    args.interleaved != 0, rotated);
        key = rotated;
      }
      store_row(key, args.head_dim, keys + head * head_size);
      store_row(v + head * args.head_dim, args.head_dim, keys + part + head * head_size);
    }
  }
}

}  // namespace

void rms_norm(const RmsNormArgs& args, const Team& team) {
  int64_t first, last;
  team.share(args.rows * args.heads, 1, &first, &last);
  for (int64_t item = first; item < last; item++) {
    const int64_t row = item / args.heads, head = item % args.heads;
    norm_one(args.x + row * args.x_stride + head * args.dim, args.weight, args.eps, args.dim,
             args.y + row * args.y_stride + head * args.dim);
  }
}

void silu_mul(const SiluMulArgs& args, const Team& team) {
  const bool few = args.rows < 2 * team.size;  // then the columns are shared instead
  int64_t first_row = 0, last_row = args.rows, first = 0, last = args.dim;
  if (few)
    team.share(args.dim, 16, &first, &last);
  else
    team.share(args.rows, 1, &first_row, &last_row);
  for (int64_t row = first_row; row < last_row; row++) {
    const float* gate = args.gate + row * args.x_stride;
    const float* up = args.up + row * args.x_stride;
    float* y = args.y + row * args.y_stride;
    int64_t i = first;
    for (; i + kLanes <= last; i += kLanes) store(y + i, silu(load(gate + i)) * load(up + i));
    if (i < last) {
      const int rest = int(last - i);
      store_part(y + i, silu(load_part(gate + i, rest)) * load_part(up + i, rest), rest);
    }
  }
}

void rope_write_kv(const RopeWriteArgs& args, const Team& team) {
  if (args.dtype == kFloat32) rope_write<float>(args, team);
  if (args.dtype == kBFloat16) rope_write<BFloat16>(args, team);
  if (args.dtype == kFloat16) rope_write<Float16>(args, team);
}

void merge(const MergeArgs& args, const Team& team) {
  int64_t first, last;
  team.share(args.rows, 1, &first, &last);
  for (int64_t row = first; row < last; row++) {
    const float a = args.lse_a[row], b = args.lse_b[row], highest = a > b ? a : b;
    // -inf minus -inf is NaN; against 0 both weights become exp(-inf) = 0
    const float base = highest == -INFINITY ? 0.f : highest;
    const float weight_a = std::exp(a - base), weight_b = std::exp(b - base), total = weight_a + weight_b;
    args.lse[row] = base + std::log(total);
    const float share_a = total == 0 ? 0.f : weight_a / total, share_b = total == 0 ? 0.f : weight_b / total;
    for (int64_t i = row * args.dim; i < (row + 1) * args.dim; i++)
      args.out[i] = args.out_a[i] * share_a + args.out_b[i] * share_b;
  }
}

}  // namespace preread

PREREAD_API void preread_rms_norm(const preread::RmsNormArgs* args) {
  preread::run_team([&](const preread::Team& team) { preread::rms_norm(*args, team); });
}
PREREAD_API void preread_silu_mul(const preread::SiluMulArgs* args) {
  preread::run_team([&](const preread::Team& team) { preread::silu_mul(*args, team); });
}
PREREAD_API void preread_rope_write_kv(const preread::RopeWriteArgs* args) {
  preread::run_team([&](const preread::Team& team) { preread::rope_write_kv(*args, team); });
}
PREREAD_API void preread_merge(const preread::MergeArgs* args) {
  preread::run_team([&](const preread::Team& team) { preread::merge(*args, team); });
}
