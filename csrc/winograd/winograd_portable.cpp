// The kernels for any processor: vectors of four floats, which are NEON's registers on ARM and SSE2's on x86-64.
#include "winograd/winograd.h"

#if defined(__GNUC__)
#define LPIPS_FAST_ISA portable
namespace lpips_fast::winograd::portable {
constexpr const char* kName = "portable";
constexpr int kWidth = 4;
#if defined(__aarch64__)
constexpr int64_t kRows = 5;  // 20 sums and what they take in 32 registers
constexpr int kVectors = 4;
#else
constexpr int64_t kRows = 6;  // 12 in 16
constexpr int kVectors = 2;
#endif
}  // namespace lpips_fast::winograd::portable
#include "winograd/kernels.inl"

const lpips_fast::winograd::Kernels* lpips_fast::winograd::kernels_portable() { return &portable::kKernels; }
#else
const lpips_fast::winograd::Kernels* lpips_fast::winograd::kernels_portable() { return nullptr; }
#endif
