// Begins a file of kernels for x86-64 processors with AVX2, FMA and F16C; common/end.inl ends it. Include all other
// headers before this file: their inline functions must run on every processor, because the linker keeps one copy of
// each for the whole library.
#include <immintrin.h>

#define LPIPS_FAST_ISA avx2
#define LPIPS_FAST_VECTOR_BYTES 32

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
