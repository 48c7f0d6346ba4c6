// The data of the sketches' CPU kernels. portable.cpp, avx2.cpp and avx512.cpp compile kernels.inl, each for one
// instruction set, and operators.cpp calls the kernels that isa() chooses.
#pragma once

#include <cstdint>

#include "common/storage.h"
#include "head/math.h"

namespace lpips_fast::sketch {

// The features of all images at one tap, [N, pixels, channels], and sqrt(w_c / pixels) of each channel.
template <typename S>
struct Tap {
  int64_t channels, pixels;
  const S* features;
  const float* scales;
};

// Where coordinates go: value j of block r to bucket (j + offsets[r]) mod length, with its sign.
struct Buckets {
  int64_t length;
  const int8_t* signs;
  const int64_t* offsets;
};

template <typename S>
struct Comparison {
  int64_t n_queries, n_rows, length;
  const float* queries;  // [n_queries, length]
  const S* rows;         // [n_rows, length]
  float* distances;      // [n_queries, n_rows]
};

#define LPIPS_FAST_DECLARE_SKETCH_KERNELS(isa)                                                                  \
  namespace isa {                                                                                               \
  template <typename S>                                                                                         \
  void sketch_kernel(const Tap<S>* taps, int64_t n_taps, int64_t image, Norm<float>, const Buckets&, float* sums, \
                     float* sketch);                                                                            \
  template <typename S>                                                                                         \
  void distances_kernel(const Comparison<S>&, int64_t first, int64_t last);                                     \
  }

LPIPS_FAST_DECLARE_SKETCH_KERNELS(portable)
LPIPS_FAST_DECLARE_SKETCH_KERNELS(avx2)
LPIPS_FAST_DECLARE_SKETCH_KERNELS(avx512)

}  // namespace lpips_fast::sketch
