// Linear layers over packed weights: y = x W' + b for 1 to thousands of rows.
#pragma once

#include "common.h"

namespace preread {

// Formats beyond the element types: int8 weights with activations rounded to int8 as they come.
constexpr int32_t kInt8Dynamic = 4;

enum Epilogue : int32_t {
  kStore = 0,    // y = x W' + b
  kAdd = 1,      // y += x W' + b
  kSiluMul = 2,  // the weight's rows are [gate; up]: y[rows, out / 2] = silu(gate) * up
};

// A packed weight. Its outputs are cut into panels of 32, the last one padded with zeros, each [in_features][32]
// (kInt8Dynamic: [ceil(in_features / 4)][32][4], unsigned with an offset of 128). A gated one has panels of gate and of
// up in turns. `scales` (float16, kInt8Dynamic) and `bias` (or null) have one entry a packed output. Panels of kInt8
// have their scales inside, so that memory is read in one stream: before every kGroupInputs inputs, or the rest of
// them, 32 in bfloat16.
struct Linear {
  int32_t format;
  int32_t gated;
  int64_t out_features, in_features;
  const void* panels;
  const float* scales;
  const float* bias;
};

constexpr int kWeightPanel = 32;
constexpr int kGroupInputs = 64;                // whose weights of an output share a scale (kInt8)
constexpr int kGroupHead = kWeightPanel * 2;  // bytes of the scales before them

// In a team: every thread does its share and returns without a barrier; x must be complete before, y is complete after
// a barrier by the caller. x [rows, in_features] and y may not overlap. A row of y does not depend on the other rows
// or on the number of threads.
void linear(const Linear& weight, const float* x, int64_t x_stride, float* y, int64_t y_stride, int64_t rows,
            int32_t epilogue, const Team& team);

}  // namespace preread
