// Begins a file of kernels for x86-64 processors with AVX2, FMA and F16C; common/end.inl ends it. Include other headers
// before: their inline functions must not be compiled for more than every processor has, because the linker keeps one
// copy of each for the whole library.
#include <immintrin.h>

#define LPIPS_FAST_ISA avx2
#define LPIPS_FAST_VECTOR_BYTES 32

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
