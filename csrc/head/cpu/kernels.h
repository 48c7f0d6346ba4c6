// What the kernels of the CPU head work on. They are compiled once for each instruction set (head_baseline.cpp,
// head_avx2.cpp, both from head_kernels.inl), and head_cpu.cpp chooses among them for the processor it runs on.
#pragma once

#include <cstdint>

#include "head/math.h"

namespace lpips_fast::cpu {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// [N, C, pixels] in memory, strides in elements: pixel p is (p / width) stride_h + (p % width) stride_w from the first.
// Where an image's rows follow on each other, width is the number of its pixels. data is null for a gradient that was
// not asked for.
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

  // Forward: where the map d goes, [N, pixels], or null.
  Acc<S>* map = nullptr;

  // Backward: s = grad * grad_scale.
  View<const Acc<S>> grad;
  Acc<S> grad_scale = 1;
  View<S> d_feats0, d_feats1;
  bool stream = false;  // whether d_feats go around the caches
};

// Pixels [first, last) of image n of a layer: what one thread does at a time.
struct HeadTask {
  int64_t layer, n, first, last;
};

// Rows of scratch are whole cache lines, so every loop over one runs in whole vectors; what is beyond the data is 0.
template <typename A>
LPIPS_FAST_HD constexpr int64_t padded(int64_t count) {
  constexpr int64_t kLine = 64 / sizeof(A);
  return (count + kLine - 1) / kLine * kLine;
}

// A block of planes, C rows of pixels of both images in the accumulation type, stays in a core's second-level cache; a
// block of pixel rows of C channels in the first-level one.
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

// One thread's scratch: the block of both images, numbers a channel, numbers a pixel. Of the last, r first holds sums
// of squares, and in the backward t and q end as the factors of d_feats.
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

#define LPIPS_FAST_DECLARE_HEAD_KERNELS(isa)                                                                \
  namespace isa {                                                                                           \
  template <typename S>                                                                                     \
  double head_fwd_kernel(const HeadLayer<S>&, const HeadTask&, Norm<Acc<S>>, Acc<S>* scratch);                    \
  template <typename S>                                                                                     \
  void head_bwd_kernel(const HeadLayer<S>&, const HeadTask&, Norm<Acc<S>>, Acc<S>* scratch, Acc<S>* d_weights);   \
  }

LPIPS_FAST_DECLARE_HEAD_KERNELS(portable)
LPIPS_FAST_DECLARE_HEAD_KERNELS(avx2)

}  // namespace lpips_fast::cpu
