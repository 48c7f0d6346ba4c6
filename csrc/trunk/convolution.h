// Convolutions of stride 1, whole.
#pragma once

#include "common/memory.h"
#include "common/team.h"
#include "trunk/kernels.h"

namespace lpips_fast::trunk {

void conv_direct(Team& team, Scratch& scratch, const Conv& p);

// By Winograd's algorithm, with a kernel of 3x3 or 5x5.
void conv_winograd(Team& team, Scratch& scratch, const Conv& p);

// As conv_winograd, but outputs of equal inputs are equal to the bit (repeats.h), as conv_direct's are.
void conv_winograd_with_repeats(Team& team, Scratch& scratch, const Conv& p);

}  // namespace lpips_fast::trunk
