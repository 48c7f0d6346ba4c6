// The CPU head for x86-64 processors with AVX2, FMA and F16C. Other headers come before the pragma: their inline
// functions must not be compiled for more than the baseline.
#include "../head_math.h"
#include "head_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#define LPIPS_FAST_ISA avx2
#define LPIPS_FAST_F16C
#define LPIPS_FAST_STREAM

namespace lpips_fast::avx2 {
constexpr int kVectorBytes = 32;
}

#include "head_kernels.inl"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
