// The data of the trunk's CPU kernels. portable.cpp, avx2.cpp and avx512.cpp compile kernels.inl, each for one
// instruction set. Activations are float32 with adjacent channels: the tensors here are dense NHWC unless they have
// strides.
#pragma once

#include <cstdint>

#include "common/integers.h"
#include "common/isa.h"

namespace lpips_fast::trunk {

constexpr int64_t kTile = 4;     // outputs of a tile of Winograd's algorithm in each direction
constexpr int64_t kPanel = 16;   // output channels of a panel of packed filters; channels in scratch are padded to it

// The strides, in floats, of image, row and column.
struct Pixels {
  int64_t stride_n, stride_h, stride_w;
};

// One convolution of stride 1: of its input x, or of its output's gradient.
struct Conv {
  int64_t n, in_h, in_w, cin;
  int64_t h, w, cout;  // of the output
  int64_t kernel, padding;
  // If x is an image cut into phases (struct Phases): their stride, and how many of the phases of the kernel's last row
  // and column have weights of 0, because the kernel ends before.
  int64_t phases, unused_phases;
  const float* x;
  Pixels x_strides;
  const float* filters;  // direct: [cout / 16][kernel][kernel][cin][16]; Winograd: U, [points][cout / 16][cin][16]
  bool transposed;       // filters are U of the convolution that this is the gradient of, [points][cin / 16][cout][16]
  // The rest is for the output y. What is null is not needed.
  float* y;
  int64_t ld_y;       // floats from pixel to pixel of y, addend and mask
  const float* bias;          // [cout / 16][16], and a ReLU after it
  float* pooled;              // 2x2 maxima of y, dense
  uint8_t* signs;             // bit c % 8 of byte c / 8 of a pixel: !(y_c <= 0)
  int64_t ld_signs;           // bytes from pixel to pixel of both signs
  const float* addend;        // added to y
  const float* mask;          // y becomes 0 where this is <= 0
  const uint8_t* mask_signs;  // y becomes 0 where a bit of these `signs` is 0
};

// The tiles of a convolution by Winograd's algorithm, and how V and M lie in scratch.
struct Tiles {
  int64_t tiles_h, tiles_w;
  const int64_t* chosen;     // the tiles to compute, of all n tiles_h tiles_w; null: all
  int64_t ld_v, ld_m;        // floats from tile to tile in V and M
  int64_t point_v, point_m;  // floats from point to point in V and M
};

// The product of a direct convolution: each row of `a` has what one output pixel reads.
struct Rows {
  const float* a;
  int64_t ld;  // floats from row to row
};

// A direct convolution of an image with few channels, with bias and ReLU. The image has any layout and is scaled while
// it is read, to (x - shift) / scale.
struct FirstConv {
  int64_t n, h, w, cin, cout;
  int64_t kernel, stride, padding, out_h, out_w;
  const float* x;
  int64_t stride_n, stride_c, stride_h, stride_w;
  const float* shift;    // [cin]
  const float* scale;    // [cin]
  const float* filters;  // [cout / 16][cin][kernel][kernel][16]
  const float* bias;     // [cout / 16][16]
  float* y;
  uint8_t* signs;
};

// A max pool. The last windows may overrun x; each has a pixel of x. A NaN is the maximum. Tensors are dense NHWC.
struct MaxPool {
  int64_t n, h, w, c;
  int64_t kernel, stride, out_h, out_w;
  const float* x;
  float* y;
};

// The gradient at the input of a tap's ReLU: 0 where tap <= 0, else the sum of d_pooled of the windows that took their
// maximum from here, in row-major order, plus d_tap. A window takes its first maximum in row-major order, or its last
// NaN. Tensors are dense NHWC.
struct TapGradient {
  int64_t n, h, w, c;
  int64_t kernel, stride, out_h, out_w;  // of the pool, as in MaxPool
  const float* tap;
  const float* d_tap;
  const float* d_pooled;  // null: no pool
  float* d_out;
};

// The gradient of a convolution with few input channels to its image x, where the convolution takes x / scale.
struct ImageGradient {
  int64_t n, h, w, cin, cout;
  int64_t kernel, stride, padding, out_h, out_w;
  const float* d_y;      // dense NHWC
  const float* filters;  // [columns / 16][cout][16], column (c * kernel + dy) * kernel + dx
  const float* scale;    // [cin]
  float* d_x;            // contiguous NCHW
};
constexpr int64_t kGradientPixels = 96;  // pixels of d_y whose products are computed and then transposed

// A kernel of at most 3 strides reaches 3 pixels of the phases.
constexpr int64_t kPhasesReach = 3;

// An image cut into stride x stride phases, so that a convolution with this stride becomes one with stride 1:
// y[(c stride + i) stride + j] of row r and column q is the scaled image's channel c at row r stride + i - padding and
// column q stride + j - padding, and 0 outside of the image.
struct Phases {
  int64_t n, h, w, cin;  // of the image
  int64_t out_h, out_w;
  int64_t stride, padding;
  const float* x;
  int64_t stride_n, stride_c, stride_h, stride_w;
  const float* shift;  // [cin]
  const float* scale;  // [cin]
  float* y;            // [n][out_h][out_w][cin stride stride]
};

// The gradient to the image of `Phases`, divided by the scale, [n][cin][h][w]. With a stride of 1 and no padding there
// is one phase: then NHWC becomes NCHW.
struct PhasesGradient {
  int64_t n, h, w, cin;
  int64_t out_h, out_w;
  int64_t stride, padding;
  const float* d_y;
  const float* scale;  // [cin]
  float* d_x;
};

// The floats of scratch that these kernels need for each worker.
inline int64_t scratch_floats(const MaxPool&) { return 0; }
inline int64_t scratch_floats(const Phases& p) { return p.out_w * p.stride; }
inline int64_t scratch_floats(const PhasesGradient&) { return 0; }
inline int64_t scratch_floats(const FirstConv& p) {
  return p.kernel * p.cin * (round_up(p.w + 2 * p.padding, p.stride) + p.kernel);
}
inline int64_t scratch_floats(const TapGradient& p) {
  return p.d_pooled ? ceil_div(p.kernel, p.stride) * p.out_w * round_up(p.c, kPanel) : 0;
}
inline int64_t scratch_floats(const ImageGradient& p) {
  const int64_t columns = round_up(p.cin * p.kernel * p.kernel, kPanel);
  return columns * (ceil_div(p.kernel, p.stride) * round_up(p.out_w, kPanel) + kGradientPixels) +
         round_up(p.w + 2 * p.padding, p.stride);
}

// Winograd's algorithm for one size of kernel.
struct Winograd {
  int64_t patch;  // inputs of a tile in each direction; a tile has patch^2 points
  // Computes V of tiles [begin, end), from v on; `scratch` has patch^2 ld_v floats.
  void (*transform_input)(const Conv&, const Tiles&, int64_t begin, int64_t end, float* v, float* scratch);
  void (*transform_output)(const Conv&, const Tiles&, int64_t begin, int64_t end, const float* m);
};

// The kernels of one instruction set.
struct Kernels {
  int64_t tile_rows;  // tiles in one block of the matrix product of Winograd's algorithm
  int64_t rows;       // rows in one block of the direct convolution's
  Winograd winograd3, winograd5;
  // Computes M at one point for `tiles` tiles and the panels [begin, end).
  void (*multiply)(const Conv&, const Tiles&, int64_t point, int64_t tiles, int64_t begin, int64_t end, const float* v,
                   float* m);
  // Copies what the pixels [begin, end) of all n h w read.
  void (*gather)(const Conv&, int64_t begin, int64_t end, float* rows);
  // Computes the pixels [begin, end) and the panels [first, last).
  void (*direct)(const Conv&, const Rows&, int64_t begin, int64_t end, int64_t first, int64_t last);
  // The rest computes rows [begin, end) of all images' rows of the output. Results do not depend on the ranges.
  void (*first_conv)(const FirstConv&, int64_t begin, int64_t end, float* scratch);
  void (*max_pool)(const MaxPool&, int64_t begin, int64_t end, float* scratch);
  void (*tap_backward)(const TapGradient&, int64_t begin, int64_t end, float* scratch);
  void (*image_gradient)(const ImageGradient&, int64_t begin, int64_t end, float* scratch);
  void (*phases)(const Phases&, int64_t begin, int64_t end, float* scratch);
  void (*phases_gradient)(const PhasesGradient&, int64_t begin, int64_t end, float* scratch);
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
