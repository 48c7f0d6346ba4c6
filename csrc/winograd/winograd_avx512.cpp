// The kernels for x86-64 with AVX-512.
#include "winograd/winograd.h"

#if defined(__GNUC__) && defined(__x86_64__)
#include <immintrin.h>

#define LPIPS_FAST_ISA avx512
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx2,fma")
#endif
namespace lpips_fast::winograd::avx512 {
constexpr const char* kName = "avx512";
constexpr int kWidth = 16;
constexpr int64_t kRows = 12;
constexpr int kVectors = 2;
}  // namespace lpips_fast::winograd::avx512
#include "winograd/kernels.inl"
#if defined(__clang__)
#pragma clang attribute pop
#endif

const lpips_fast::winograd::Kernels* lpips_fast::winograd::kernels_avx512() {
  return __builtin_cpu_supports("avx512f") ? &avx512::kKernels : nullptr;
}
#else
const lpips_fast::winograd::Kernels* lpips_fast::winograd::kernels_avx512() { return nullptr; }
#endif
