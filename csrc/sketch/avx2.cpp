// The sketches' kernels for AVX2.
#include "sketch/kernels.h"

#if defined(__x86_64__)
#include "common/avx2.inl"
#include "sketch/kernels.inl"
#include "common/end.inl"
#endif
