// The CPU head for any processor of the architecture compiled for.
#include "../head_math.h"
#include "head_kernels.h"

#define LPIPS_FAST_ISA baseline

namespace lpips_fast::baseline {
constexpr int kVectorBytes = 16;
}

#include "head_kernels.inl"
