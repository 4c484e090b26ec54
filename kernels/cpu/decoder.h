// A whole forward pass over paged KV in one parallel region: pre-norm decoder layers, last norm and head.
// Llama, Mistral, Qwen2 and Qwen3 differ in what is null and in the biases of their linears.
#pragma once

#include "attention.h"
#include "common.h"
#include "elementwise.h"
#include "linear.h"

namespace preread {

struct LayerWeights {
  Linear qkv;  // rows: query heads, key heads, value heads
  Linear output;
  Linear gate_up;  // packed for kSiluMul
  Linear down;
  const float* input_norm;  // [hidden]
  const float* mlp_norm;    // [hidden]
  const float* q_norm;      // [head_dim], or null
  const float* k_norm;      // [head_dim], or null
};

struct DecoderWeights {
  const LayerWeights* layers;
  const float* norm;  // [hidden]
  Linear head;
  int64_t num_layers, num_heads, num_kv_heads, head_dim, hidden_size;
  float eps;
};

// One step. What it computes besides the logits is the KV of its rows.
struct DecoderStep {
  float* hidden;                    // [rows, hidden]: embeddings in; used up
  const int64_t* slots;             // [rows], block_id * block_size + offset
  const int64_t* logit_rows;        // [num_logits], ascending
  float* logits;                    // [num_logits, vocab]
  void* cache;                      // of the plans' dtype and shape
  const AttendPlan* const* plans;   // [num_layers]: they differ where windows do
  int64_t rows, num_logits;
};

void decode(const DecoderWeights& weights, const DecoderStep& step, const Team& team);

}  // namespace preread
