// Attention over paged runs. A plan is made once a step (attention_plan.cpp) and serves every layer.
#pragma once

#include <memory>
#include <vector>

#include "common.h"

namespace preread {

constexpr int kKeyTile = 64;  // keys of a tile; products of so many are summed in float16 before float32 takes over
// Query lanes (rows times the query heads of a kv head) that are worked on as one panel.
#if defined(__AVX512FP16__)
constexpr int kPanel = 64;
#elif defined(__AVX512F__)
constexpr int kPanel = 32;
#elif defined(__AVX2__)
constexpr int kPanel = 16;
#else
constexpr int kPanel = 8;
#endif
constexpr int kFewLanes = 12;      // up to so many, lanes are dotted one by one instead of filling a panel
constexpr int kPieceLanes = 384;  // panels that share one conversion of keys and values

// What a plan is made of: the query rows, and groups of runs that the same sequences (members) read.
struct AttendPlanArgs {
  const int64_t* positions;   // [rows], prompt position of every query row
  const int64_t* group_sizes; // [groups, 2], members and runs of each
  const int64_t* members;     // [members of all groups, 3]: first row, end row, column of lse
  const int64_t* runs;        // [runs of all groups, 3]: num_tokens, start, shift
  const int64_t* blocks;      // the used block ids of all runs, one run after the other
  const float* inv_freq;      // [rotary_dim / 2]
  int64_t rows, groups, window;  // window: keys with query - key position < window are visible; 0 shows all
  int64_t heads, kv_heads, head_dim, rotary_dim;
  int64_t block_size, block_stride, layer_stride, num_threads;  // strides in elements of the cache
  float rope_scale, softmax_scale;
  int32_t interleaved, dtype;
  int32_t per_run;  // every part is kept, for the log-sum-exp of each run
};

// Keys that are worked on together: adjacent tokens of the runs of one group that have the same shift.
struct KeyTile {
  int32_t run, offset, count;  // starts `offset` tokens into run `run`, may reach into the following ones
  int32_t shift;               // index of the rotation
  int32_t first, last;         // prompt positions
};

struct KeyRun {
  int64_t blocks;  // index of its first block id
  int32_t num_tokens, start;
};

// Rows of one group against a stretch of its key tiles: the unit of work.
struct Piece {
  int32_t kv_head;            // -1: all of them, for few rows
  int32_t rows, rows_end;     // in AttendPlan::rows
  int32_t tiles, tiles_end;   // in AttendPlan::tiles
  int64_t part;               // first of its partial results (row by row, head by head); -1: writes to the output
};

class AttendPlan {
 public:
  explicit AttendPlan(const AttendPlanArgs& args);

  // cos and sin [rows, rotary_dim / 2] of all query rows, scaled. Index 0 is shift 0.
  const float* cos(int64_t shift_index) const { return rotation.get() + shift_index * 2 * num_rows * half; }
  const float* sin(int64_t shift_index) const { return cos(shift_index) + num_rows * half; }
  bool sees(int32_t position_first, int32_t position_last, const KeyTile& tile) const {
    return tile.first <= position_last && tile.last > position_first - window;
  }

  int64_t num_rows, heads, kv_heads, group_size, head_dim, rotary_dim, half, block_size, block_stride, layer_stride;
  int32_t window;  // large when there is none
  float softmax_scale;
  bool interleaved;
  int32_t dtype;
  std::vector<int32_t> positions;  // [num_rows]
  std::vector<int32_t> rows;       // query rows of the groups, one group after the other
  std::vector<int32_t> columns;    // per entry of `rows` its column of lse
  std::vector<KeyRun> runs;
  std::vector<int32_t> blocks;
  std::vector<KeyTile> tiles;
  std::vector<Piece> pieces;
  std::vector<int32_t> shards;  // [threads + 1] into pieces: what each thread does
  // Rows whose output is put together: job j (a row and a kv head) merges parts[job_parts[j] .. job_parts[j + 1]).
  struct Part {
    int64_t part;  // of its first head; the heads of the kv head follow
    int32_t column;
  };
  struct Job {
    int32_t row, kv_head;
  };
  std::vector<Job> jobs;
  std::vector<int32_t> job_parts;
  std::vector<Part> parts;
  int64_t num_parts;
  float* part_out() const { return part_memory.get(); }                          // [num_parts, head_dim]
  float* part_lse() const { return part_memory.get() + num_parts * head_dim; }  // [num_parts], base 2

 private:
  struct Group {
    int32_t rows, rows_end, tiles, tiles_end;
  };
  struct Item {
    Piece piece;
    std::vector<double> costs;  // of its tiles
  };
  void lay_out(const AttendPlanArgs& args);
  void add_tiles(int32_t first_run, const std::vector<int32_t>& shift_of_run);
  void rotate(const AttendPlanArgs& args);
  std::vector<double> tile_costs(const Group& group, int32_t first, int32_t end, bool few) const;
  std::vector<Item> make_items() const;
  void cut(int64_t num_threads);
  void number_parts(bool keep_all);

  std::vector<Group> groups;
  std::vector<int64_t> shifts;
  std::unique_ptr<float[]> rotation;  // [shifts, cos and sin, num_rows, half]
  std::unique_ptr<float[]> part_memory;
};

struct AttendArgs {
  const AttendPlan* plan;
  const float* q;    // [rows, heads, head_dim] not rotated, rows q_stride apart
  float* out;        // [rows, heads, head_dim], rows out_stride apart
  const void* cache; // [blocks, layers, 2, kv_heads, block_size, head_dim]; of int8, scales follow each layer
  float* lse;        // [rows, lse_columns, heads], or null
  int64_t q_stride, out_stride, layer, lse_columns;
};

// Attend from every query row to the visible keys; synchronises inside where needed, ends without a barrier.
void attend(const AttendArgs& args, const Team& team);

}  // namespace preread
