// A tile of pixels whose channels lie in planes (NCHW), or of any other strides.
//
// A block's 256 threads are `lanes` along a row of pixels times `groups` = 256 / lanes along the channels. A thread has
// one pack, VEC = 16 / sizeof(T) pixels, of each of the channels group, group + groups, ..., at most PACKS channels of
// each tensor. So a tile is lanes * VEC pixels of PACKS * groups channels, and its rows are 16 * lanes adjacent bytes:
// in the large tile 512 bytes for C <= 64, and 256, 128 and 64 for C = 128, 256 and 512; in the small tile half as
// many, but 512 for C <= 32. lanes <= 32, so that each warp has all the tile's pixels.
//
// If strides or alignment rule out accesses of 16 bytes (STRIDED), threads access single elements. The pixels of a pack
// are then `lanes` apart instead of adjacent, so that the accesses of a warp still fall on adjacent pixels. Everything
// else is the same, except that channels for which a tile has no room are processed in chunks, which each pass reads
// again.
#pragma once

#include "head/cuda/layer.cuh"
#include "head/math.h"

namespace lpips_fast {

template <typename T, int PACKS, bool STRIDED>
struct PlanarTile {
  using A = Acc<T>;
  static constexpr int VEC = Pack<T>::SIZE;
  // Loops over packs unroll less where the strided path's addresses or the backward's two sums a pixel need registers.
  static constexpr int UNROLL = STRIDED ? 1 : 2;
  static constexpr int UNROLL_BWD = STRIDED || VEC > 4 ? 1 : 2;
  // The pixels of a pack that are in registers at a time, where each pixel needs many registers.
  static constexpr int PART = VEC > 4 ? 4 : VEC;
  static constexpr int PART_WORDS = PART * sizeof(T) / 4;

  const Layer<T>& layer;
  Shared<T, PACKS>& shared;
  const int lanes, lane, groups_log2, groups, group, chunks;
  const int image;
  const int64_t start;
  const int left;  // pixels of the image from `start` on, as far as the tile goes

  __device__ __forceinline__ PlanarTile(const Layer<T>& layer, int64_t tile, Shared<T, PACKS>& shared)
      : layer(layer),
        shared(shared),
        lanes(1 << layer.lanes_log2),
        lane(threadIdx.x & (lanes - 1)),
        groups_log2(THREADS_LOG2 - layer.lanes_log2),
        groups(1 << groups_log2),
        group(threadIdx.x >> layer.lanes_log2),
        chunks(STRIDED ? max(1, (layer.channels + PACKS * groups - 1) / (PACKS * groups)) : 1),
        image(static_cast<int>(tile / layer.tiles_per_image)),
        start((tile - image * layer.tiles_per_image) * (lanes * VEC)),
        left(static_cast<int>(min(layer.n_pixels - start, static_cast<int64_t>(lanes * VEC)))) {}

  // Pixel v of this thread's packs, counted from `start`.
  __device__ __forceinline__ int pixel(int v) const { return STRIDED ? v * lanes + lane : lane * VEC + v; }

  // The slot of pixel v in shared memory. Adjacent threads use adjacent banks, and distances from one base address are
  // constant. If there is a slot threadIdx.x, it is the thread's own, for sums over groups and what follows from them.
  __device__ __forceinline__ int slot(int v) const { return v * 32 + lane; }
  __device__ __forceinline__ bool owns_slot() const {
    return threadIdx.x < 32 * VEC && static_cast<int>(threadIdx.x % 32) < lanes;
  }
  __device__ __forceinline__ int own_pixel() const {
    const int v = threadIdx.x / 32, first = threadIdx.x % 32;
    return STRIDED ? v * lanes + first : first * VEC + v;
  }
  __device__ __forceinline__ bool inside(int pixel) const { return pixel < left; }
  __device__ __forceinline__ int channel(int chunk, int k) const { return (chunk * PACKS + k) * groups + group; }
  __device__ __forceinline__ Pack<T>& pack(int tensor, int k) const { return shared.tile[tensor][k][threadIdx.x]; }

  // A pack whose first PART pixels are the pixels from `part` on of another pack.
  __device__ __forceinline__ Pack<T> get_part(int tensor, int k, int part) const {
    if constexpr (PART == VEC) {
      return pack(tensor, k);
    } else {
      Pack<T> x;
#pragma unroll
      for (int i = 0; i < PART_WORDS; ++i) x.words[i] = pack(tensor, k).words[part / PART * PART_WORDS + i];
      return x;
    }
  }
  __device__ __forceinline__ void set_part(int tensor, int k, int part, const Pack<T>& x) const {
#pragma unroll
    for (int i = 0; i < PART_WORDS; ++i) pack(tensor, k).words[part / PART * PART_WORDS + i] = x.words[i];
  }

  // The number of this thread's packs in a chunk. It is the same for all threads of a group.
  __device__ __forceinline__ int packs(int chunk) const {
    return min(PACKS, (layer.channels - channel(chunk, 0) + groups - 1) >> groups_log2);
  }

  // Without asynchronous copies, the loads of LOADS packs are in flight at a time. LOADS is 1 for chunks that are read
  // again, because sums take registers meanwhile.
  template <int LOADS = 4>
  __device__ __forceinline__ void load_chunk(int chunk) const {
    load_packs<LOADS>(layer.f0, 0, chunk);
    load_packs<LOADS>(layer.f1, 1, chunk);
    if constexpr (!STRIDED) wait_for_copies();
  }

  template <int LOADS>
  __device__ __forceinline__ void load_packs(const View<const T>& f, int tensor, int chunk) const {
    const T* ptr = f.data + image * f.stride_n + channel(chunk, 0) * f.stride_c;
    const int64_t step = groups * f.stride_c;
    if constexpr (STRIDED) {
#pragma unroll 1
      for (int part = 0; part < VEC; part += PART) load_part<LOADS>(ptr, step, f, tensor, part, chunk);
    } else {
      const bool valid = inside(lane * VEC);
      const int n = packs(chunk);
      ptr += start + lane * VEC;
#pragma unroll 4
      for (int k = 0; k < n; ++k, ptr += step) copy_async(pack(tensor, k), ptr, valid);
    }
  }

  template <int LOADS>
  __device__ __forceinline__ void load_part(
      const T* ptr, int64_t step, const View<const T>& f, int tensor, int part, int chunk) const {
    int64_t offsets[PART];
    part_offsets(f, part, offsets);
    const int n = packs(chunk);
#pragma unroll LOADS
    for (int k = 0; k < n; ++k, ptr += step) {
      Pack<T> x;
#pragma unroll
      for (int v = 0; v < PART; ++v) x.set_element(v, ptr[offsets[v]]);
      set_part(tensor, k, part, x);
    }
  }

  __device__ __forceinline__ void store_part(const View<T>& d, int tensor, int part, int chunk) const {
    int64_t offsets[PART];
    part_offsets(d, part, offsets);
    const int n = packs(chunk);
    T* ptr = d.data + image * d.stride_n + channel(chunk, 0) * d.stride_c;
#pragma unroll 1
    for (int k = 0; k < n; ++k, ptr += groups * d.stride_c) {
      const Pack<T> x = get_part(tensor, k, part);
#pragma unroll
      for (int v = 0; v < PART; ++v) {
        if (inside(pixel(part + v))) ptr[offsets[v]] = x.element(v);
      }
    }
  }

  // Offsets of a part's pixels. Pixels beyond the image's last one get its offset, and their values are not used.
  template <typename S>
  __device__ __forceinline__ void part_offsets(const View<S>& view, int part, int64_t (&offsets)[PART]) const {
    const Pixels<T> pixels(layer, start);
#pragma unroll
    for (int v = 0; v < PART; ++v) offsets[v] = pixels.offset(view, min(pixel(part + v), left - 1));
  }

  __device__ __forceinline__ void store_packs(const View<T>& d, int tensor) const {
    if (!inside(lane * VEC)) return;
    const int n = packs(0);
    T* ptr = d.data + image * d.stride_n + group * d.stride_c + start + lane * VEC;
#pragma unroll 2
    for (int k = 0; k < n; ++k, ptr += groups * d.stride_c) store(ptr, pack(tensor, k));
  }

  // Passes over the chunks. Each pass starts with the chunk that the previous one left in the tile.
  template <typename Body>
  __device__ __forceinline__ void chunks_down(Body body) const {
    for (int chunk = chunks - 1;; --chunk) {
      body(chunk);
      if (chunk == 0) break;
      load_chunk<1>(chunk - 1);
    }
  }
  template <typename Body>
  __device__ __forceinline__ void chunks_up(Body body) const {
    for (int chunk = 0;;) {
      body(chunk);
      if (++chunk == chunks) break;
      load_chunk<1>(chunk);
    }
  }

  // The sum over the groups at slot threadIdx.x, in the thread that owns it.
  __device__ __forceinline__ A sum_over_groups(A (&x)[VEC]) const {
    for (int offset = 16; offset >= lanes; offset /= 2) {
#pragma unroll
      for (int v = 0; v < VEC; ++v) x[v] += __shfl_xor_sync(~0u, x[v], offset);
    }
    __syncthreads();
    if (static_cast<int>(threadIdx.x % 32) < lanes) {
#pragma unroll
      for (int v = 0; v < VEC; ++v) shared.sums[threadIdx.x / 32][slot(v)] = x[v];
    }
    __syncthreads();
    A sum = 0;
    if (owns_slot()) {
#pragma unroll
      for (int warp = 0; warp < WARPS; ++warp) sum += shared.sums[warp][threadIdx.x];
    }
    return sum;
  }

  template <int N>
  __device__ __forceinline__ void load_slots(const A* slots, A (&x)[N], int first = 0) const {
#pragma unroll
    for (int v = 0; v < N; ++v) x[v] = slots[slot(first + v)];
  }

  // Reads the tile, whose last chunk stays there, and puts r of its pixels into shared memory. q0 and q1 are for the
  // pixel of slot threadIdx.x.
  __device__ __forceinline__ void normalize(Norm<A> norm, A& q0, A& q1) const {
    A squares0[VEC] = {}, squares1[VEC] = {};
    load_chunk(0);
    chunks_up([&](int chunk) {
      const int n = packs(chunk);
#pragma unroll UNROLL
      for (int k = 0; k < n; ++k) {
        const Pack<T> x0 = pack(0, k), x1 = pack(1, k);
#pragma unroll
        for (int v = 0; v < VEC; ++v) {
          squares0[v] += x0.get(v) * x0.get(v);
          squares1[v] += x1.get(v) * x1.get(v);
        }
      }
    });
    const NormFactors<A> factors0 = norm_factors(sum_over_groups(squares0), norm);
    const NormFactors<A> factors1 = norm_factors(sum_over_groups(squares1), norm);
    if (owns_slot()) {
      shared.r[0][threadIdx.x] = factors0.r;
      shared.r[1][threadIdx.x] = factors1.r;
    }
    q0 = factors0.q;
    q1 = factors1.q;
    __syncthreads();
  }

  // Writes the tile's map or, if only the mean is needed, returns this thread's share of the map's sum.
  __device__ __forceinline__ A forward(Norm<A> norm) const {
    A q0, q1;
    normalize(norm, q0, q1);
    A d[VEC] = {};
    chunks_down([&](int chunk) {
      A r0[VEC], r1[VEC];
      load_slots(shared.r[0], r0);
      load_slots(shared.r[1], r1);
      const int n = packs(chunk);
#pragma unroll UNROLL
      for (int k = 0; k < n; ++k) {
        const Pack<T> x0 = pack(0, k), x1 = pack(1, k);
        const A w = __ldg(layer.weights + channel(chunk, k));
#pragma unroll
        for (int v = 0; v < VEC; ++v) {
          const A diff = multiply(x0.get(v), r0[v]) - multiply(x1.get(v), r1[v]);
          d[v] += w * (diff * diff);
        }
      }
    });
    if (layer.map == nullptr) {
      A sum = 0;
#pragma unroll
      for (int v = 0; v < VEC; ++v) sum += !STRIDED || inside(pixel(v)) ? d[v] : A(0);
      return sum;
    }
    const A sum = sum_over_groups(d);
    const int pixel = own_pixel();
    if (owns_slot() && inside(pixel)) layer.map[image * layer.n_pixels + start + pixel] = sum;
    return 0;
  }

  // Writes the tile's gradients, and adds the weights' gradients to the block's row, which the first tile starts.
  __device__ __forceinline__ void backward(Norm<A> norm, bool first) const {
    A q0, q1;
    normalize(norm, q0, q1);
    A s = 0;  // for the pixel of slot threadIdx.x, as q0 and q1
    const int pixel = own_pixel();
    if (owns_slot() && inside(pixel)) {
      const Pixels<T> pixels(layer, start);
      s = layer.grad.data[image * layer.grad.stride_n + pixels.offset(layer.grad, pixel)] * layer.grad_scale;
    }
    if (layer.partials != nullptr) add_weight_sums(s, first);
    if (layer.d0.data == nullptr && layer.d1.data == nullptr) return;

    A dots0[VEC] = {}, dots1[VEC] = {};
    sum_dots(dots0, dots1);
    const A p0 = sum_over_groups(dots0), p1 = sum_over_groups(dots1);
    if (owns_slot()) {
      shared.factors[0][threadIdx.x] = 2 * s;
      shared.factors[1][threadIdx.x] = 2 * s * (p0 * q0);
      shared.factors[2][threadIdx.x] = 2 * s * (p1 * q1);
    }
    __syncthreads();

    chunks_up([&](int chunk) {
#pragma unroll 1
      for (int part = 0; part < VEC; part += PART) {
        write_part(chunk, part);
        if constexpr (STRIDED) {
          if (layer.d0.data != nullptr) store_part(layer.d0, 0, part, chunk);
          if (layer.d1.data != nullptr) store_part(layer.d1, 1, part, chunk);
        }
      }
      if constexpr (!STRIDED) {
        if (layer.d0.data != nullptr) store_packs(layer.d0, 0);
        if (layer.d1.data != nullptr) store_packs(layer.d1, 1);
      }
    });
  }

  // Replaces the features in the tile by the gradients.
  __device__ __forceinline__ void write_part(int chunk, int part) const {
    A r0[PART], r1[PART], s2[PART], t0[PART], t1[PART];
    load_slots(shared.r[0], r0, part);
    load_slots(shared.r[1], r1, part);
    load_slots(shared.factors[0], s2, part);
    load_slots(shared.factors[1], t0, part);
    load_slots(shared.factors[2], t1, part);
    const int n = packs(chunk);
#pragma unroll 1
    for (int k = 0; k < n; ++k) {
      Pack<T> x0 = get_part(0, k, part), x1 = get_part(1, k, part);
      const A w = __ldg(layer.weights + channel(chunk, k));
      A u[PART];
#pragma unroll
      for (int v = 0; v < PART; ++v) u[v] = w * (multiply(x0.get(v), r0[v]) - multiply(x1.get(v), r1[v])) * s2[v];
      if (layer.d0.data != nullptr) {
#pragma unroll
        for (int v = 0; v < PART; v += 2) {
          const A a[2] = {multiply(x0.get(v), r0[v]), multiply(x0.get(v + 1), r0[v + 1])};
          x0.set_pair(v, r0[v] * (u[v] - a[0] * t0[v]), r0[v + 1] * (u[v + 1] - a[1] * t0[v + 1]));
        }
        set_part(0, k, part, x0);
      }
      if (layer.d1.data != nullptr) {
#pragma unroll
        for (int v = 0; v < PART; v += 2) {
          const A b[2] = {multiply(x1.get(v), r1[v]), multiply(x1.get(v + 1), r1[v + 1])};
          x1.set_pair(v, r1[v] * (b[0] * t1[v] - u[v]), r1[v + 1] * (b[1] * t1[v + 1] - u[v + 1]));
        }
        set_part(1, k, part, x1);
      }
    }
  }

  // P0 and P1 over this thread's channels.
  __device__ __forceinline__ void sum_dots(A (&dots0)[VEC], A (&dots1)[VEC]) const {
    chunks_down([&](int chunk) {
      A r0[VEC], r1[VEC];
      load_slots(shared.r[0], r0);
      load_slots(shared.r[1], r1);
      const int n = packs(chunk);
#pragma unroll UNROLL_BWD
      for (int k = 0; k < n; ++k) {
        const Pack<T> x0 = pack(0, k), x1 = pack(1, k);
        const A w = __ldg(layer.weights + channel(chunk, k));
#pragma unroll
        for (int v = 0; v < VEC; ++v) {
          const A a = multiply(x0.get(v), r0[v]), b = multiply(x1.get(v), r1[v]);
          const A u = w * (a - b);
          dots0[v] += u * a;
          dots1[v] += u * b;
        }
      }
    });
  }

  // Adds the tile's share of the weights' gradients. The tile is the same afterwards, with the last chunk in it.
  __device__ __forceinline__ void add_weight_sums(A s_of_slot, bool first) const {
    A* const row = layer.row();
    if (owns_slot()) shared.factors[0][threadIdx.x] = s_of_slot;
    __syncthreads();
    chunks_down([&](int chunk) {
      A r0[VEC], r1[VEC], s[VEC];
      load_slots(shared.r[0], r0);
      load_slots(shared.r[1], r1);
      load_slots(shared.factors[0], s);
      const int n = packs(chunk);
#pragma unroll UNROLL_BWD
      for (int k = 0; k < PACKS; ++k) {  // all threads take part in each exchange
        A sum = 0;
        if (k < n) {
          const Pack<T> x0 = pack(0, k), x1 = pack(1, k);
#pragma unroll
          for (int v = 0; v < VEC; ++v) {
            const A diff = multiply(x0.get(v), r0[v]) - multiply(x1.get(v), r1[v]);
            sum += s[v] * (diff * diff);
          }
        }
        for (int offset = lanes / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(~0u, sum, offset);
        const int c = channel(chunk, k);
        if (lane == 0 && k < n) row[c] = first ? sum : row[c] + sum;
      }
    });
    if (chunks > 1) load_chunk<1>(chunks - 1);
  }
};

}  // namespace lpips_fast
