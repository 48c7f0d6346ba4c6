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
#include "trunk/output.inl"
#include "trunk/product.inl"
#include "trunk/winograd.inl"
#include "trunk/direct.inl"
#include "trunk/phases.inl"
#include "trunk/first_conv.inl"
#include "trunk/pool.inl"
#include "trunk/image_gradient.inl"

}  // namespace

extern constexpr Kernels kKernels = {
    kBlockTiles,
    kRows,
    {6, transform_input<6>, transform_output<6>},
    {8, transform_input<8>, transform_output<8>},
    multiply,
    gather,
    direct,
    first_conv,
    max_pool,
    tap_backward,
    image_gradient,
    phases,
    phases_gradient,
};

}  // namespace lpips_fast::trunk::LPIPS_FAST_ISA
