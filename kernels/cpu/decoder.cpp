#include "decoder.h"

#include <algorithm>
#include <cstring>

namespace preread {
namespace {

// Memory between the operations of a layer; all of it float32, row-major.
struct Buffers {
  float* normed;    // [rows, hidden]
  float* qkv;       // [rows, (heads + 2 kv_heads) * head_dim]
  float* attended;  // [rows, heads * head_dim]
  float* inner;     // [rows, inner]
};

Buffers provide(const DecoderWeights& weights, int64_t rows, const Team& team) {
  const auto padded = [rows](int64_t width) { return (rows * width + 15) / 16 * 16; };
  const LayerWeights& layer = weights.layers[0];
  const int64_t sizes[4] = {padded(weights.hidden_size), padded(layer.qkv.out_features),
                            padded(weights.num_heads * weights.head_dim), padded(layer.down.in_features)};
  const int64_t total = sizes[0] + sizes[1] + sizes[2] + sizes[3];
  float* memory = static_cast<float*>(team_scratch(kScratchLayer, total * sizeof(float), team));
  return {memory, memory + sizes[0], memory + sizes[0] + sizes[1], memory + sizes[0] + sizes[1] + sizes[2]};
}

// Normalise each head of q and k in place.
void norm_heads(const DecoderWeights& weights, const LayerWeights& layer, float* qkv, int64_t rows, const Team& team) {
  const int64_t stride = layer.qkv.out_features, dim = weights.head_dim;
  if (layer.q_norm != nullptr)
    rms_norm({qkv, qkv, layer.q_norm, stride, stride, rows, weights.num_heads, dim, weights.eps}, team);
  float* k = qkv + weights.num_heads * dim;
  if (layer.k_norm != nullptr)
    rms_norm({k, k, layer.k_norm, stride, stride, rows, weights.num_kv_heads, dim, weights.eps}, team);
  if (layer.q_norm != nullptr || layer.k_norm != nullptr) team.barrier();
}

void write_kv(const DecoderWeights& weights, const DecoderStep& step, int64_t layer, const float* qkv,
              const Team& team) {
  const AttendPlan& plan = *step.plans[layer];
  const int64_t stride = weights.layers[layer].qkv.out_features, dim = weights.head_dim;
  const float* k = qkv + weights.num_heads * dim;
  RopeWriteArgs args = {};
  args.k = k;
  args.v = k + weights.num_kv_heads * dim;
  args.cos = plan.cos(0);
  args.sin = plan.sin(0);
  args.slots = step.slots;
  args.cache = step.cache;
  args.k_stride = args.v_stride = stride;
  args.rows = step.rows;
  args.kv_heads = weights.num_kv_heads;
  args.head_dim = dim;
  args.rotary_dim = plan.rotary_dim;
  args.block_size = plan.block_size;
  args.num_layers = plan.num_layers;
  args.layer = layer;
  args.interleaved = plan.interleaved;
  args.dtype = plan.dtype;
  rope_write_kv(args, team);
}

// Move the rows whose logits are wanted to the front: only they go on after the last layer's attention.
void keep_logit_rows(const DecoderStep& step, float* values, int64_t width) {
  for (int64_t i = 0; i < step.num_logits; i++)
    std::memmove(values + i * width, values + step.logit_rows[i] * width, width * sizeof(float));
}

}  // namespace

void decode(const DecoderWeights& weights, const DecoderStep& step, const Team& team) {
  const int64_t hidden_size = weights.hidden_size, attended_size = weights.num_heads * weights.head_dim;
  const Buffers buffers = provide(weights, step.rows, team);
  float* hidden = step.hidden;
  int64_t rows = step.rows;
  const auto norm = [&](const float* weight) {
    rms_norm({hidden, buffers.normed, weight, hidden_size, hidden_size, rows, 1, hidden_size, weights.eps}, team);
    team.barrier();
  };
  for (int64_t index = 0; index < weights.num_layers; index++) {
    const LayerWeights& layer = weights.layers[index];
    const int64_t qkv_size = layer.qkv.out_features;
    norm(layer.input_norm);
    linear(layer.qkv, buffers.normed, hidden_size, buffers.qkv, qkv_size, rows, kStore, team);
    team.barrier();
    norm_heads(weights, layer, buffers.qkv, rows, team);
    write_kv(weights, step, index, buffers.qkv, team);
    team.barrier();
    AttendArgs attention = {step.plans[index], buffers.qkv, buffers.attended, step.cache, nullptr,
                            qkv_size,          attended_size, index, 0};
    attend(attention, team);
    team.barrier();
    if (index == weights.num_layers - 1) {
      if (team.rank == 0) keep_logit_rows(step, hidden, hidden_size);
      if (team.rank == team.size - 1) keep_logit_rows(step, buffers.attended, attended_size);
      rows = step.num_logits;
      team.barrier();
      if (rows == 0) return;
    }
    linear(layer.output, buffers.attended, attended_size, hidden, hidden_size, rows, kAdd, team);
    team.barrier();
    norm(layer.mlp_norm);
    const int64_t inner_size = layer.down.in_features;
    linear(layer.gate_up, buffers.normed, hidden_size, buffers.inner, inner_size, rows, kSiluMul, team);
    team.barrier();
    linear(layer.down, buffers.inner, inner_size, hidden, hidden_size, rows, kAdd, team);
    team.barrier();
  }
  norm(weights.norm);
  linear(weights.head, buffers.normed, hidden_size, step.logits, weights.head.out_features, rows, kStore, team);
}

}  // namespace preread

PREREAD_API void preread_decode(const preread::DecoderWeights* weights, const preread::DecoderStep* step) {
  preread::run_team([&](const preread::Team& team) { preread::decode(*weights, *step, team); });
}
