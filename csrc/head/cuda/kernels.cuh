// The kernels of the head's `cuda` backend. One launch covers all layers and reads f0 and f1 once. The forward writes
// nothing of their size.
//
// head/math.h has the formulas. A pixel needs three sums over its channels, one after the other: the squares of f0 and
// f1 (for r and q), then d in the forward, or P0 = sum_c w_c (a_c - b_c) a_c and P1 with b_c in the backward. With
// s = dL/dd,
//
//   dL/df0_c = r0 (u_c - a_c t0)      u_c = 2 s w_c (a_c - b_c),  t0 = 2 s P0 q0
//   dL/df1_c = r1 (b_c t1 - u_c)                                  t1 = 2 s P1 q1
//
// The products a_c and b_c are rounded before they are subtracted. In a fused multiply-add the difference of two equal
// products would be a rounding error instead of 0.
//
// Traffic. With V = N C H W the least is 2 V elements read in the forward; in the backward 2 V read, and V written for
// each gradient. To reach it, a tile (some pixels of both tensors with all their channels) stays in shared memory from
// sum to sum: 256 threads with 2 x PACKS packs of 16 bytes each, filled by asynchronous copies that take no registers.
// Each thread copies only what it uses itself, so that no barrier stands between copying and computing. planar.cuh and
// channels_last.cuh say how a block's threads are spread over pixels and channels.
//
// Block shape. Loading overlaps computing only between blocks, so at least two must fit on a multiprocessor. PACKS is
// the one parameter of the main kernels. It halves a tile where two of the large ones do not fit:
//
//   PACKS           tile     block with sums and factors   blocks on a multiprocessor
//   8 (LARGE_TILE)  64 KiB   at most 75,808 bytes          3 in 228 KiB (sm_90, 100), 2 in 164 KiB (sm_80)
//   4 (SMALL_TILE)  32 KiB   at most 43,040 bytes          2 in 100 KiB (sm_86, 89, 120)
//
// An H200's 4.8 TB/s are 36 bytes a nanosecond for each of its 132 multiprocessors. 36 KiB in flight in each of them
// cover a loaded latency of 1 us; while one of three blocks computes, the other two have 128 KiB in flight. A tile
// takes 1.8 us of bandwidth in the forward, and 2.7 us in the backward, which writes half as much as it reads for one
// image's gradient. In sm_90's code a thread executes 15 instructions an element in the forward (12 for two-byte types)
// and 25 (22) in the backward, counted by `make cost` for the planar path. A tile has 16 Ki floats or 32 Ki elements of
// two bytes: at four warp instructions a cycle and 1.98 GHz they issue in 1.0 (1.5) us and 1.6 (2.8) us. So in two-byte
// types instructions count as much as bytes. A tile of C = 512 is four packs wide, 64 bytes a row, the least that uses
// whole bursts of memory; a smaller tile would be narrower.
//
// The small tile's figures are computed; it has not run on a GPU. An RTX 3090, 4090 or 5090 has 11, 8 or 11 bytes a
// nanosecond for each of its 82, 128 or 170 multiprocessors. 11 KiB in flight cover 1 us; while one of two blocks
// computes, the other has 32 KiB in flight. A single block with the large tile would have none. A tile takes 2.9 us or
// more of bandwidth in the forward, and issues its instructions in 0.8 us (1.3 us for two-byte types) on the slowest of
// the three. A tile of C = 512 is two packs wide, 32 bytes a row, which is a whole burst of these cards' GDDR memory.
// The planar path is for up to 512 channels instead of 1024.
//
// Sums over pixels have two stages of fixed order. The first leaves one number a tile (forward) or C numbers a block
// (d_weights, with few blocks and a run of tiles for each). A second, small launch adds these up. There are no atomics,
// no host synchronisation and no memory but torch's, so the operators can be captured in a CUDA graph.
//
// The main kernels take Norm's two members as parameters of their own. nvcc makes other machine code with a Norm there.
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

// Calls `function` with a tile of the type that the layer's path needs.
template <typename T, int PACKS, typename Function>
__device__ __forceinline__ void with_tile(
    const Layer<T>& layer, int64_t tile, Shared<T, PACKS>& shared, Function function) {
  if (layer.path == Path::PLANAR) {
    function(PlanarTile<T, PACKS, false>(layer, tile, shared));
  } else if (layer.path == Path::STRIDED) {
    function(PlanarTile<T, PACKS, true>(layer, tile, shared));
  } else if (sizeof(T) == 2 || layer.path == Path::CHANNELS_LAST_2) {
    function(ChannelsLastTile<T, PACKS, 2>(layer, tile, shared));
  } else {
    function(ChannelsLastTile<T, PACKS, sizeof(T) == 2 ? 2 : 4>(layer, tile, shared));
  }
}

template <typename T, int PACKS>
__global__ void __launch_bounds__(THREADS, BLOCKS<PACKS>)
    head_fwd_kernel(const __grid_constant__ Layers<T> layers, Acc<T> eps, bool eps_inside_sqrt) {
  Shared<T, PACKS>& shared = *reinterpret_cast<Shared<T, PACKS>*>(dynamic_shared);
  const Layer<T>& layer = layer_of_block(layers);
  const int64_t tile = layer.first_tile();
  Acc<T> sum = 0;
  with_tile(layer, tile, shared, [&](const auto& part) { sum = part.forward({eps, eps_inside_sqrt}); });
  if (layer.map != nullptr) return;
  sum = block_sum(sum, shared.warp_sums);
  if (threadIdx.x == 0) layer.partials[tile] = sum;
}

template <typename T, int PACKS>
__global__ void __launch_bounds__(THREADS, BLOCKS<PACKS>)
    head_bwd_kernel(const __grid_constant__ Layers<T> layers, Acc<T> eps, bool eps_inside_sqrt) {
  Shared<T, PACKS>& shared = *reinterpret_cast<Shared<T, PACKS>*>(dynamic_shared);
  const Layer<T>& layer = layer_of_block(layers);
  for (int i = 0; i < layer.tiles(); ++i) {
    with_tile(layer, layer.first_tile() + i, shared, [&](const auto& tile) {
      tile.backward({eps, eps_inside_sqrt}, i == 0);
    });
  }
}

// Computes D(n, l) from the sums of its tiles, with a block for each n (x) and layer (y). `out` is the first layer's
// column of D.
template <typename T>
__global__ void __launch_bounds__(THREADS)
    head_mean_kernel(const __grid_constant__ Layers<T> layers, Acc<T>* out, int64_t stride_n) {
  __shared__ Acc<T> warp_sums[WARPS];
  const Layer<T>& layer = layers.layer[blockIdx.y];
  const Acc<T>* partials = layer.partials + blockIdx.x * layer.tiles_per_image;
  Acc<T> sum = 0;
  for (int64_t i = threadIdx.x; i < layer.tiles_per_image; i += THREADS) sum += partials[i];
  sum = block_sum(sum, warp_sums);
  if (threadIdx.x == 0) out[blockIdx.x * stride_n + blockIdx.y] = sum / static_cast<Acc<T>>(layer.n_pixels);
}

// Computes d_weights from the rows of the main kernel's blocks, with 32 channels a block (x) and layers in y.
template <typename T>
__global__ void __launch_bounds__(THREADS) head_d_weights_kernel(const __grid_constant__ Layers<T> layers) {
  __shared__ Acc<T> sums[WARPS][32];
  const Layer<T>& layer = layers.layer[blockIdx.y];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int c = static_cast<int>(blockIdx.x) * 32 + lane;
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
}

}  // namespace
}  // namespace lpips_fast
