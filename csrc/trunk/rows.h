// The kernels that compute rows of an output from a range of rows.
#pragma once

#include "common/team.h"
#include "trunk/kernels.h"
#include "trunk/workspace.h"

namespace lpips_fast::trunk {

// Computes `rows` rows, some at a time, with the scratch that the kernel needs.
template <typename Problem>
void run_rows(Team& team, Scratch& scratch, void (*kernel)(const Problem&, int64_t, int64_t, float*), const Problem& p,
              int64_t rows) {
  constexpr int64_t some_rows = 8;
  const int64_t each = round_up(scratch_floats(p), kPanel);
  float* const memory = scratch.floats(team.size() * each);
  team.for_each_range(rows, some_rows, [&](int64_t worker, int64_t begin, int64_t end) {
    kernel(p, begin, end, memory + worker * each);
  });
}

}  // namespace lpips_fast::trunk
