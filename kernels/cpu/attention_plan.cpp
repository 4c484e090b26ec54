// From runs to pieces of work: once a step, for all layers.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "attention.h"

namespace preread {
namespace {

constexpr int64_t kNoWindow = std::numeric_limits<int32_t>::max() / 2;
constexpr double kSmallestCut = 16000;     // cycles: less is not worth a second thread and a merge
constexpr int64_t kManyAngles = 4096;      // so many are computed by the whole team

// Rough cycles of one panel, or of few lanes, against one key of one kv head. Only their ratios matter.
double panel_cost(int64_t dim) {
#if defined(__AVX512FP16__)
  return double(kPanel) * double(dim) / 24;
#else
  return double(kPanel) * double(dim) * 16 / (12 * (kPanel / 2));
#endif
}
double few_cost(int64_t lanes, int64_t dim) { return 20 + 8 * double(lanes) * double(dim) / 64; }

}  // namespace

AttendPlan::AttendPlan(const AttendPlanArgs& args)
    : num_rows(args.rows),
      heads(args.heads),
      kv_heads(args.kv_heads),
      group_size(args.heads / args.kv_heads),
      head_dim(args.head_dim),
      rotary_dim(args.rotary_dim),
      half(args.rotary_dim / 2),
      block_size(args.block_size),
      block_stride(args.block_stride),
      layer_stride(args.layer_stride),
      window(int32_t(args.window > 0 && args.window < kNoWindow ? args.window : kNoWindow)),
      softmax_scale(args.softmax_scale),
      interleaved(args.interleaved != 0),
      dtype(args.dtype),
      positions(args.positions, args.positions + args.rows) {
  lay_out(args);
  rotate(args);
  cut(std::max<int64_t>(args.num_threads, 1));
  number_parts(args.per_run != 0);
}

void AttendPlan::lay_out(const AttendPlanArgs& args) {
  shifts.push_back(0);
  const int64_t *member = args.members, *run = args.runs;
  int64_t num_blocks = 0;
  for (int64_t group = 0; group < args.groups; group++) {
    const int32_t first_row = int32_t(rows.size()), first_tile = int32_t(tiles.size());
    for (int64_t i = 0; i < args.group_sizes[2 * group]; i++, member += 3) {
      for (int64_t row = member[0]; row < member[1]; row++) {
        rows.push_back(int32_t(row));
        columns.push_back(int32_t(member[2]));
      }
    }
    const int32_t first_run = int32_t(runs.size());
    std::vector<int32_t> shift_of_run;
    for (int64_t i = 0; i < args.group_sizes[2 * group + 1]; i++, run += 3) {
      runs.push_back({num_blocks, int32_t(run[0]), int32_t(run[1])});
      num_blocks += (run[0] + block_size - 1) / block_size;
      const auto known = std::find(shifts.begin(), shifts.end(), run[2]);
      shift_of_run.push_back(int32_t(known - shifts.begin()));
      if (known == shifts.end()) shifts.push_back(run[2]);
    }
    add_tiles(first_run, shift_of_run);
    groups.push_back({first_row, int32_t(rows.size()), first_tile, int32_t(tiles.size())});
  }
  blocks.assign(args.blocks, args.blocks + num_blocks);
}

void AttendPlan::add_tiles(int32_t first_run, const std::vector<int32_t>& shift_of_run) {
  bool open = false;  // the last tile takes more keys
  for (size_t i = 0; i < shift_of_run.size(); i++) {
    const KeyRun& run = runs[size_t(first_run) + i];
    for (int32_t offset = 0; offset < run.num_tokens;) {
      if (!open || tiles.back().shift != shift_of_run[i] || tiles.back().count == kKeyTile)
        tiles.push_back({first_run + int32_t(i), offset, 0, shift_of_run[i], run.start + offset, 0});
      open = true;
      KeyTile& tile = tiles.back();
      const int32_t taken = std::min(kKeyTile - tile.count, run.num_tokens - offset);
      tile.count += taken;
      offset += taken;
      tile.last = run.start + offset - 1;
    }
  }
}

void AttendPlan::rotate(const AttendPlanArgs& args) {
  rotation.reset(new float[shifts.size() * 2 * size_t(num_rows * half) + 1]);
  struct Angles {
    int32_t shift, row;
  };
  std::vector<Angles> wanted;
  for (int64_t row = 0; row < num_rows; row++) wanted.push_back({0, int32_t(row)});
  for (const Group& group : groups) {
    int32_t previous = 0;
    for (int32_t tile = group.tiles; tile < group.tiles_end; tile++) {
      if (tiles[tile].shift == previous) continue;
      previous = tiles[tile].shift;
      if (previous == 0) continue;
      for (int32_t row = group.rows; row < group.rows_end; row++) wanted.push_back({previous, rows[row]});
    }
  }
  const auto compute = [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) {
      const auto [shift, row] = wanted[i];
      float* cosines = rotation.get() + (shift * 2 * num_rows + row) * half;
      float* sines = cosines + num_rows * half;
      const float position = float(positions[row] - shifts[shift]);
      for (int64_t j = 0; j < half; j++) {
        const float angle = position * args.inv_freq[j];
        cosines[j] = std::cos(angle) * args.rope_scale;
        sines[j] = std::sin(angle) * args.rope_scale;
      }
    }
  };
  const int64_t count = int64_t(wanted.size());
  if (count * half < kManyAngles) return compute(0, count);
  run_team([&](const Team& team) {
    int64_t first, last;
    team.share(count, 1, &first, &last);
    compute(first, last);
  });
}

// What each tile of a group costs the rows [first, end) of one kv head, or of all of them if they are few.
std::vector<double> AttendPlan::tile_costs(const Group& group, int32_t first, int32_t end, bool few) const {
  std::vector<double> costs(size_t(group.tiles_end - group.tiles), 0.0);
  const int64_t lanes = (end - first) * group_size, width = few ? lanes : kPanel;
  const double cost = few ? double(kv_heads) * few_cost(lanes, head_dim) : panel_cost(head_dim);
  for (int64_t lane = 0; lane < lanes; lane += width) {
    const auto position = [&](int64_t row) { return positions[rows[first + row]]; };
    int32_t lowest = position(lane / group_size), latest = lowest;
    for (int64_t row = lane / group_size; row * group_size < std::min(lane + width, lanes); row++) {
      lowest = std::min(lowest, position(row));
      latest = std::max(latest, position(row));
    }
    for (int32_t tile = group.tiles; tile < group.tiles_end; tile++)
      if (sees(lowest, latest, tiles[tile])) costs[tile - group.tiles] += tiles[tile].count * cost;
  }
  return costs;
}

std::vector<AttendPlan::Item> AttendPlan::make_items() const {
  std::vector<Item> items;
  for (const Group& group : groups) {
    const int32_t count = group.rows_end - group.rows;
    const bool few = count * group_size <= kFewLanes;
    const int32_t step = few ? std::max(count, 1) : int32_t(std::max<int64_t>(1, kPieceLanes / group_size));
    for (int32_t first = group.rows; first < group.rows_end; first += step) {
      const int32_t end = std::min(first + step, group.rows_end);
      std::vector<double> costs = tile_costs(group, first, end, few);
      auto from = costs.begin(), to = costs.end();  // without what no row sees
      while (from < to && *from == 0) from++;
      while (from < to && to[-1] == 0) to--;
      if (from == to) continue;
      const int32_t tile = group.tiles + int32_t(from - costs.begin());
      const Piece piece{-1, first, end, tile, tile + int32_t(to - from), -1};
      items.push_back({piece, {from, to}});
      if (few) continue;
      items.back().piece.kv_head = 0;
      for (int32_t head = 1; head < kv_heads; head++) {
        items.push_back(items.back());
        items.back().piece.kv_head = head;
      }
    }
  }
  return items;
}

// Deal the work to the threads: each gets the same cost, and where a share ends inside an item, the item is cut
// between two key tiles.
void AttendPlan::cut(int64_t num_threads) {
  const std::vector<Item> items = make_items();
  double total = 0, done = 0;
  for (const Item& item : items) total += std::accumulate(item.costs.begin(), item.costs.end(), 0.0);
  const int64_t wanted = std::clamp<int64_t>(int64_t(2 * total / kSmallestCut), 1, num_threads);
  shards.assign(1, 0);
  for (const Item& item : items) {
    Piece piece = item.piece;
    for (int32_t tile = piece.tiles; tile < item.piece.tiles_end; tile++) {
      const double cost = item.costs[size_t(tile - item.piece.tiles)];
      const double border = total * double(shards.size()) / double(wanted);
      if (int64_t(shards.size()) < wanted && done + cost / 2 > border) {
        piece.tiles_end = tile;
        if (piece.tiles < piece.tiles_end) pieces.push_back(piece);
        shards.push_back(int32_t(pieces.size()));
        piece.tiles = tile;
      }
      done += cost;
    }
    piece.tiles_end = item.piece.tiles_end;
    pieces.push_back(piece);
  }
  shards.push_back(int32_t(pieces.size()));
}

void AttendPlan::number_parts(bool keep_all) {
  std::vector<int32_t> counts(size_t(num_rows * kv_heads), 0);  // then: index of the job, or -1
  const auto each = [&](const Piece& piece, auto&& visit) {
    const int32_t first = std::max(piece.kv_head, 0), last = piece.kv_head < 0 ? int32_t(kv_heads) : first + 1;
    for (int32_t row = piece.rows; row < piece.rows_end; row++)
      for (int32_t head = first; head < last; head++) visit(row, head, rows[row] * kv_heads + head);
  };
  for (const Piece& piece : pieces) each(piece, [&](int32_t, int32_t, int64_t slot) { counts[slot]++; });
  std::vector<char> is_job(counts.size());
  for (size_t slot = 0; slot < counts.size(); slot++) is_job[slot] = counts[slot] == 0 || keep_all;
  num_parts = 0;
  for (Piece& piece : pieces) {
    bool direct = !keep_all;
    each(piece, [&](int32_t, int32_t, int64_t slot) { direct = direct && counts[slot] == 1; });
    if (direct) continue;
    each(piece, [&](int32_t, int32_t, int64_t slot) { is_job[slot] = 1; });
    piece.part = num_parts;
    num_parts += int64_t(piece.rows_end - piece.rows) * (piece.kv_head < 0 ? heads : group_size);
  }
  job_parts.push_back(0);
  for (size_t slot = 0; slot < counts.size(); slot++) {
    if (!is_job[slot]) continue;
    jobs.push_back({int32_t(slot / kv_heads), int32_t(slot % kv_heads)});
    job_parts.push_back(job_parts.back() + counts[slot]);
    counts[slot] = job_parts[jobs.size() - 1];  // where its next part goes
  }
  parts.resize(size_t(job_parts.back()));
  for (const Piece& piece : pieces) {
    if (piece.part < 0) continue;
    const int64_t piece_heads = piece.kv_head < 0 ? heads : group_size;
    each(piece, [&](int32_t row, int32_t head, int64_t slot) {
      const int64_t first = piece.kv_head < 0 ? head * group_size : 0;
      parts[counts[slot]++] = {piece.part + (row - piece.rows) * piece_heads + first, columns[row]};
    });
  }
  part_memory.reset(new float[size_t(num_parts * (head_dim + 1)) + 1]);
}

}  // namespace preread

PREREAD_API void* preread_make_attend_plan(const preread::AttendPlanArgs* args) {
  return new preread::AttendPlan(*args);
}
PREREAD_API void preread_free_attend_plan(void* plan) { delete static_cast<preread::AttendPlan*>(plan); }
