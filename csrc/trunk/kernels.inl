// The kernels of kernels.h for one instruction set. The .cpp file of each set includes this file after it has defined
// kRows and kVectors, the size of the block of sums that stays in registers.
//
// Instantiate no templates of the standard library here: the linker could keep the copy that is compiled for this
// instruction set and use it everywhere.
namespace lpips_fast::trunk::LPIPS_FAST_ISA {
namespace {

#include "common/vectors.inl"
#include "trunk/vectors.inl"
#include "trunk/signs.inl"
#include "trunk/winograd.inl"
#include "trunk/first_conv.inl"
#include "trunk/relu_pool.inl"

}  // namespace

extern constexpr Kernels kKernels = {kBlockTiles, transform_input, multiply,   transform_output,
                                     first_conv,  relu_pool_bwd,   pack_signs, mask_by_signs};

}  // namespace lpips_fast::trunk::LPIPS_FAST_ISA
