// The trunk's kernels for AVX-512.
#include "trunk/kernels.h"

#if defined(__x86_64__)
#include "common/avx512.inl"

namespace lpips_fast::trunk::avx512 {
constexpr int64_t kRows = 12;
constexpr int kVectors = 2;
}  // namespace lpips_fast::trunk::avx512

#include "trunk/kernels.inl"
#include "common/end.inl"
#endif
