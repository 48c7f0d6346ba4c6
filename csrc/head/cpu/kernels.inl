// The CPU head's kernels for one instruction set. head/math.h has the formulas.
//
// Features are read from memory once, in blocks of pixels that stay in cache. Two passes go over a block's channels:
// the first for the norms, the second for the sums that need them. The backward has a third pass, for d_feats. There
// are two kinds of blocks:
//
//   planes  for adjacent pixels (NCHW). Rows of pixels, one for each channel, are copied to scratch while their squares
//           are summed. Rows that lie a power of two apart share a few cache sets, so they would evict each other if
//           they were read again in place. Vectors run along the pixels. Pixels of any other strides are gathered.
//   rows    for adjacent channels (channels-last) in both images. A pixel's channels are read again in place, unless
//           they must be converted or padded. Vectors run along the channels.
//
// Scratch is padded with zeros, for which every result is 0. With t0 = sum_k w_k (a_k - b_k) a_k, the backward is
//
//   dL/df0_c = 2 s r0 (w_c (a_c - b_c) - a_c t0 q0),
//
// and dL/df1 likewise with the images exchanged.

namespace lpips_fast::cpu::LPIPS_FAST_ISA {
namespace {

#include "common/vectors.inl"
#include "common/storage.inl"

// These replace std::fill_n and std::copy_n, which would be compiled for this instruction set under a name that all
// sets share.
template <typename A>
LPIPS_FAST_INLINE void fill_zeros(A* to, int64_t count) {
  __builtin_memset(to, 0, count * sizeof(A));
}

template <typename A>
LPIPS_FAST_INLINE void copy(const A* from, int64_t count, A* to) {
  __builtin_memcpy(to, from, count * sizeof(A));
}

template <typename S>
bool channels_adjacent(const HeadLayer<S>& layer) {
  return layer.channels > 1 && layer.feats0.stride_c == 1 && layer.feats1.stride_c == 1;
}

template <typename A>
void load_weights(const A* weights, int64_t channels, Scratch<A>& m) {
  copy(weights, channels, m.weights);
  fill_zeros(m.weights + channels, padded<A>(channels) - channels);
}

// Turns the sums of squares in r into r and q.
template <typename A>
void to_norm_factors(int64_t count, Norm<A> norm, A* __restrict r, A* __restrict q) {
  for (int64_t i = 0; i < count; ++i) {
    const auto factors = norm_factors(r[i], norm);
    r[i] = factors.r;
    q[i] = factors.q;
  }
}

// Writes s of pixels [first, first + count), then zeros.
template <typename S>
void load_s(const HeadLayer<S>& layer, int64_t n, int64_t first, int64_t count, Acc<S>* s) {
  const auto* grad = layer.grad.data + n * layer.grad.stride_n;
  for (int64_t i = 0; i < count; ++i) s[i] = grad[layer.grad.pixel_offset(first + i)] * layer.grad_scale;
  fill_zeros(s + count, padded<Acc<S>>(count) - count);
}

// Turns t into t q and q into 2 s r, the factors of d_feats at each pixel.
template <typename A>
void to_gradient_factors(int64_t count, const A* __restrict s, const A* __restrict r, A* __restrict q,
                         A* __restrict t) {
  for (int64_t i = 0; i < count; ++i) {
    t[i] *= q[i];
    q[i] = 2 * s[i] * r[i];
  }
}

// ---- planes ----

template <int kRows, typename S>
LPIPS_FAST_INLINE void pack_plane_rows(const S* rows, int64_t stride_c, int64_t count, Acc<S>* block, Acc<S>* sum_sq) {
  using A = Acc<S>;
  const int64_t width = padded<A>(count);
  int64_t i = 0;
  for (; i + kLanes<A> <= count; i += kLanes<A>) {
    Vec<Acc<S>> sum = load(sum_sq + i);
    for (int k = 0; k < kRows; ++k) {
      const Vec<Acc<S>> x = load(rows + k * stride_c + i);
      __builtin_prefetch(rows + (k + kRows) * stride_c + i);
      store(block + k * width + i, x);
      sum += x * x;
    }
    store(sum_sq + i, sum);
  }
  for (; i < width; i += kLanes<A>) {
    Vec<Acc<S>> sum = load(sum_sq + i);
    for (int k = 0; k < kRows; ++k) {
      const Vec<Acc<S>> x = load_partial(rows + k * stride_c + i, count - i);
      store(block + k * width + i, x);
      sum += x * x;
    }
    store(sum_sq + i, sum);
  }
}

// Copies pixels [first, first + count) of all channels to the block and sums their squares.
template <typename S>
void pack_planes(const View<const S>& view, int64_t channels, int64_t n, int64_t first, int64_t count, Acc<S>* block,
                 Acc<S>* sum_sq) {
  constexpr int kRows = 4;
  const int64_t width = padded<Acc<S>>(count);
  fill_zeros(sum_sq, width);
  const S* image = view.data + n * view.stride_n;
  if (view.stride_w == 1 && first + count <= view.width) {
    const S* rows = image + first;
    int64_t c = 0;
    for (; c + kRows <= channels; c += kRows) {
      pack_plane_rows<kRows>(rows + c * view.stride_c, view.stride_c, count, block + c * width, sum_sq);
    }
    for (; c < channels; ++c) pack_plane_rows<1>(rows + c * view.stride_c, 0, count, block + c * width, sum_sq);
    return;
  }
  S row[kMaxBlockPixels];
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t i = 0; i < count; ++i) row[i] = image[c * view.stride_c + view.pixel_offset(first + i)];
    pack_plane_rows<1>(row, 0, count, block + c * width, sum_sq);
  }
}

// d of a block's pixels.
template <typename A>
void plane_distances(int64_t channels, int64_t width, Scratch<A>& m) {
  using V = Vec<A>;
  for (int64_t i = 0; i < width; i += 2 * kLanes<A>) {
    V r0[2], r1[2], d[2] = {};
    for (int k = 0; k < 2; ++k) r0[k] = load(m.r0 + i + k * kLanes<A>), r1[k] = load(m.r1 + i + k * kLanes<A>);
    for (int64_t c = 0; c < channels; ++c) {
      for (int k = 0; k < 2; ++k) {
        const int64_t at = c * width + i + k * kLanes<A>;
        const V diff = rounded(load(m.f0 + at) * r0[k]) - rounded(load(m.f1 + at) * r1[k]);
        d[k] += diff * diff * m.weights[c];
      }
    }
    for (int k = 0; k < 2; ++k) store(m.d + i + k * kLanes<A>, d[k]);
  }
}

// t0 = sum_c w_c (a_c - b_c) a_c and t1 = sum_c w_c (b_c - a_c) b_c of a block's pixels.
template <typename A>
void plane_projections(int64_t channels, int64_t width, Scratch<A>& m) {
  using V = Vec<A>;
  for (int64_t i = 0; i < width; i += 2 * kLanes<A>) {
    V r0[2], r1[2], t0[2] = {}, t1[2] = {};
    for (int k = 0; k < 2; ++k) r0[k] = load(m.r0 + i + k * kLanes<A>), r1[k] = load(m.r1 + i + k * kLanes<A>);
    for (int64_t c = 0; c < channels; ++c) {
      for (int k = 0; k < 2; ++k) {
        const int64_t at = c * width + i + k * kLanes<A>;
        const V a = rounded(load(m.f0 + at) * r0[k]), b = rounded(load(m.f1 + at) * r1[k]);
        const V w_diff = (a - b) * m.weights[c];
        t0[k] += w_diff * a;
        t1[k] -= w_diff * b;
      }
    }
    for (int k = 0; k < 2; ++k) store(m.t0 + i + k * kLanes<A>, t0[k]), store(m.t1 + i + k * kLanes<A>, t1[k]);
  }
}

// One image's features in a block, and the factors of its gradient at each pixel.
template <typename A>
struct Side {
  const A *f, *r, *projection, *scale;
};

template <bool kStream, typename S>
LPIPS_FAST_INLINE void plane_gradient_row(const Side<Acc<S>>& x, const Side<Acc<S>>& y, int64_t row, Acc<S> weight,
                                          int64_t count, S* to) {
  using A = Acc<S>;
  const auto gradient = [&](int64_t i) __attribute__((always_inline)) {
    const Vec<A> a = rounded(load(x.f + row + i) * load(x.r + i)), b = rounded(load(y.f + row + i) * load(y.r + i));
    return load(x.scale + i) * ((a - b) * weight - a * load(x.projection + i));
  };
  int64_t i = 0;
  for (; i + kLanes<A> <= count; i += kLanes<A>) {
    if constexpr (kStream) {
      stream(to + i, gradient(i));
    } else {
      store(to + i, gradient(i));
    }
  }
  if (i < count) store_partial(to + i, gradient(i), count - i);
}

// The gradient with respect to image x at pixels [first, first + count).
template <typename S>
void plane_gradients(const Side<Acc<S>>& x, const Side<Acc<S>>& y, const Acc<S>* weights, int64_t channels, int64_t n,
                     int64_t first, int64_t count, bool streamed, const View<S>& d_feats) {
  const int64_t width = padded<Acc<S>>(count);
  const bool adjacent = d_feats.stride_w == 1 && first + count <= d_feats.width;
  S row[kMaxBlockPixels];
  for (int64_t c = 0; c < channels; ++c) {
    S* image = d_feats.data + n * d_feats.stride_n + c * d_feats.stride_c;
    S* to = adjacent ? image + first : row;
    const bool aligned = reinterpret_cast<uintptr_t>(to) % (kLanes<Acc<S>> * sizeof(S)) == 0;
    if (kStreams && streamed && adjacent && aligned) {
      plane_gradient_row<true>(x, y, c * width, weights[c], count, to);
    } else {
      plane_gradient_row<false>(x, y, c * width, weights[c], count, to);
    }
    if (!adjacent) {
      for (int64_t i = 0; i < count; ++i) image[d_feats.pixel_offset(first + i)] = row[i];
    }
  }
}

// Adds sum_p s (a_c - b_c)^2 of a block to d_weights.
template <typename A>
void plane_weight_gradients(int64_t channels, int64_t width, Scratch<A>& m) {
  for (int64_t c = 0; c < channels; ++c) {
    Vec<A> sum = {};
    for (int64_t i = 0; i < width; i += kLanes<A>) {
      const int64_t at = c * width + i;
      const auto diff = rounded(load(m.f0 + at) * load(m.r0 + i)) - rounded(load(m.f1 + at) * load(m.r1 + i));
      sum += diff * diff * load(m.s + i);
    }
    m.d_weights[c] += sum_lanes(sum);
  }
}

template <typename S>
double head_fwd_planes(const HeadLayer<S>& layer, const HeadTask& task, Norm<Acc<S>> norm, Scratch<Acc<S>>& m) {
  using A = Acc<S>;
  const int64_t step = plane_block_pixels<A>(layer.channels);
  double sum = 0;
  for (int64_t first = task.first; first < task.last; first += step) {
    const int64_t count = smaller(step, task.last - first), width = padded<A>(count);
    pack_planes(layer.feats0, layer.channels, task.n, first, count, m.f0, m.r0);
    pack_planes(layer.feats1, layer.channels, task.n, first, count, m.f1, m.r1);
    to_norm_factors(width, norm, m.r0, m.q0);
    to_norm_factors(width, norm, m.r1, m.q1);
    plane_distances(layer.channels, width, m);
    if (layer.map) copy(m.d, count, layer.map + task.n * layer.pixels + first);
    Vec<Acc<S>> block_sum = {};
    for (int64_t i = 0; i < width; i += kLanes<A>) block_sum += load(m.d + i);
    sum += sum_lanes(block_sum);
  }
  return sum;
}

template <typename S>
void head_bwd_planes(const HeadLayer<S>& layer, const HeadTask& task, Norm<Acc<S>> norm, Scratch<Acc<S>>& m,
                     bool need_weights) {
  using A = Acc<S>;
  const int64_t step = plane_block_pixels<A>(layer.channels);
  for (int64_t first = task.first; first < task.last; first += step) {
    const int64_t count = smaller(step, task.last - first), width = padded<A>(count);
    pack_planes(layer.feats0, layer.channels, task.n, first, count, m.f0, m.r0);
    pack_planes(layer.feats1, layer.channels, task.n, first, count, m.f1, m.r1);
    to_norm_factors(width, norm, m.r0, m.q0);
    to_norm_factors(width, norm, m.r1, m.q1);
    load_s(layer, task.n, first, count, m.s);
    if (need_weights) plane_weight_gradients(layer.channels, width, m);
    if (!layer.d_feats0.data && !layer.d_feats1.data) continue;

    plane_projections(layer.channels, width, m);
    to_gradient_factors(width, m.s, m.r0, m.q0, m.t0);
    to_gradient_factors(width, m.s, m.r1, m.q1, m.t1);
    const Side<A> x{m.f0, m.r0, m.t0, m.q0}, y{m.f1, m.r1, m.t1, m.q1};
    if (layer.d_feats0.data) {
      plane_gradients(x, y, m.weights, layer.channels, task.n, first, count, layer.stream, layer.d_feats0);
    }
    if (layer.d_feats1.data) {
      plane_gradients(y, x, m.weights, layer.channels, task.n, first, count, layer.stream, layer.d_feats1);
    }
  }
}

// ---- rows ----

// A pixel's channels in the accumulation type, padded to whole vectors: in place if they lie there so, else in `block`.
template <typename S>
LPIPS_FAST_INLINE const Acc<S>* pack_row(const View<const S>& view, int64_t channels, int64_t n, int64_t p,
                                         Acc<S>* block) {
  using A = Acc<S>;
  const S* row = view.data + n * view.stride_n + view.pixel_offset(p);
  if constexpr (std::is_same_v<S, A>) {
    if (channels == padded<A>(channels)) return row;
  }
  int64_t c = 0;
  for (; c + kLanes<A> <= channels; c += kLanes<A>) store(block + c, load(row + c));
  for (; c < padded<A>(channels); c += kLanes<A>) store(block + c, load_partial(row + c, channels - c));
  return block;
}

template <typename A>
LPIPS_FAST_INLINE A sum_squares(const A* row, int64_t width) {
  Vec<A> sum[2] = {};
  for (int64_t c = 0; c < width; c += 2 * kLanes<A>) {
    for (int k = 0; k < 2; ++k) {
      const auto x = load(row + c + k * kLanes<A>);
      sum[k] += x * x;
    }
  }
  return sum_lanes(sum[0] + sum[1]);
}

template <typename A>
LPIPS_FAST_INLINE A row_distance(const A* f0, const A* f1, A r0, A r1, const A* weights, int64_t width) {
  Vec<A> sum[2] = {};
  for (int64_t c = 0; c < width; c += 2 * kLanes<A>) {
    for (int k = 0; k < 2; ++k) {
      const int64_t at = c + k * kLanes<A>;
      const auto diff = rounded(load(f0 + at) * r0) - rounded(load(f1 + at) * r1);
      sum[k] += diff * diff * load(weights + at);
    }
  }
  return sum_lanes(sum[0] + sum[1]);
}

template <typename A>
LPIPS_FAST_INLINE void row_projections(const A* f0, const A* f1, A r0, A r1, const A* weights, int64_t width, A& t0,
                                       A& t1) {
  Vec<A> sum0 = {}, sum1 = {};
  for (int64_t c = 0; c < width; c += kLanes<A>) {
    const auto a = rounded(load(f0 + c) * r0), b = rounded(load(f1 + c) * r1);
    const auto w_diff = (a - b) * load(weights + c);
    sum0 += w_diff * a;
    sum1 -= w_diff * b;
  }
  t0 = sum_lanes(sum0);
  t1 = sum_lanes(sum1);
}

// The gradient with respect to the image whose features are x, at one pixel.
template <bool kStream, typename S>
LPIPS_FAST_INLINE void row_gradient(const Acc<S>* x, const Acc<S>* y, Acc<S> r_x, Acc<S> r_y, Acc<S> projection,
                                    Acc<S> scale, const Acc<S>* weights, int64_t channels, S* to) {
  using A = Acc<S>;
  const auto gradient = [&](int64_t c) __attribute__((always_inline)) {
    const Vec<Acc<S>> a = rounded(load(x + c) * r_x), b = rounded(load(y + c) * r_y);
    return scale * ((a - b) * load(weights + c) - a * projection);
  };
  int64_t c = 0;
  for (; c + kLanes<A> <= channels; c += kLanes<A>) {
    if constexpr (kStream) {
      stream(to + c, gradient(c));
    } else {
      store(to + c, gradient(c));
    }
  }
  if (c < channels) store_partial(to + c, gradient(c), channels - c);
}

template <typename S>
LPIPS_FAST_INLINE void put_row_gradient(const Acc<S>* x, const Acc<S>* y, Acc<S> r_x, Acc<S> r_y, Acc<S> projection,
                                        Acc<S> scale, const Acc<S>* weights, int64_t channels, bool streamed, S* to) {
  if (kStreams && streamed && reinterpret_cast<uintptr_t>(to) % (kLanes<Acc<S>> * sizeof(S)) == 0) {
    row_gradient<true>(x, y, r_x, r_y, projection, scale, weights, channels, to);
  } else {
    row_gradient<false>(x, y, r_x, r_y, projection, scale, weights, channels, to);
  }
}

template <typename A>
LPIPS_FAST_INLINE void add_row_weight_gradient(const A* f0, const A* f1, A r0, A r1, A s, int64_t width,
                                               A* d_weights) {
  for (int64_t c = 0; c < width; c += kLanes<A>) {
    const auto diff = rounded(load(f0 + c) * r0) - rounded(load(f1 + c) * r1);
    store(d_weights + c, load(d_weights + c) + diff * diff * s);
  }
}

// Gets the rows of a block of pixels, and their r and q.
template <typename S>
void pack_rows(const HeadLayer<S>& layer, int64_t n, int64_t first, int64_t count, Norm<Acc<S>> norm,
               Scratch<Acc<S>>& m, const Acc<S>** rows0, const Acc<S>** rows1) {
  const int64_t width = padded<Acc<S>>(layer.channels);
  for (int64_t i = 0; i < count; ++i) {
    rows0[i] = pack_row(layer.feats0, layer.channels, n, first + i, m.f0 + i * width);
    rows1[i] = pack_row(layer.feats1, layer.channels, n, first + i, m.f1 + i * width);
    m.r0[i] = sum_squares(rows0[i], width);
    m.r1[i] = sum_squares(rows1[i], width);
  }
  to_norm_factors(count, norm, m.r0, m.q0);
  to_norm_factors(count, norm, m.r1, m.q1);
}

template <typename S>
double head_fwd_rows(const HeadLayer<S>& layer, const HeadTask& task, Norm<Acc<S>> norm, Scratch<Acc<S>>& m) {
  using A = Acc<S>;
  const int64_t step = row_block_pixels<A>(layer.channels), width = padded<A>(layer.channels);
  const A *rows0[kMaxBlockRows], *rows1[kMaxBlockRows];
  double sum = 0;
  for (int64_t first = task.first; first < task.last; first += step) {
    const int64_t count = smaller(step, task.last - first);
    pack_rows(layer, task.n, first, count, norm, m, rows0, rows1);
    for (int64_t i = 0; i < count; ++i) {
      m.d[i] = row_distance(rows0[i], rows1[i], m.r0[i], m.r1[i], m.weights, width);
      sum += m.d[i];
    }
    if (layer.map) copy(m.d, count, layer.map + task.n * layer.pixels + first);
  }
  return sum;
}

template <typename S>
void head_bwd_rows(const HeadLayer<S>& layer, const HeadTask& task, Norm<Acc<S>> norm, Scratch<Acc<S>>& m,
                   bool need_weights) {
  using A = Acc<S>;
  const int64_t channels = layer.channels, step = row_block_pixels<A>(channels), width = padded<A>(channels);
  const A *rows0[kMaxBlockRows], *rows1[kMaxBlockRows];
  const auto destination = [&](const View<S>& d_feats, int64_t p) {
    return d_feats.data + task.n * d_feats.stride_n + d_feats.pixel_offset(p);
  };
  for (int64_t first = task.first; first < task.last; first += step) {
    const int64_t count = smaller(step, task.last - first);
    pack_rows(layer, task.n, first, count, norm, m, rows0, rows1);
    load_s(layer, task.n, first, count, m.s);
    if (need_weights) {
      for (int64_t i = 0; i < count; ++i) {
        add_row_weight_gradient(rows0[i], rows1[i], m.r0[i], m.r1[i], m.s[i], width, m.d_weights);
      }
    }
    if (!layer.d_feats0.data && !layer.d_feats1.data) continue;

    for (int64_t i = 0; i < count; ++i) {
      row_projections(rows0[i], rows1[i], m.r0[i], m.r1[i], m.weights, width, m.t0[i], m.t1[i]);
    }
    to_gradient_factors(count, m.s, m.r0, m.q0, m.t0);
    to_gradient_factors(count, m.s, m.r1, m.q1, m.t1);
    for (int64_t i = 0; i < count; ++i) {
      if (layer.d_feats0.data) {
        put_row_gradient(rows0[i], rows1[i], m.r0[i], m.r1[i], m.t0[i], m.q0[i], m.weights, channels, layer.stream,
                         destination(layer.d_feats0, first + i));
      }
      if (layer.d_feats1.data) {
        put_row_gradient(rows1[i], rows0[i], m.r1[i], m.r0[i], m.t1[i], m.q1[i], m.weights, channels, layer.stream,
                         destination(layer.d_feats1, first + i));
      }
    }
  }
}

}  // namespace

// Returns the sum of d over the task's pixels, and writes the map if the layer has one.
template <typename S>
double head_fwd_kernel(const HeadLayer<S>& layer, const HeadTask& task, Norm<Acc<S>> norm, Acc<S>* scratch) {
  Scratch<Acc<S>> m(scratch, layer.channels);
  load_weights(layer.weights, layer.channels, m);
  return channels_adjacent(layer) ? head_fwd_rows(layer, task, norm, m) : head_fwd_planes(layer, task, norm, m);
}

// Writes d_feats at the task's pixels, and the task's part of d_weights unless d_weights is null.
template <typename S>
void head_bwd_kernel(const HeadLayer<S>& layer, const HeadTask& task, Norm<Acc<S>> norm, Acc<S>* scratch,
                     Acc<S>* d_weights) {
  Scratch<Acc<S>> m(scratch, layer.channels);
  load_weights(layer.weights, layer.channels, m);
  fill_zeros(m.d_weights, padded<Acc<S>>(layer.channels));
  if (channels_adjacent(layer)) {
    head_bwd_rows(layer, task, norm, m, d_weights != nullptr);
  } else {
    head_bwd_planes(layer, task, norm, m, d_weights != nullptr);
  }
  if (d_weights) copy(m.d_weights, layer.channels, d_weights);
  finish_streams();
}

#define LPIPS_FAST_INSTANTIATE(S)                                                                  \
  template double head_fwd_kernel<S>(const HeadLayer<S>&, const HeadTask&, Norm<Acc<S>>, Acc<S>*); \
  template void head_bwd_kernel<S>(const HeadLayer<S>&, const HeadTask&, Norm<Acc<S>>, Acc<S>*, Acc<S>*);
LPIPS_FAST_INSTANTIATE(float)
LPIPS_FAST_INSTANTIATE(double)
LPIPS_FAST_INSTANTIATE(Half)
LPIPS_FAST_INSTANTIATE(BFloat16)

}  // namespace lpips_fast::cpu::LPIPS_FAST_ISA
