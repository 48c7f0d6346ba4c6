// The head's kernels for AVX2.
#include "head/cpu/kernels.h"

#if defined(__x86_64__)
#include "common/avx2.inl"
#include "head/cpu/kernels.inl"
#include "common/end.inl"
#endif
