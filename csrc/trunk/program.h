// A trunk's convolutions as data. lpips_fast/trunk/operators.py says what the integers of a program are.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/integers.h"
#include "trunk/kernels.h"

namespace lpips_fast::trunk {

enum class Algorithm : int64_t { first, direct, winograd, phases, columns, transposed };

struct Layer {
  Algorithm algorithm, gradient;
  int64_t cin, cout, kernel, stride, padding;
  bool joined;  // with the next layer: both take one input, and their outputs are concatenated
  bool tap;
  int64_t pool_kernel, pool_stride;  // a kernel of 0: no pool
  bool pool_ceil;

  // Derived from the image's size: of the input; of the convolution's output; of the pool's output.
  int64_t in_h, in_w, h, w, pooled_h, pooled_w;
  // Of y, with the channels of both layers if they are joined, and the first of this layer.
  int64_t channels, first_channel;

  int64_t flops(int64_t n) const { return 2 * n * h * w * cin * cout * kernel * kernel; }
};

// The size of a side after windows of `kernel` pixels, by torch's rule for pools.
inline int64_t pooled_side(int64_t side, int64_t kernel, int64_t stride, bool ceil_mode) {
  const int64_t beyond = side - kernel + (ceil_mode ? stride - 1 : 0);
  if (beyond < 0) return 0;
  int64_t count = beyond / stride + 1;
  if (ceil_mode && (count - 1) * stride >= side) --count;  // the last window must begin inside
  return count;
}

inline std::vector<Layer> layers_of(const std::vector<int64_t>& program, int64_t h, int64_t w) {
  constexpr int64_t kFields = 12;
  STD_TORCH_CHECK(!program.empty() && program.size() % kFields == 0, "program must have ", kFields,
                  " integers for each convolution, got ", program.size());
  std::vector<Layer> layers(program.size() / kFields);
  int64_t channels = program[2];
  for (size_t i = 0; i < layers.size(); ++i) {
    const int64_t* const f = program.data() + i * kFields;
    Layer& l = layers[i];
    l = {static_cast<Algorithm>(f[0]), static_cast<Algorithm>(f[1]), f[2], f[3], f[4], f[5], f[6], f[7] != 0,
         f[8] != 0, f[9], f[10], f[11] != 0};
    STD_TORCH_CHECK(std::all_of(f, f + kFields, [](int64_t value) { return value >= 0 && value <= 1 << 20; }),
                    "program: convolution ", i, " has an integer that is negative or greater than 2^20");
    const bool first = l.algorithm == Algorithm::first || l.algorithm == Algorithm::phases;
    const bool to_image = l.gradient == Algorithm::phases || l.gradient == Algorithm::columns;
    STD_TORCH_CHECK(f[0] <= 3 && f[1] >= 1 && f[1] <= 5 && (i == 0 || !(first || to_image)) &&
                        (to_image || l.stride == 1),
                    "program: convolution ", i, " has an algorithm that it cannot have");
    const bool second = i > 0 && layers[i - 1].joined;
    STD_TORCH_CHECK(l.cin > 0 && l.cout > 0 && l.kernel > 0 && l.stride > 0 && l.padding < l.kernel &&
                        (first || l.stride == 1) && (l.pool_kernel == 0 || (l.pool_stride > 0 && l.tap)) &&
                        (!l.joined || (i > 0 && !second && !l.tap && i + 1 < layers.size())),
                    "program: convolution ", i, " is none that this operator has");
    STD_TORCH_CHECK(l.cin == channels, "program: convolution ", i, " must take ", channels, " channels, not ", l.cin);
    l.in_h = h, l.in_w = w;
    l.h = (h + 2 * l.padding - l.kernel) / l.stride + 1, l.w = (w + 2 * l.padding - l.kernel) / l.stride + 1;
    STD_TORCH_CHECK(h + 2 * l.padding >= l.kernel && w + 2 * l.padding >= l.kernel, "the image is too small: ",
                    "convolution ", i, " gets ", h, " x ", w, " pixels");
    l.channels = l.cout, l.first_channel = 0;
    if (second) {
      Layer& before = layers[i - 1];
      STD_TORCH_CHECK(before.cout % 8 == 0 && before.h == l.h && before.w == l.w,
                      "program: joined convolutions must have outputs of one size, the first of 8 k channels");
      l.first_channel = before.cout, l.channels += before.cout, before.channels = l.channels;
    }
    if (l.joined) continue;
    channels = l.channels, h = l.h, w = l.w;
    if (l.pool_kernel == 0) continue;
    l.pooled_h = pooled_side(h, l.pool_kernel, l.pool_stride, l.pool_ceil);
    l.pooled_w = pooled_side(w, l.pool_kernel, l.pool_stride, l.pool_ceil);
    STD_TORCH_CHECK(l.pooled_h > 0 && l.pooled_w > 0, "the image is too small: the pool after convolution ", i,
                    " gets ", h, " x ", w, " pixels");
    h = l.pooled_h, w = l.pooled_w;
  }
  STD_TORCH_CHECK(layers.back().tap, "program: the last convolution must be a tap");
  return layers;
}

// How many threads are worth their waking.
inline int64_t threads_for(const std::vector<Layer>& layers, int64_t n) {
  // For each thread: about a millisecond. If the machine is busy, it takes a few until another thread runs.
  constexpr int64_t kFlops = 128 << 20;
  int64_t flops = 0;
  for (const Layer& l : layers) flops += l.flops(n);
  return std::clamp<int64_t>(flops / kFlops, 1, torch::stable::get_num_threads());
}

}  // namespace lpips_fast::trunk
