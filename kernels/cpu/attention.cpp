#include "attention.h"

#include <cmath>

#include "attention_work.h"

namespace preread {
namespace {

// Put the parts of a row's heads together and, where asked for, note the log-sum-exp of each.
void merge_job(const AttendArgs& args, int64_t index) {
  const AttendPlan& plan = *args.plan;
  const AttendPlan::Job& job = plan.jobs[index];
  const AttendPlan::Part* parts = plan.parts.data() + plan.job_parts[index];
  const int64_t count = plan.job_parts[index + 1] - plan.job_parts[index], dim = plan.head_dim;
  for (int64_t i = 0; i < plan.group_size; i++) {
    const int64_t head = job.kv_head * plan.group_size + i;
    float* out = args.out + job.row * args.out_stride + head * dim;
    float highest = -INFINITY, total = 0;
    for (int64_t p = 0; p < count; p++) {
      const float lse = plan.part_lse()[parts[p].part + i];
      highest = lse > highest ? lse : highest;
    }
    const float base = highest == -INFINITY ? 0 : highest;
    for (int64_t p = 0; p < count; p++) total += std::exp2(plan.part_lse()[parts[p].part + i] - base);
    for (int64_t d = 0; d < dim; d++) out[d] = 0;
    for (int64_t p = 0; p < count; p++) {
      const float share = total == 0 ? 0 : std::exp2(plan.part_lse()[parts[p].part + i] - base) / total;
      const float* __restrict part = plan.part_out() + (parts[p].part + i) * dim;
      for (int64_t d = 0; d < dim; d++) out[d] += part[d] * share;
    }
    if (args.lse == nullptr) continue;
    for (int64_t p = 0; p < count; p++) {
      float* lse = args.lse + (job.row * args.lse_columns + parts[p].column) * plan.heads + head;
      const float one = plan.part_lse()[parts[p].part + i] / kLog2e;
      if (one == -INFINITY) continue;  // the caller has filled lse with it
      const float high = *lse > one ? *lse : one;
      *lse = high + std::log(std::exp(*lse - high) + std::exp(one - high));
    }
  }
}

}  // namespace

void attend(const AttendArgs& args, const Team& team) {
  const AttendPlan& plan = *args.plan;
  const int64_t shards = int64_t(plan.shards.size()) - 1;
  for (int64_t shard = team.rank; shard < shards; shard += team.size) {
    for (int32_t i = plan.shards[shard]; i < plan.shards[shard + 1]; i++) {
      if (plan.pieces[i].kv_head < 0)
        attend_few(args, plan.pieces[i]);
      else
        attend_panels(args, plan.pieces[i]);
    }
  }
  if (plan.jobs.empty()) return;
  team.barrier();
  int64_t first, last;
  team.share(int64_t(plan.jobs.size()), 1, &first, &last);
  for (int64_t job = first; job < last; job++) merge_job(args, job);
}

}  // namespace preread

PREREAD_API void preread_attend(const preread::AttendArgs* args) {
  preread::run_team([&](const preread::Team& team) { preread::attend(*args, team); });
}
