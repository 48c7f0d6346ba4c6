// The sketches' kernels for AVX-512.
#include "sketch/kernels.h"

#if defined(__x86_64__)
#include "common/avx512.inl"
#include "sketch/kernels.inl"
#include "common/end.inl"
#endif
