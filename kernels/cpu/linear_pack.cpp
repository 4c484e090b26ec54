// Packing of weights for linear.cpp: once, when a model is loaded.
#include <algorithm>
#include <cmath>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "linear.h"
#include "simd.h"

namespace preread {
namespace {

struct PackArgs {
  int32_t format;
  int32_t gated;
  int64_t out_features, in_features;
  const void* weight;  // [out_features, in_features]
  int64_t dtype;       // of the weight: kFloat32, kBFloat16 or kFloat16
  void* panels;
  float* scales;  // [packed outputs], of formats that have them
};

constexpr int kBlock = kGroupInputs;  // inputs that are turned at once

// The scale of one output, or of a group of its inputs: what its packed weights are multiplied with.
float scale_of(int32_t format, float largest) {
  if (!(largest > 0) || !std::isfinite(largest)) return 1.f;
  if (format == kInt8 || format == kInt8Dynamic) return std::max(largest / 127.f, 1e-37f);
  if (format != kFloat16) return 1.f;
  // float16: a power of two that brings the largest into [64, 128), as far as those of int8 go
  const int exponent = std::ilogb(largest) - 6;
  return std::ldexp(1.f, std::max(exponent, -126));
}

template <class Source>
float largest_of(const Source* row, int64_t count) {
  Vec most = {};
  int64_t k = 0;
  const VecI magnitude = VecI{} + 0x7fffffff;
  for (; k + kLanes <= count; k += kLanes) {
    const Vec value = (Vec)((VecI)load(row + k) & magnitude);
    most = value > most ? value : most;
  }
  float largest = 0;
  for (int i = 0; i < kLanes; i++) largest = std::max(largest, most[i]);
  for (; k < count; k++) largest = std::max(largest, std::fabs(to_float(row[k])));
  return largest;
}

void put(float value, float* to) { *to = value; }
void put(float value, BFloat16* to) { from_float(value, to); }
void put(float value, Float16* to) { from_float(value, to); }
void put(float value, int8_t* to) {
  *to = value == value ? int8_t(std::lrint(std::min(std::max(value, -127.f), 127.f))) : int8_t(0);
}

void put(float value, uint8_t* to) {
  int8_t whole;
  put(value, &whole);
  *to = uint8_t(whole + 128);
}

// The scales of `steps` inputs from `k` on of one panel. Rounded to bfloat16 they are 1 / 512 too small at most, which
// brings no weight further than half a step beyond 127.
template <class Source>
void group_scales(const PackArgs& args, const Source* const* rows, int64_t k, int steps, BFloat16* to, float* inverse) {
  for (int lane = 0; lane < kWeightPanel; lane++) {
    const float scale = rows[lane] == nullptr ? 1.f : scale_of(args.format, largest_of(rows[lane] + k, steps));
    from_float(scale, to + lane);
    inverse[lane] = 1.f / to_float(to[lane]);
  }
}

// One panel: `rows` has its weight rows, null where it is padded. kQuad inputs of an output lie side by side.
template <int kQuad, class Source, class Packed>
void pack_panel(const PackArgs& args, const Source* const* rows, Packed* to, float* scales) {
  constexpr bool kHasGroups = std::is_same<Packed, int8_t>::value;
  float inverse[kWeightPanel];
  for (int lane = 0; lane < kWeightPanel && !kHasGroups; lane++) {
    scales[lane] = rows[lane] == nullptr ? 1.f : scale_of(args.format, largest_of(rows[lane], args.in_features));
    inverse[lane] = 1.f / scales[lane];
  }
  for (int64_t k = 0; k < args.in_features; k += kBlock) {
    const int steps = int(std::min<int64_t>(kBlock, args.in_features - k));
    if constexpr (kHasGroups) {
      group_scales(args, rows, k, steps, reinterpret_cast<BFloat16*>(to), inverse);
      to += kGroupHead;
    }
    Packed turned[kBlock * kWeightPanel];
    for (int lane = 0; lane < kWeightPanel; lane++)
      for (int i = 0; i < steps; i++) {
        const float value = rows[lane] == nullptr ? 0.f : to_float(rows[lane][k + i]) * inverse[lane];
        put(value, turned + (i / kQuad * kWeightPanel + lane) * kQuad + i % kQuad);
      }
    for (int i = steps; i % kQuad != 0; i++)
      for (int lane = 0; lane < kWeightPanel; lane++)
        put(0.f, turned + (i / kQuad * kWeightPanel + lane) * kQuad + i % kQuad);
    const int64_t count = (steps + kQuad - 1) / kQuad * kQuad * kWeightPanel;
    std::memcpy(to, turned, size_t(count) * sizeof(Packed));
    to += count;
  }
}

template <class Source, class Packed, int kQuad = 1>
void pack(const PackArgs& args, const Team& team) {
  const Source* weight = static_cast<const Source*>(args.weight);
  const int64_t outputs = args.gated ? args.out_features / 2 : args.out_features;
  const int64_t panels = (outputs + kWeightPanel - 1) / kWeightPanel * (args.gated ? 2 : 1);
  const int64_t inputs = (args.in_features + kQuad - 1) / kQuad * kQuad;
  const int64_t groups = std::is_same<Packed, int8_t>::value ? (args.in_features + kGroupInputs - 1) / kGroupInputs : 0;
  const int64_t panel_elements = inputs * kWeightPanel + groups * kGroupHead;
  int64_t first, last;
  team.share(panels, 1, &first, &last);
  for (int64_t panel = first; panel < last; panel++) {
    const int64_t base = args.gated ? panel / 2 * kWeightPanel : panel * kWeightPanel;
    const int64_t offset = args.gated && panel % 2 ? outputs : 0;
    const Source* rows[kWeightPanel];
    for (int lane = 0; lane < kWeightPanel; lane++)
      rows[lane] = base + lane < outputs ? weight + (offset + base + lane) * args.in_features : nullptr;
    pack_panel<kQuad>(args, rows, static_cast<Packed*>(args.panels) + panel * panel_elements,
                      args.scales + panel * kWeightPanel);
  }
}

template <class Source>
void pack_from(const PackArgs& args, const Team& team) {
  switch (args.format) {
    case kFloat32: return pack<Source, float>(args, team);
    case kBFloat16: return pack<Source, BFloat16>(args, team);
    case kFloat16: return pack<Source, Float16>(args, team);
    case kInt8: return pack<Source, int8_t>(args, team);
    case kInt8Dynamic: return pack<Source, uint8_t, 4>(args, team);
  }
}

}  // namespace
}  // namespace preread

PREREAD_API void preread_linear_pack(const preread::PackArgs* args) {
  using namespace preread;
  run_team([args](const Team& team) {
    switch (args->dtype) {
      case kFloat32: return pack_from<float>(*args, team);
      case kBFloat16: return pack_from<BFloat16>(*args, team);
      case kFloat16: return pack_from<Float16>(*args, team);
    }
  });
}

// Ask for huge pages in [memory, memory + bytes), a multiple of them that nothing has been written to. Only a hint.
PREREAD_API void preread_huge_pages(void* memory, int64_t bytes) {
#if defined(__linux__)
  madvise(memory, size_t(bytes), MADV_HUGEPAGE);
#endif
}
