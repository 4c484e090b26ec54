// What every kernel shares: the team of threads, scratch memory, element types. Plain C ABI at the edge.
#pragma once

#include <omp.h>

#include <atomic>
#include <cstddef>
#include <cstdint>

#define PREREAD_API extern "C" __attribute__((visibility("default")))

namespace preread {

// The codes of kernels/cpu_library.py.
enum DType : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2, kInt8 = 3 };

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// Kinds of scratch memory: each operation has its own, so that one inside another does not overwrite it.
enum ScratchSlot { kScratchLinear = 0, kScratchAttention = 1, kScratchLayer = 2, kScratchOther = 3, kScratchSlots = 4 };

// Where the threads of a team wait for each other. It spins for some 60 microseconds, which is more than they
// usually come apart, and then sleeps: where another process has taken a core, a spinning thread would keep the late one off
// the other core for a whole time slice, and a sleeping one lets it in.
class Barrier {
 public:
  void wait(int size);

 private:
  void sleep(uint32_t generation);

  alignas(64) std::atomic<uint32_t> generation_{0};
  alignas(64) std::atomic<int> arrived_{0};
  std::atomic<int> sleepers_{0};
};

// What the threads of a team share.
struct TeamState {
  Barrier barrier;
  void* scratch[kScratchSlots] = {};  // how rank 0 hands out memory
};

// One thread's view of the threads that run an operation together.
struct Team {
  int rank;
  int size;
  TeamState* state;  // null where one thread is alone

  void barrier() const {
    if (size > 1) state->barrier.wait(size);
  }

  // This thread's share [first, last) of `count` items, in multiples of `grain`.
  void share(int64_t count, int64_t grain, int64_t* first, int64_t* last) const {
    const int64_t grains = (count + grain - 1) / grain;
    const int64_t low = grains * rank / size * grain, high = grains * (rank + 1) / size * grain;
    *first = low < count ? low : count;
    *last = high < count ? high : count;
  }
};

// Seconds spent inside exported functions since the library was loaded, as the calling thread saw them.
double busy_seconds();
void add_busy_seconds(double seconds);
double now();

// Run `work(team)` on every thread of one OpenMP parallel region and count its time.
template <class Work>
void run_team(Work&& work, int size = omp_get_max_threads()) {
  const double start = now();
  TeamState state;
#pragma omp parallel num_threads(size)
  {
    const Team team{omp_get_thread_num(), omp_get_num_threads(), &state};
    work(team);
  }
  add_busy_seconds(now() - start);
}

// Memory of this thread, 64-byte aligned, kept and grown from call to call. A larger request of the same slot
// invalidates the smaller one.
void* thread_scratch(ScratchSlot slot, size_t bytes);

// Memory that all threads of a team see. Every thread calls it with the same size; it ends with a barrier.
void* team_scratch(ScratchSlot slot, size_t bytes, const Team& team);

}  // namespace preread
