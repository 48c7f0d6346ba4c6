// The trunk's kernels for any processor. Their vectors of four floats are NEON's registers on ARM and SSE2's on x86-64.
#include "trunk/kernels.h"

#include "common/portable.inl"

namespace lpips_fast::trunk::portable {
#if defined(__aarch64__)
constexpr int64_t kRows = 6;  // 24 sums with their operands fit 32 registers
constexpr int kVectors = 4;
#else
constexpr int64_t kRows = 6;  // 12 sums with their operands fit 16
constexpr int kVectors = 2;
#endif
}  // namespace lpips_fast::trunk::portable

#include "trunk/kernels.inl"
