#pragma once

#include "trunk/kernels.h"

namespace lpips_fast::trunk {

void run(Conv& p);

// As run, but outputs of equal inputs are equal to the bit (repeats.h).
void run_with_repeats(Conv& p);

}  // namespace lpips_fast::trunk
