// The kernels of winograd.h for one instruction set. Included by one translation unit each, which sets LPIPS_FAST_ISA,
// kName, kWidth (floats in a vector), kRows and kVectors (of the block of sums that stays in registers).
//
// Nothing from the standard library's templates may be instantiated in here: the linker could keep the copy compiled
// for this instruction set and give it to everyone.
namespace lpips_fast::winograd::LPIPS_FAST_ISA {
namespace {

#include "vectors.inl"
#include "transforms.inl"
#include "first_conv.inl"
#include "relu_pool.inl"
#include "signs.inl"

}  // namespace

constexpr Kernels kKernels = {kName,      kRows,         transform_input, multiply,     transform_output,
                              first_conv, relu_pool_bwd, pack_signs,      mask_by_signs};

}  // namespace lpips_fast::winograd::LPIPS_FAST_ISA
