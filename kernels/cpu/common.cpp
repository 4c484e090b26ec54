#include "common.h"

#include <chrono>
#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#include <thread>
#endif

namespace preread {
namespace {

double total_busy = 0;  // written by the one thread that owns the engine

struct Scratch {
  void* data = nullptr;
  size_t bytes = 0;

  ~Scratch() { std::free(data); }

  void* grow(size_t wanted) {
    if (wanted > bytes) {
      std::free(data);
      bytes = (wanted + wanted / 4 + 4095) / 4096 * 4096;
      data = std::aligned_alloc(64, bytes);
      if (data == nullptr) std::abort();  // no caller could go on, and no exception may cross the C boundary
    }
    return data;
  }
};

#if defined(__x86_64__)
// __builtin_cpu_supports of older compilers does not know its name: leaf 7, EDX bit 23. The operating system's part
// is that of AVX-512.
bool has_avx512fp16() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (edx >> 23 & 1);
}
#endif

thread_local Scratch own[kScratchSlots];
thread_local Scratch of_team[kScratchSlots];

}  // namespace

void Barrier::wait(int size) {
  const uint32_t generation = generation_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 < size) {
    sleep(generation);
    return;
  }
  arrived_.store(0, std::memory_order_relaxed);
  generation_.store(generation + 1);  // before sleepers_ is read: a thread that is about to sleep sees one of the two
#if defined(__linux__)
  if (sleepers_.load() > 0) syscall(SYS_futex, &generation_, FUTEX_WAKE_PRIVATE, size, nullptr, nullptr, 0);
#endif
}

void Barrier::sleep(uint32_t generation) {
#if defined(__x86_64__)
  constexpr uint64_t kSpinCycles = 150000;  // some 60 microseconds
  for (const uint64_t start = __rdtsc(); __rdtsc() - start < kSpinCycles; _mm_pause())
    if (generation_.load(std::memory_order_acquire) != generation) return;
#else
  for (int spins = 0; spins < 20000; spins++)
    if (generation_.load(std::memory_order_acquire) != generation) return;
#endif
  sleepers_.fetch_add(1);
  while (generation_.load() == generation) {
#if defined(__linux__)
    syscall(SYS_futex, &generation_, FUTEX_WAIT_PRIVATE, generation, nullptr, nullptr, 0);
#else
    std::this_thread::yield();
#endif
  }
  sleepers_.fetch_sub(1);
}

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double busy_seconds() { return total_busy; }
void add_busy_seconds(double seconds) { total_busy += seconds; }

void* thread_scratch(ScratchSlot slot, size_t bytes) { return own[slot].grow(bytes); }

void* team_scratch(ScratchSlot slot, size_t bytes, const Team& team) {
  team.barrier();  // nobody reads the previous one any more
  if (team.rank == 0) team.state->scratch[slot] = of_team[slot].grow(bytes);
  team.barrier();
  return team.state->scratch[slot];
}

}  // namespace preread

PREREAD_API double preread_busy_seconds() { return preread::busy_seconds(); }

PREREAD_API int32_t preread_num_threads() {
  int32_t threads = 1;
#pragma omp parallel
  {
#pragma omp single
    threads = omp_get_num_threads();
  }
  return threads;
}

// Whether this processor (and its operating system) runs the variant of this name. Ask the portable library.
PREREAD_API int32_t preread_supports(const char* variant) {
  const auto is = [variant](const char* name) { return std::strcmp(variant, name) == 0; };
  if (is("portable")) return 1;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool bf16 = avx512 && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
  if (is("avx2")) return avx2;
  if (is("avx512")) return avx512;
  if (is("avx512bf16")) return bf16;
  if (is("avx512fp16")) return bf16 && preread::has_avx512fp16();
#endif
  return 0;
}
