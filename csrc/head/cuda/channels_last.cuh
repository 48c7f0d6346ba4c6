// A tile of pixels whose channels are adjacent in memory (channels-last).
//
// `lanes` threads of a warp (4 to 32) share a pixel. Thread `lane` has DEPTH packs of the pixel's channels, packs lane,
// lane + lanes, ..., for each of PIXELS = PACKS / DEPTH pixels. So sums over channels are butterflies within a warp,
// and a tile needs no barrier. In two-byte types a warp copies runs of 64 bytes for C = 64, of 128 for C = 128 and
// longer runs for more channels (twice that in float). Its next copies read the rest of these cache lines.
#pragma once

#include "head/cuda/layer.cuh"
#include "head/math.h"

namespace lpips_fast {

template <typename T, int PACKS, int DEPTH>
struct ChannelsLastTile {
  using A = Acc<T>;
  static constexpr int VEC = Pack<T>::SIZE;
  static constexpr int PIXELS = PACKS / DEPTH;

  const Layer<T>& layer;
  Shared<T, PACKS>& shared;
  const int lanes, lane, places, place;  // pixel i of this thread is start + i * places + place
  const int image;
  const int64_t start;
  const int left;  // pixels of the image from `start` on, as far as the tile goes

  __device__ __forceinline__ ChannelsLastTile(const Layer<T>& layer, int64_t tile, Shared<T, PACKS>& shared)
      : layer(layer),
        shared(shared),
        lanes(1 << layer.lanes_log2),
        lane(threadIdx.x & (lanes - 1)),
        places(THREADS >> layer.lanes_log2),
        place(threadIdx.x >> layer.lanes_log2),
        image(static_cast<int>(tile / layer.tiles_per_image)),
        start((tile - image * layer.tiles_per_image) * (PIXELS * places)),
        left(static_cast<int>(min(layer.n_pixels - start, static_cast<int64_t>(PIXELS * places)))) {}

  __device__ __forceinline__ int64_t pixel(int i) const { return start + i * places + place; }
  __device__ __forceinline__ bool inside(int i) const { return i * places + place < left; }
  __device__ __forceinline__ int channel(int k) const { return (lane + k * lanes) * VEC; }
  __device__ __forceinline__ bool has(int k) const { return channel(k) < layer.channels; }

  __device__ __forceinline__ void load_tile() const {
    load_packs(layer.f0, 0);
    load_packs(layer.f1, 1);
    wait_for_copies();
  }

  __device__ __forceinline__ void load_packs(const View<const T>& f, int tensor) const {
    const T* ptr = f.data + image * f.stride_n + pixel(0) * f.stride_w;
#pragma unroll
    for (int i = 0; i < PIXELS; ++i, ptr += places * f.stride_w) {
#pragma unroll
      for (int k = 0; k < DEPTH; ++k) {
        copy_async(pack(tensor, i, k), ptr + channel(k), inside(i) && has(k));
      }
    }
  }

  __device__ __forceinline__ void store_pack(const View<T>& d, const Pack<T>& x, int i, int k) const {
    if (inside(i) && has(k)) store(d.data + image * d.stride_n + pixel(i) * d.stride_w + channel(k), x);
  }

  __device__ __forceinline__ void load_weights(A (&w)[VEC], int k) const {
    constexpr int WIDTH = Pack<A>::SIZE;
#pragma unroll
    for (int v = 0; v < VEC; v += WIDTH) {
      const Pack<A> pack = has(k) ? load(layer.weights + channel(k) + v) : Pack<A>{};
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) w[v + i] = pack.get(i);
    }
  }

  __device__ __forceinline__ void sum_over_lanes(A& x, A& y) const {
    for (int offset = lanes / 2; offset > 0; offset /= 2) {
      x += __shfl_xor_sync(~0u, x, offset);
      y += __shfl_xor_sync(~0u, y, offset);
    }
  }

  __device__ __forceinline__ Pack<T>& pack(int tensor, int i, int k) const {
    return shared.tile[tensor][i * DEPTH + k][threadIdx.x];
  }

  // r and q of both tensors at pixel i.
  __device__ __forceinline__ void normalize(
      int i, Norm<A> norm, NormFactors<A>& factors0, NormFactors<A>& factors1) const {
    A square0 = 0, square1 = 0;
#pragma unroll 2
    for (int k = 0; k < DEPTH; ++k) {
      const Pack<T> x0 = pack(0, i, k), x1 = pack(1, i, k);
#pragma unroll
      for (int v = 0; v < VEC; ++v) {
        square0 += x0.get(v) * x0.get(v);
        square1 += x1.get(v) * x1.get(v);
      }
    }
    sum_over_lanes(square0, square1);
    factors0 = norm_factors(square0, norm);
    factors1 = norm_factors(square1, norm);
  }

  // Writes the tile's map or, if only the mean is needed, returns this thread's share of the map's sum.
  __device__ __forceinline__ A forward(Norm<A> norm) const {
    load_tile();
    A sum = 0;
#pragma unroll 2
    for (int i = 0; i < PIXELS; ++i) {
      NormFactors<A> factors0, factors1;
      normalize(i, norm, factors0, factors1);
      A d = 0;
#pragma unroll 2
      for (int k = 0; k < DEPTH; ++k) {
        const Pack<T> x0 = pack(0, i, k), x1 = pack(1, i, k);
        A w[VEC];
        load_weights(w, k);
#pragma unroll
        for (int v = 0; v < VEC; ++v) {
          const A diff = multiply(x0.get(v), factors0.r) - multiply(x1.get(v), factors1.r);
          d += w[v] * (diff * diff);
        }
      }
      if (layer.map == nullptr) {
        sum += d;
      } else {
        for (int offset = lanes / 2; offset > 0; offset /= 2) d += __shfl_xor_sync(~0u, d, offset);
        if (lane == 0 && inside(i)) layer.map[image * layer.n_pixels + pixel(i)] = d;
      }
    }
    return sum;
  }

  // Writes the tile's gradients, and adds the weights' gradients to the block's row, which the first tile starts.
  __device__ __forceinline__ void backward(Norm<A> norm, bool first) const {
    load_tile();
    const bool need0 = layer.d0.data != nullptr, need1 = layer.d1.data != nullptr;
    // One instance computes both gradients where three would spill registers, and for the small tile, whose GPUs wait
    // for memory whatever is computed.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
    constexpr bool ONE_INSTANCE = true;
#else
    constexpr bool ONE_INSTANCE = PACKS == SMALL_TILE;
#endif
    if constexpr (ONE_INSTANCE) {
      if (need0 || need1) write_gradients<true, true>(norm);
    } else {
      if (need0 && need1) write_gradients<true, true>(norm);
      if (need0 && !need1) write_gradients<true, false>(norm);
      if (!need0 && need1) write_gradients<false, true>(norm);
    }
    if (layer.partials != nullptr) add_weight_sums(norm, first);
  }

  __device__ __forceinline__ A grad(int i) const {
    if (!inside(i)) return 0;
    return layer.grad.data[image * layer.grad.stride_n + pixel(i) * layer.grad.stride_w] * layer.grad_scale;
  }

  // Computes these gradients, and writes those of them that are needed.
  template <bool NEED0, bool NEED1>
  __device__ __forceinline__ void write_gradients(Norm<A> norm) const {
#pragma unroll 1
    for (int i = 0; i < PIXELS; ++i) {
      const A s = grad(i);
      NormFactors<A> factors0, factors1;
      normalize(i, norm, factors0, factors1);
      const A r0 = factors0.r, r1 = factors1.r;
      A dot0 = 0, dot1 = 0;
#pragma unroll 2
      for (int k = 0; k < DEPTH; ++k) {
        const Pack<T> x0 = pack(0, i, k), x1 = pack(1, i, k);
        A w[VEC];
        load_weights(w, k);
#pragma unroll
        for (int v = 0; v < VEC; ++v) {
          const A a = multiply(x0.get(v), r0), b = multiply(x1.get(v), r1);
          const A u = w[v] * (a - b);
          if constexpr (NEED0) dot0 += u * a;
          if constexpr (NEED1) dot1 += u * b;
        }
      }
      sum_over_lanes(dot0, dot1);
      const A s2 = 2 * s, t0 = s2 * (dot0 * factors0.q), t1 = s2 * (dot1 * factors1.q);
#pragma unroll 2
      for (int k = 0; k < DEPTH; ++k) {
        Pack<T> x0 = pack(0, i, k), x1 = pack(1, i, k);
        A w[VEC];
        load_weights(w, k);
#pragma unroll
        for (int v = 0; v < VEC; v += 2) {  // the gradients take the features' place
          const A a[2] = {multiply(x0.get(v), r0), multiply(x0.get(v + 1), r0)};
          const A b[2] = {multiply(x1.get(v), r1), multiply(x1.get(v + 1), r1)};
          const A u[2] = {w[v] * (a[0] - b[0]) * s2, w[v + 1] * (a[1] - b[1]) * s2};
          if constexpr (NEED0) x0.set_pair(v, r0 * (u[0] - a[0] * t0), r0 * (u[1] - a[1] * t0));
          if constexpr (NEED1) x1.set_pair(v, r1 * (b[0] * t1 - u[0]), r1 * (b[1] * t1 - u[1]));
        }
        if (NEED0 && layer.d0.data != nullptr) store_pack(layer.d0, x0, i, k);
        if (NEED1 && layer.d1.data != nullptr) store_pack(layer.d1, x1, i, k);
      }
    }
  }

  // Adds the tile's share of the weights' gradients. At the end the sums of each warp take the tile's memory.
  __device__ __forceinline__ void add_weight_sums(Norm<A> norm, bool first) const {
    A sums[DEPTH][VEC] = {};
#pragma unroll 1
    for (int i = 0; i < PIXELS; ++i) {
      const A s = grad(i);
      NormFactors<A> factors0, factors1;
      normalize(i, norm, factors0, factors1);
#pragma unroll
      for (int k = 0; k < DEPTH; ++k) {
        const Pack<T> x0 = pack(0, i, k), x1 = pack(1, i, k);
#pragma unroll
        for (int v = 0; v < VEC; ++v) {
          const A diff = multiply(x0.get(v), factors0.r) - multiply(x1.get(v), factors1.r);
          sums[k][v] += s * (diff * diff);
        }
      }
    }
    static_assert(sizeof(A[WARPS][MAX_CHANNELS_LAST]) <= sizeof(shared.tile));
    A(*const warp_sums)[MAX_CHANNELS_LAST] = reinterpret_cast<A(*)[MAX_CHANNELS_LAST]>(&shared.tile);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < DEPTH; ++k) {
#pragma unroll
      for (int v = 0; v < VEC; ++v) {
        for (int offset = lanes; offset < 32; offset *= 2) {
          sums[k][v] += __shfl_xor_sync(~0u, sums[k][v], offset);
        }
        if (static_cast<int>(threadIdx.x % 32) < lanes && has(k)) {
          warp_sums[threadIdx.x / 32][channel(k) + v] = sums[k][v];
        }
      }
    }
    __syncthreads();
    A* const row = layer.row();
    for (int c = threadIdx.x; c < layer.channels; c += THREADS) {
      A sum = 0;
#pragma unroll
      for (int warp = 0; warp < WARPS; ++warp) sum += warp_sums[warp][c];
      row[c] = first ? sum : row[c] + sum;
    }
    __syncthreads();
  }
};

}  // namespace lpips_fast
