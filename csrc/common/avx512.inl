// As common/avx2.inl, for x86-64 processors that also have AVX-512F.
#include <immintrin.h>

#define LPIPS_FAST_ISA avx512
#define LPIPS_FAST_VECTOR_BYTES 64

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx2,fma")
#endif
