// The kernels for x86-64 with AVX2 and FMA.
#include "winograd/winograd.h"

#if defined(__GNUC__) && defined(__x86_64__)
#include <immintrin.h>

#define LPIPS_FAST_ISA avx2
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
namespace lpips_fast::winograd::avx2 {
constexpr const char* kName = "avx2";
constexpr int kWidth = 8;
constexpr int64_t kRows = 6;
constexpr int kVectors = 2;
}  // namespace lpips_fast::winograd::avx2
#include "winograd/kernels.inl"
#if defined(__clang__)
#pragma clang attribute pop
#endif

const lpips_fast::winograd::Kernels* lpips_fast::winograd::kernels_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &avx2::kKernels : nullptr;
}
#else
const lpips_fast::winograd::Kernels* lpips_fast::winograd::kernels_avx2() { return nullptr; }
#endif
