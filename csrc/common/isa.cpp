#include "common/isa.h"

#include <torch/headeronly/util/Exception.h>

#include <cstdlib>
#include <string>

namespace lpips_fast {
namespace {

constexpr const char* kNames[] = {"portable", "avx2", "avx512"};

Isa best() {
#if defined(__x86_64__)
  // Every processor with AVX2 has F16C, whose name some compilers do not know here.
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return __builtin_cpu_supports("avx512f") ? Isa::avx512 : Isa::avx2;
  }
#endif
  return Isa::portable;
}

Isa chosen() {
  const char* const name = std::getenv("LPIPS_FAST_CPU_ISA");
  if (!name || !*name) return best();
  std::string supported;
  for (int i = 0; i <= static_cast<int>(best()); ++i) {
    if (std::string(name) == kNames[i]) return static_cast<Isa>(i);
    supported += std::string(i ? ", " : "") + kNames[i];
  }
  STD_TORCH_CHECK(false, "lpips_fast: LPIPS_FAST_CPU_ISA must be an instruction set of this processor (", supported,
                  ") or unset, got '", name, "'");
}

}  // namespace

Isa isa() {
  static const Isa choice = chosen();
  return choice;
}

}  // namespace lpips_fast
