#include "elementwise.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

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

typedef int8_t Bytes __attribute__((vector_size(kLanes)));

// Stores `dim` numbers as whole multiples of their largest magnitude / 127, which it returns: NaN if one of them is not
// finite. Compares magnitudes as integers, where NaN is the highest.
float store_quantised(const float* from, int64_t dim, int8_t* to) {
  const auto magnitude = [](auto number) {
    std::conditional_t<sizeof number == 4, int32_t, VecI> bits;
    std::memcpy(&bits, &number, sizeof bits);
    return bits & 0x7fffffff;
  };
  VecI most = {};
  int64_t i = 0;
  for (; i + kLanes <= dim; i += kLanes) {
    const VecI bits = magnitude(load(from + i));
    most = bits > most ? bits : most;
  }
  int32_t most_bits = 0;
  for (int lane = 0; lane < kLanes; lane++) most_bits = std::max(most_bits, most[lane]);
  for (; i < dim; i++) most_bits = std::max(most_bits, magnitude(from[i]));
  float scale;
  std::memcpy(&scale, &most_bits, 4);
  scale = most_bits < 0x7f800000 ? scale / 127.f : std::numeric_limits<float>::quiet_NaN();
  if (!(scale > 0)) {
    std::memset(to, 0, size_t(dim));
    return scale;
  }
  // a scale of few bits, which only the least of all numbers have, may leave more than 127
  constexpr float kMagic = 12582912.f;  // 1.5 * 2^23: adding it rounds to a whole number, in the lowest bits
  for (i = 0; i + kLanes <= dim; i += kLanes) {
    const Vec number = load(from + i) / scale;
    const Vec shifted = max(set1(-127.f), -max(set1(-127.f), -number)) + kMagic;
    VecI whole;
    std::memcpy(&whole, &shifted, sizeof whole);
    const Bytes bytes = __builtin_convertvector(whole - 0x4b400000, Bytes);
    std::memcpy(to + i, &bytes, sizeof bytes);
  }
  for (; i < dim; i++) to[i] = int8_t(std::nearbyint(std::min(std::max(from[i] / scale, -127.f), 127.f)));
  return scale;
}

template <class T>
void rope_write(const RopeWriteArgs& args, const Team& team) {
  int64_t first, last;
  team.share(args.rows, 1, &first, &last);
  const int64_t half = args.rotary_dim / 2, part = args.kv_heads * args.block_size * args.head_dim;
  const auto put = [&](const float* from, T* layer, int64_t at) {  // `at`: part, head and slot
    if constexpr (std::is_same_v<T, int8_t>)
      reinterpret_cast<float*>(layer + 2 * part)[at] = store_quantised(from, args.head_dim, layer + at * args.head_dim);
    else
      store_row(from, args.head_dim, layer + at * args.head_dim);
  };
  float* rotated = static_cast<float*>(thread_scratch(kScratchOther, size_t(args.head_dim) * 4));
  for (int64_t row = first; row < last; row++) {
    const int64_t block = args.slots[row] / args.block_size, offset = args.slots[row] % args.block_size;
    T* layer = static_cast<T*>(args.cache) + block * args.block_stride + args.layer * args.layer_stride;
    const float* k = args.k + row * args.k_stride;
    const float* v = args.v + row * args.v_stride;
    for (int64_t head = 0; head < args.kv_heads; head++) {
      const float* key = k + head * args.head_dim;
      if (args.cos != nullptr) {
        rotate_head(key, args.cos + row * half, args.sin + row * half, args.head_dim, args.rotary_dim,
                    args.interleaved != 0, rotated);
        key = rotated;
      }
      put(key, layer, head * args.block_size + offset);
      put(v + head * args.head_dim, layer, (args.kv_heads + head) * args.block_size + offset);
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
  if (args.dtype == kInt8) rope_write<int8_t>(args, team);
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
