#include "common.h"

#include <chrono>
#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
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

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double busy_seconds() { return total_busy; }
void add_busy_seconds(double seconds) { total_busy += seconds; }

void* thread_scratch(ScratchSlot slot, size_t bytes) { return own[slot].grow(bytes); }

void* team_scratch(ScratchSlot slot, size_t bytes, const Team& team) {
  team.barrier();  // nobody reads the previous one any more
  if (team.rank == 0) team.shared[slot] = of_team[slot].grow(bytes);
  team.barrier();
  return team.shared[slot];
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
