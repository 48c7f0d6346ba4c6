// The data of the CPU head's kernels. portable.cpp and avx2.cpp compile kernels.inl, each for one instruction set, and
// operators.cpp calls the kernels that isa() chooses.
#pragma once

#include <cstdint>

#include "common/integers.h"
#include "common/storage.h"
#include "head/math.h"

namespace lpips_fast::cpu {

// [N, C, pixels] in memory; strides in elements. Pixel p lies (p / width) stride_h + (p % width) stride_w after the
// first. If an image's rows follow each other in memory, width is the number of its pixels. data is null for a gradient
// that is not needed.
template <typename S>
struct View {
  S* data = nullptr;
  int64_t stride_n = 0, stride_c = 0, stride_h = 0, stride_w = 0, width = 0;

  LPIPS_FAST_HD int64_t pixel_offset(int64_t p) const {
    return p < width ? p * stride_w : p / width * stride_h + p % width * stride_w;
  }
};

template <typename S>
struct HeadLayer {
  int64_t channels, pixels;
  View<const S> feats0, feats1;
  const Acc<S>* weights;

  // Forward: the map d, [N, pixels], or null.
  Acc<S>* map = nullptr;

  // Backward: s = grad * grad_scale.
  View<const Acc<S>> grad;
  Acc<S> grad_scale = 1;
  View<S> d_feats0, d_feats1;
  bool stream = false;  // whether d_feats are stored around the caches
};

// Pixels [first, last) of image n of a layer: one thread's work at a time.
struct HeadTask {
  int64_t layer, n, first, last;
};

// The length of a row of scratch for `count` values: whole cache lines, so that loops run in whole vectors. The values
// beyond the data are 0.
template <typename A>
LPIPS_FAST_HD int64_t padded(int64_t count) {
  return round_up(count, 64 / sizeof(A));
}

// A block of planes (C rows of pixels of both images, in the accumulation type) fits a core's second-level cache. A
// block of rows (some pixels of C channels) fits the first-level cache.
constexpr int64_t kMaxBlockPixels = 1024, kMaxBlockRows = 32;

template <typename A>
LPIPS_FAST_HD int64_t plane_block_pixels(int64_t channels) {
  constexpr int64_t kElements = 64 * 1024 / sizeof(A);
  const int64_t fitting = kElements / (channels + !channels) / 16 * 16;
  return fitting < 64 ? 64 : fitting > kMaxBlockPixels ? kMaxBlockPixels : fitting;
}

template <typename A>
LPIPS_FAST_HD int64_t row_block_pixels(int64_t channels) {
  constexpr int64_t kElements = 8 * 1024 / sizeof(A);
  const int64_t fitting = kElements / (channels + !channels);
  return fitting < 1 ? 1 : fitting > kMaxBlockRows ? kMaxBlockRows : fitting;
}

// One thread's scratch: the blocks of both images, arrays over channels, arrays over pixels. r holds the sums of
// squares first. In the backward t and q hold the factors of d_feats at the end.
template <typename A>
struct Scratch {
  A *f0, *f1, *weights, *d_weights, *r0, *q0, *r1, *q1, *t0, *t1, *s, *d;

  LPIPS_FAST_HD Scratch(A* base, int64_t channels) {
    const int64_t block = block_elements(channels), pixels = plane_block_pixels<A>(channels);
    const auto take = [&base](int64_t count) __attribute__((always_inline)) { return (base += count) - count; };
    f0 = take(block), f1 = take(block);
    weights = take(padded<A>(channels)), d_weights = take(padded<A>(channels));
    r0 = take(pixels), q0 = take(pixels), r1 = take(pixels), q1 = take(pixels);
    t0 = take(pixels), t1 = take(pixels), s = take(pixels), d = take(pixels);
  }

  LPIPS_FAST_HD static int64_t elements(int64_t channels) {
    return 2 * block_elements(channels) + 2 * padded<A>(channels) + 8 * plane_block_pixels<A>(channels);
  }

 private:
  LPIPS_FAST_HD static int64_t block_elements(int64_t channels) {
    const int64_t planes = channels * plane_block_pixels<A>(channels);
    const int64_t rows = row_block_pixels<A>(channels) * padded<A>(channels);
    return planes > rows ? planes : rows;
  }
};

#define LPIPS_FAST_DECLARE_HEAD_KERNELS(isa)                                                                    \
  namespace isa {                                                                                               \
  template <typename S>                                                                                         \
  double head_fwd_kernel(const HeadLayer<S>&, const HeadTask&, Norm<Acc<S>>, Acc<S>* scratch);                  \
  template <typename S>                                                                                         \
  void head_bwd_kernel(const HeadLayer<S>&, const HeadTask&, Norm<Acc<S>>, Acc<S>* scratch, Acc<S>* d_weights); \
  }

LPIPS_FAST_DECLARE_HEAD_KERNELS(portable)
LPIPS_FAST_DECLARE_HEAD_KERNELS(avx2)

}  // namespace lpips_fast::cpu
