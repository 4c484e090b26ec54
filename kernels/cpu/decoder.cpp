#include "decoder.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <ctime>

namespace preread {
namespace {

// With at least so many rows for each, threads work on rows of their own between two attentions.
constexpr int64_t kOwnRows = 32;
// So many of them at a time, so that what one operation leaves is still in the L2 cache when the next reads it.
constexpr int64_t kBlockRows = 96;

// Nanoseconds for which this thread has had a processor.
int64_t thread_time() {
  timespec time = {};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return int64_t(time.tv_sec) * 1000000000 + time.tv_nsec;
}

// How many threads a step of few rows gets. They wait for each other after every operation: where other processes take
// the cores, several get less done than one that has nobody to wait for. What is computed does not depend on it.
class Crew {
 public:
  int size() const {
    const int all = omp_get_max_threads();
    return now() < retry_ ? std::min(few_, all) : all;
  }

  // Look at a step that took `wall` seconds, in which its threads had processors for `processor` seconds together: where
  // that is less than half of them all the time, the next steps get fewer threads, until all of them are tried again.
  void judge(int size, double wall, double processor) {
    if (size < omp_get_max_threads()) return;
    if (processor >= 0.5 * size * wall || wall < kShortest) {
      pause_ = kFirstPause;
      return;
    }
    few_ = std::max(1, int(processor / wall));
    retry_ = now() + pause_;
    pause_ = std::min(2 * pause_, kLongestPause);
  }

 private:
  static constexpr double kShortest = 1e-3, kFirstPause = 0.05, kLongestPause = 1;  // seconds

  int few_ = 1;
  double retry_ = 0, pause_ = kFirstPause;
};

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

// Consecutive rows of a step, and who works on them: one thread on its own, or the whole team with a barrier after
// each operation.
struct Rows {
  int64_t first, count;
  Team team;

  void barrier() const {
    if (team.size > 1) team.barrier();
  }
};

// Call `work` for the rows [0, count) of a step, all at once or in this thread's own blocks.
template <class Work>
void for_rows(int64_t count, const Team& team, Work&& work) {
  if (count < kOwnRows * team.size) {
    work(Rows{0, count, team});
    return;
  }
  int64_t first, last;
  team.share(count, 1, &first, &last);
  const int64_t blocks = (last - first + kBlockRows - 1) / kBlockRows;
  for (int64_t i = 0; i < blocks; i++) {
    const int64_t low = first + (last - first) * i / blocks, high = first + (last - first) * (i + 1) / blocks;
    work(Rows{low, high - low, Team{0, 1, nullptr}});
  }
}

class Pass {
 public:
  Pass(const DecoderWeights& weights, const DecoderStep& step, const Team& team)
      : weights_(weights),
        step_(step),
        team_(team),
        hidden_size_(weights.hidden_size),
        attended_size_(weights.num_heads * weights.head_dim),
        buffers_(provide(weights, step.rows, team)) {}

  void run() {
    for (int64_t index = 0; index < weights_.num_layers; index++) {
      const LayerWeights& layer = weights_.layers[index];
      for_rows(step_.rows, team_, [&](const Rows& rows) { project(layer, index, rows); });
      team_.barrier();
      const int64_t qkv_size = layer.qkv.out_features;
      attend({step_.plans[index], buffers_.qkv, buffers_.attended, step_.cache, nullptr, qkv_size, attended_size_, index, 0},
             team_);
      team_.barrier();
      int64_t count = step_.rows;
      if (index == weights_.num_layers - 1) {
        keep_logit_rows();
        count = step_.num_logits;
      }
      for_rows(count, team_, [&](const Rows& rows) { finish(layer, rows); });
      // without a barrier where threads keep to rows of their own, which are the same in the next layer
      if (count < kOwnRows * team_.size) team_.barrier();
    }
    team_.barrier();
    for_rows(step_.num_logits, team_, [&](const Rows& rows) { norm(weights_.norm, rows); });
    team_.barrier();
    linear(weights_.head, buffers_.normed, hidden_size_, step_.logits, weights_.head.out_features, step_.num_logits,
           kStore, team_);
  }

 private:
  float* hidden(const Rows& rows) const { return step_.hidden + rows.first * hidden_size_; }
  float* normed(const Rows& rows) const { return buffers_.normed + rows.first * hidden_size_; }

  void norm(const float* weight, const Rows& rows) const {
    rms_norm({hidden(rows), normed(rows), weight, hidden_size_, hidden_size_, rows.count, 1, hidden_size_, weights_.eps},
             rows.team);
    rows.barrier();
  }

  // From hidden to q, and to k and v in the cache.
  void project(const LayerWeights& layer, int64_t index, const Rows& rows) const {
    const int64_t qkv_size = layer.qkv.out_features;
    float* qkv = buffers_.qkv + rows.first * qkv_size;
    norm(layer.input_norm, rows);
    linear(layer.qkv, normed(rows), hidden_size_, qkv, qkv_size, rows.count, kStore, rows.team);
    rows.barrier();
    norm_heads(layer, qkv, rows);
    write_kv(index, qkv, rows);
  }

  // Normalise each head of q and k in place.
  void norm_heads(const LayerWeights& layer, float* qkv, const Rows& rows) const {
    if (layer.q_norm == nullptr && layer.k_norm == nullptr) return;
    const int64_t stride = layer.qkv.out_features, dim = weights_.head_dim;
    float* k = qkv + attended_size_;
    if (layer.q_norm != nullptr)
      rms_norm({qkv, qkv, layer.q_norm, stride, stride, rows.count, weights_.num_heads, dim, weights_.eps}, rows.team);
    if (layer.k_norm != nullptr)
      rms_norm({k, k, layer.k_norm, stride, stride, rows.count, weights_.num_kv_heads, dim, weights_.eps}, rows.team);
    rows.barrier();
  }

  void write_kv(int64_t index, const float* qkv, const Rows& rows) const {
    const AttendPlan& plan = *step_.plans[index];
    const float* k = qkv + attended_size_;
    RopeWriteArgs args = {};
    args.k = k;
    args.v = k + weights_.num_kv_heads * weights_.head_dim;
    args.cos = plan.cos(0) + rows.first * plan.half;
    args.sin = plan.sin(0) + rows.first * plan.half;
    args.slots = step_.slots + rows.first;
    args.cache = step_.cache;
    args.k_stride = args.v_stride = weights_.layers[index].qkv.out_features;
    args.rows = rows.count;
    args.kv_heads = weights_.num_kv_heads;
    args.head_dim = weights_.head_dim;
    args.rotary_dim = plan.rotary_dim;
    args.block_size = plan.block_size;
    args.block_stride = plan.block_stride;
    args.layer_stride = plan.layer_stride;
    args.layer = index;
    args.interleaved = plan.interleaved;
    args.dtype = plan.dtype;
    rope_write_kv(args, rows.team);
  }

  // Add the attention's output and the MLP to hidden.
  void finish(const LayerWeights& layer, const Rows& rows) const {
    const int64_t inner_size = layer.down.in_features;
    float* inner = buffers_.inner + rows.first * inner_size;
    linear(layer.output, buffers_.attended + rows.first * attended_size_, attended_size_, hidden(rows), hidden_size_,
           rows.count, kAdd, rows.team);
    rows.barrier();
    norm(layer.mlp_norm, rows);
    linear(layer.gate_up, normed(rows), hidden_size_, inner, inner_size, rows.count, kSiluMul, rows.team);
    rows.barrier();
    linear(layer.down, inner, inner_size, hidden(rows), hidden_size_, rows.count, kAdd, rows.team);
  }

  // Move the rows whose logits are wanted to the front: only they go on after the last layer's attention.
  void keep_logit_rows() const {
    for (int64_t i = 0; i < step_.num_logits; i++) {
      const int64_t row = step_.logit_rows[i];
      if (team_.rank == 0)
        std::memmove(step_.hidden + i * hidden_size_, step_.hidden + row * hidden_size_, hidden_size_ * sizeof(float));
      if (team_.rank == team_.size - 1)
        std::memmove(buffers_.attended + i * attended_size_, buffers_.attended + row * attended_size_,
                     attended_size_ * sizeof(float));
    }
    team_.barrier();
  }

  const DecoderWeights& weights_;
  const DecoderStep& step_;
  const Team& team_;
  const int64_t hidden_size_, attended_size_;
  const Buffers buffers_;
};

}  // namespace

void decode(const DecoderWeights& weights, const DecoderStep& step, const Team& team) {
  Pass(weights, step, team).run();
}

}  // namespace preread

PREREAD_API void preread_decode(const preread::DecoderWeights* weights, const preread::DecoderStep* step) {
  using namespace preread;
  static thread_local Crew crew;
  const bool together = step->rows < kOwnRows * omp_get_max_threads();
  const int size = together ? crew.size() : omp_get_max_threads();
  const double began = now();
  std::atomic<int64_t> processor_time{0};
  run_team(
      [&](const Team& team) {
        const int64_t start = thread_time();
        decode(*weights, *step, team);
        processor_time += thread_time() - start;
      },
      size);
  if (together) crew.judge(size, now() - began, 1e-9 * double(processor_time));
}
