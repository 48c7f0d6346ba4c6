// The instruction set whose kernels run on the CPU.
//
// Each folder's CPU kernels are compiled once for each instruction set, one .cpp file each, in a namespace of its name.
// The library takes the best set that the processor has. The environment variable LPIPS_FAST_CPU_ISA names another one,
// for tests and measurements: `portable`, `avx2` or `avx512`. It is read once in a process, when the first CPU operator
// runs. If this processor does not have the set, or no set has that name, every CPU operator raises an error.
// lpips_fast/trunk/processor.py reads the variable, too: with `portable` or `avx2` the trunk computes in float32 where
// it would in bfloat16 or float16.
#pragma once

namespace lpips_fast {

// From the least to the best: a processor that has a set has those before it, too. isa.cpp names them in this order.
enum class Isa {
  portable,  // all processors of the architecture: vectors of 16 bytes, as in SSE2 and NEON
  avx2,      // x86-64 with AVX2, FMA and F16C
  avx512,    // x86-64 that also has AVX-512F
};

Isa isa();

}  // namespace lpips_fast
