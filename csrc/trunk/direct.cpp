#include <algorithm>

#include "common/integers.h"
#include "trunk/convolution.h"

namespace lpips_fast::trunk {

void conv_direct(Team& team, Scratch& scratch, const Conv& p) {
  const Kernels& k = kernels();
  const int64_t pixels = p.n * p.h * p.w, depth = p.kernel * p.kernel * p.cin, panels = ceil_div(p.cout, kPanel);
  if (pixels == 0) return;
  // Blocks of pixels whose inputs stay in the second-level cache while all filters pass.
  constexpr int64_t most_floats = 96 << 10 >> 2;
  const int64_t block = std::clamp<int64_t>(round_up(most_floats / depth, k.rows), k.rows, 8 * k.rows);
  Rows rows{p.x, p.x_strides.stride_w};
  const bool dense = p.x_strides.stride_h == p.w * rows.ld && p.x_strides.stride_n == p.h * p.x_strides.stride_h;
  if (p.kernel > 1 || !(dense || pixels == 1)) {
    float* const gathered = scratch.floats(pixels * depth);
    team.for_each_range(pixels, block, [&](int64_t, int64_t begin, int64_t end) {
      k.gather(p, begin, end, gathered + begin * depth);
    });
    rows = {gathered, depth};
  }
  // If there are few blocks, several threads share one: each takes some of the panels.
  constexpr int64_t some_jobs = 8;
  const int64_t blocks = ceil_div(pixels, block);
  const int64_t parts = std::clamp<int64_t>(some_jobs * team.size() / blocks, 1, ceil_div(panels, 2));
  const int64_t some_panels = round_up(ceil_div(panels, parts), 2), groups = ceil_div(panels, some_panels);
  team.for_each_job(blocks * groups, [&](int64_t, int64_t job) {
    const int64_t begin = job % blocks * block, first = job / blocks * some_panels;
    k.direct(p, rows, begin, std::min(begin + block, pixels), first, std::min(first + some_panels, panels));
  });
}

}  // namespace lpips_fast::trunk
