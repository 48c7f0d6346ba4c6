// The kernels' data: layers, and how they are cut into tiles and blocks.
#pragma once

#include "head/cuda/pack.cuh"

namespace lpips_fast {

constexpr int THREADS_LOG2 = 8;
constexpr int THREADS = 1 << THREADS_LOG2;
constexpr int WARPS = THREADS / 32;
// PACKS, a parameter of the main kernels: the packs of 16 bytes that a thread has in shared memory, of f0 and of f1
// each. kernels.cuh has the reasons for these two sizes.
constexpr int LARGE_TILE = 8;
constexpr int SMALL_TILE = 4;
// Blocks on a multiprocessor, three with the large tile and two with the small one, which have 80 and 128 registers a
// thread.
template <int PACKS>
constexpr int BLOCKS = PACKS == LARGE_TILE ? 3 : 2;
constexpr int MAX_LAYERS = 8;
// The widest pixel of the channels-last path.
constexpr int MAX_CHANNELS_LAST = 512;

// A tensor [N, C, H, W]; strides in elements. In a `linear` layer pixel p of an image lies at p * stride_w.
template <typename T>
struct View {
  T* data;
  int64_t stride_n, stride_c, stride_h, stride_w;
};

enum class Path : int { PLANAR, STRIDED, CHANNELS_LAST_2, CHANNELS_LAST_4 };

template <typename T, int PACKS>
struct Shared {
  static constexpr int SLOTS = 32 * Pack<T>::SIZE;  // the most pixels that a planar tile has
  Pack<T> tile[2][PACKS][THREADS];                  // of f0 and f1; each thread touches its own packs only
  Acc<T> r[2][SLOTS];
  union {  // slot by slot, so that a thread can turn its own sums into factors without a barrier
    Acc<T> sums[WARPS][SLOTS];
    Acc<T> factors[3][SLOTS];
  };
  Acc<T> warp_sums[WARPS];
};

template <typename T>
struct Layer {
  View<const T> f0, f1;
  View<T> d0, d1;            // backward; null if the gradient is not needed
  View<const Acc<T>> grad;   // backward; dL/dD or dL/dd
  Acc<T> grad_scale;         // dd/dD, 1 / (H W), or 1 for maps
  const Acc<T>* weights;     // [C]
  Acc<T>* map;               // forward: [N, H W], or null
  Acc<T>* partials;          // forward: [n_tiles]; backward: [n_blocks, C], or null if d_weights is not needed
  Acc<T>* d_weights;         // backward: [C]
  int64_t n_pixels;          // H W
  int64_t tiles_per_image;
  int64_t n_tiles;
  int64_t tiles_per_block;
  int n_blocks;
  int first_block;  // in the grid
  int channels;
  int width;   // W, if the layer is not linear
  // The logarithm of `lanes`, a power of two: planar: threads along a row of pixels; channels-last: threads along the
  // channels of a pixel. With it a thread divides by shifts.
  int lanes_log2;
  bool linear;
  Path path;

  // These describe the block that runs.
  __device__ __forceinline__ int64_t first_tile() const { return (blockIdx.x - first_block) * tiles_per_block; }
  __device__ __forceinline__ int tiles() const {
    return static_cast<int>(min(tiles_per_block, n_tiles - first_tile()));
  }
  __device__ __forceinline__ Acc<T>* row() const {
    return partials + static_cast<int64_t>(blockIdx.x - first_block) * channels;
  }
};

template <typename T>
struct Layers {
  Layer<T> layer[MAX_LAYERS];
  int count;
};

// Rows and columns of the pixels from `start` on. They take a 64-bit division a tile and a 32-bit division a pixel.
template <typename T>
struct Pixels {
  int64_t row, column;
  int width;
  bool linear;

  __device__ __forceinline__ Pixels(const Layer<T>& layer, int64_t start) : width(layer.width), linear(layer.linear) {
    row = linear ? 0 : start / width;
    column = linear ? start : start - row * width;
  }

  template <typename S>
  __device__ __forceinline__ int64_t offset(const View<S>& view, int pixel) const {
    if (linear) return (column + pixel) * view.stride_w;
    const uint32_t right = static_cast<uint32_t>(column) + pixel;
    const uint32_t down = right / static_cast<uint32_t>(width);
    return (row + down) * view.stride_h + static_cast<int64_t>(right - down * width) * view.stride_w;
  }
};

template <typename A>
__device__ __forceinline__ A warp_sum(A x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(~0u, x, offset);
  return x;
}

// The sum over the block's threads, in thread 0. Calls with the same `scratch` need a barrier between them.
template <typename A>
__device__ __forceinline__ A block_sum(A x, A (&scratch)[WARPS]) {
  x = warp_sum(x);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
  A sum = 0;
  if (threadIdx.x == 0) {
#pragma unroll
    for (int warp = 0; warp < WARPS; ++warp) sum += scratch[warp];
  }
  return sum;
}

}  // namespace lpips_fast
