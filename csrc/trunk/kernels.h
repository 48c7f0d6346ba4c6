// The data of the trunk's CPU kernels. portable.cpp, avx2.cpp and avx512.cpp compile kernels.inl, each for one
// instruction set.
#pragma once

#include <cstdint>

#include "common/integers.h"
#include "common/isa.h"

namespace lpips_fast::trunk {

constexpr int64_t kTile = 4;     // outputs of a tile in each direction
constexpr int64_t kPatch = 6;    // inputs of a tile in each direction
constexpr int64_t kPoints = 36;  // products that a tile takes for each pair of channels
constexpr int64_t kPanel = 16;   // output channels of a panel of packed filters; channels in scratch are padded to it

// Activations with adjacent channels: the strides, in floats, of image, row and column.
struct Pixels {
  int64_t stride_n, stride_h, stride_w;
};

// One 3x3 convolution, stride 1, padding 1, cut into blocks of tiles.
struct Conv {
  int64_t n, h, w, cin, cout;
  int64_t tiles_h, tiles_w;
  const int64_t* chosen;     // the tiles to compute, of all n tiles_h tiles_w; null: all
  int64_t ld_v, ld_m;        // floats from tile to tile in V and M
  int64_t point_v, point_m;  // floats from point to point in V and M
  const float* x;
  Pixels x_strides;
  const float* filters;  // U, [36][cout / 16][cin][16]
  // The rest is for the output. Tensors are dense NHWC, and null where they are not needed.
  float* y;
  const float* bias;
  bool relu;
  float* pooled;              // 2x2 maxima of y
  uint8_t* signs;             // bit c % 8 of byte c / 8 of a pixel: !(y_c <= 0)
  const float* addend;        // added to y
  const float* mask;          // y becomes 0 where this is <= 0
  const uint8_t* mask_signs;  // y becomes 0 where a bit of these `signs` is 0
};

// A direct 3x3 convolution of an image with few channels. The image has any layout and is scaled while it is read.
struct FirstConv {
  int64_t n, h, w, cin, cout;
  const float* x;
  int64_t stride_n, stride_c, stride_h, stride_w;
  const float* shift;    // [cin]
  const float* scale;    // [cin]
  const float* filters;  // [cout / 16][cin][3][3][16]
  const float* bias;     // [cout / 16][16]
  float* y;
  uint8_t* signs;
};

// The gradient at the input of a tap's ReLU: the head's gradient plus the gradient through the tap's 2x2 max pool, and
// 0 where tap <= 0. Tensors are dense NHWC.
struct ReluPool {
  int64_t n, h, w, c;
  const float* tap;
  const float* d_head;
  const float* d_pooled;
  float* d_out;
};

// A ReLU's output, dense NHWC, and its signs as in Conv.
struct Signs {
  int64_t c;
  const float* y;
  uint8_t* signs;
};

// The gradient at a ReLU's input: d_y + addend, and 0 where the bit of the sign is 0. Tensors are dense NHWC.
struct SignsMask {
  int64_t c;
  const float* d_y;
  const float* addend;
  const uint8_t* signs;
  float* d_x;
};

// The kernels of one instruction set.
struct Kernels {
  int64_t rows;  // tiles in one block of the matrix product
  // Computes V of tiles [begin, end), from v on; `patch` is scratch of 36 ld_v floats.
  void (*transform_input)(const Conv&, int64_t begin, int64_t end, float* v, float* patch);
  // Computes M at one point for `tiles` tiles and the panels [begin, end).
  void (*multiply)(const Conv&, int64_t point, int64_t tiles, int64_t begin, int64_t end, const float* v, float* m);
  void (*transform_output)(const Conv&, int64_t begin, int64_t end, const float* m);
  // Computes rows [begin, end) of the n h output rows; `rows` is scratch of 3 cin (w + 2) floats.
  void (*first_conv)(const FirstConv&, int64_t begin, int64_t end, float* rows);
  // Computes pairs of rows [begin, end) of all n ceil(h / 2).
  void (*relu_pool_bwd)(const ReluPool&, int64_t begin, int64_t end);
  // Compute pixels [begin, end) of all n h w.
  void (*pack_signs)(const Signs&, int64_t begin, int64_t end);
  void (*mask_by_signs)(const SignsMask&, int64_t begin, int64_t end);
};

namespace portable {
extern const Kernels kKernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels kKernels;
}
namespace avx512 {
extern const Kernels kKernels;
}
#endif

// The kernels of the instruction set that isa() chooses.
inline const Kernels& kernels() {
  switch (isa()) {
#if defined(__x86_64__)
    case Isa::avx512:
      return avx512::kKernels;
    case Isa::avx2:
      return avx2::kKernels;
#endif
    default:
      return portable::kKernels;
  }
}

}  // namespace lpips_fast::trunk
