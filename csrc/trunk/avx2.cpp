// The trunk's kernels for AVX2.
#include "trunk/kernels.h"

#if defined(__x86_64__)
#include "common/avx2.inl"

namespace lpips_fast::trunk::avx2 {
constexpr int64_t kRows = 6;
constexpr int kVectors = 2;
}  // namespace lpips_fast::trunk::avx2

#include "trunk/kernels.inl"
#include "common/end.inl"
#endif
