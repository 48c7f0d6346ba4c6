// The kernels of the head's `cuda` backend: all layers in one launch, f0 and f1 read once, nothing of their size written forward.
//
// math.h has the formulas. A pixel needs three sums over its channels, each after the one before: the squares of
// f0 and f1 (to r and q), then forward d, backward P0 = sum_c w_c (a_c - b_c) a_c and P1 with b_c; with s = dL/dd
//
//   dL/df0_c = r0 (u_c - a_c t0)      u_c = 2 s w_c (a_c - b_c),  t0 = 2 s P0 q0
//   dL/df1_c = r1 (b_c t1 - u_c)                                  t1 = 2 s P1 q1
//
// The products a_c and b_c are rounded before they are subtracted: fused into a multiply-add, the difference of two
// equal ones would be a rounding error instead of 0.
//
// Traffic. With V = N C H W the floor is 2 V elements read forward, and 2 V read and V written a gradient backward. It
// is met by keeping a tile, some pixels of both tensors with all their channels, on chip between those sums, in shared
// memory: 256 threads with 2 x 8 packs of 16 bytes each, 64 KiB, filled by asynchronous copies that take no registers.
// Each thread copies what it alone uses, so that no barrier stands between copying and computing. With sums and factors
// of pixels a block has at most 75,808 bytes, and three share the 228 KiB of a multiprocessor of an A100's successors
// (two the 164 KiB of an A100), at up to 80 registers a thread.
//
// Block shape. 4.8 TB/s of an H200 are 36 bytes a nanosecond for each of its 132 multiprocessors, and 36 KiB in flight
// in each carry them through a loaded latency of 1 us; while one of three blocks computes the other two have 128 KiB in
// flight. A tile takes 1.8 us of bandwidth, so a block may spend 5.4 us on loading and computing it. Computing is about
// 6 instructions an element forward in two-byte types (5 in float) and 10 backward, 32 Ki or 16 Ki elements a tile: 0.9
// and 0.4 us forward at four warp instructions a cycle. A tile of C = 512 is four packs wide, 64 bytes a row, the least
// that uses whole bursts of memory; smaller ones would be narrower. planar.cuh and channels_last.cuh say how
// the threads of a block lie on pixels and channels.
//
// Sums over pixels are taken in two stages of fixed order: one number a tile (forward) or C numbers a block (d_weights,
// few blocks then, each with a run of tiles), then a second small launch. No atomics, no host synchronisation, and the
// only memory is torch's: the operators can be captured in a CUDA graph.
#pragma once

#include "head/cuda/channels_last.cuh"
#include "head/cuda/planar.cuh"

namespace lpips_fast {
namespace {

extern __shared__ __align__(16) unsigned char dynamic_shared[];

template <typename T>
__device__ __forceinline__ const Layer<T>& layer_of_block(const Layers<T>& layers) {
  int l = 0;
  while (l + 1 < layers.count && static_cast<int>(blockIdx.x) >= layers.layer[l + 1].first_block) ++l;
  return layers.layer[l];
}

// Calls `function` with a block's tile in the form of the layer's path.
template <typename T, typename Function>
__device__ __forceinline__ void with_tile(const Layer<T>& layer, int64_t tile, Shared<T>& shared, Function function) {
  if (layer.path == Path::PLANAR) {
    function(PlanarTile<T, false>(layer, tile, shared));
  } else if (layer.path == Path::STRIDED) {
    function(PlanarTile<T, true>(layer, tile, shared));
  } else if (sizeof(T) == 2 || layer.path == Path::CHANNELS_LAST_2) {
    function(ChannelsLastTile<T, 2>(layer, tile, shared));
  } else {
    function(ChannelsLastTile<T, sizeof(T) == 2 ? 2 : 4>(layer, tile, shared));
  }
}

template <typename T>
__global__ void __launch_bounds__(THREADS, BLOCKS)
    head_fwd_kernel(const __grid_constant__ Layers<T> layers, Norm<Acc<T>> norm) {
  Shared<T>& shared = *reinterpret_cast<Shared<T>*>(dynamic_shared);
  const Layer<T>& layer = layer_of_block(layers);
  for (int i = 0; i < layer.tiles(); ++i) {
    const int64_t tile = layer.first_tile() + i;
    Acc<T> sum = 0;
    with_tile(layer, tile, shared, [&](const auto& part) { sum = part.forward(norm); });
    if (layer.map == nullptr) {
      sum = block_sum(sum, shared.warp_sums);
      if (threadIdx.x == 0) layer.partials[tile] = sum;
    }
    __syncthreads();
  }
}

template <typename T>
__global__ void __launch_bounds__(THREADS, BLOCKS)
    head_bwd_kernel(const __grid_constant__ Layers<T> layers, Norm<Acc<T>> norm) {
  Shared<T>& shared = *reinterpret_cast<Shared<T>*>(dynamic_shared);
  const Layer<T>& layer = layer_of_block(layers);
  for (int i = 0; i < layer.tiles(); ++i) {
    with_tile(layer, layer.first_tile() + i, shared, [&](const auto& tile) {
      tile.backward(norm, i == 0);
    });
  }
}

// D(n, l) from the sums of its tiles: a block for each, layers in y. `out` is D's first of these layers' columns.
template <typename T>
__global__ void __launch_bounds__(THREADS)
    head_mean_kernel(const __grid_constant__ Layers<T> layers, Acc<T>* out, int64_t n_images, int64_t stride_n) {
  __shared__ Acc<T> warp_sums[WARPS];
  const Layer<T>& layer = layers.layer[blockIdx.y];
  for (int64_t image = blockIdx.x; image < n_images; image += gridDim.x) {
    const Acc<T>* partials = layer.partials + image * layer.tiles_per_image;
    Acc<T> sum = 0;
    for (int64_t i = threadIdx.x; i < layer.tiles_per_image; i += THREADS) sum += partials[i];
    sum = block_sum(sum, warp_sums);
    if (threadIdx.x == 0) out[image * stride_n + blockIdx.y] = sum / static_cast<Acc<T>>(layer.n_pixels);
    __syncthreads();
  }
}

// d_weights from its blocks' rows: 32 channels a block, layers in y.
template <typename T>
__global__ void __launch_bounds__(THREADS) head_d_weights_kernel(const __grid_constant__ Layers<T> layers) {
  __shared__ Acc<T> sums[WARPS][32];
  const Layer<T>& layer = layers.layer[blockIdx.y];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int first = blockIdx.x * 32; first < layer.channels; first += gridDim.x * 32) {
    const int c = first + lane;
    Acc<T> sum = 0;
    if (c < layer.channels) {
#pragma unroll 8
      for (int block = warp; block < layer.n_blocks; block += WARPS) {
        sum += layer.partials[static_cast<int64_t>(block) * layer.channels + c];
      }
    }
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && c < layer.channels) {
      sum = 0;
      for (int i = 0; i < WARPS; ++i) sum += sums[i][lane];
      layer.d_weights[c] = sum;
    }
    __syncthreads();
  }
}

}  // namespace
}  // namespace lpips_fast
