// The sketches' kernels for one instruction set. lpips_fast/sketch.py has the mathematics.

namespace lpips_fast::sketch::LPIPS_FAST_ISA {
namespace {

#include "common/vectors.inl"
#include "common/storage.inl"

using Int8Vec = VectorOf<int8_t, kVectorBytes / 4>::type;
using Int16Vec = VectorOf<int16_t, kVectorBytes / 2>::type;

LPIPS_FAST_INLINE Int8Vec load_partial(const int8_t* from, int64_t count) {
  if (count >= kLanes<float>) return load_bits<Int8Vec>(from);
  Int8Vec v{};
  for (int64_t i = 0; i < count; ++i) v[i] = from[i];
  return v;
}

LPIPS_FAST_INLINE IntVec widened(Int8Vec v) {
#if LPIPS_FAST_VECTOR_BYTES == 64
  return (IntVec)_mm512_maskz_cvtepi8_epi32(0xffff, (__m128i)v);  // the mask: see load of Half in common/storage.inl
#elif LPIPS_FAST_VECTOR_BYTES == 32
  return (IntVec)_mm256_cvtepi8_epi32(_mm_cvtsi64_si128((int64_t)v));
#else
  return __builtin_convertvector(__builtin_convertvector(v, Int16Vec), IntVec);  // GCC would not do it in one step
#endif
}

LPIPS_FAST_INLINE FloatVec with_signs(FloatVec v, Int8Vec signs) {
  return as_float(as_uint(v) ^ ((UintVec)widened(signs) & 0x80000000u));
}

// What does not fill a vector comes last here and in `compare`, when the sums no longer need their registers.
template <typename S>
LPIPS_FAST_INLINE float sum_squares(const S* row, int64_t channels) {
  const int64_t whole = channels / kLanes<float> * kLanes<float>;
  FloatVec sum = {};
  for (int64_t c = 0; c < whole; c += kLanes<float>) {
    const FloatVec f = load(row + c);
    __builtin_prefetch(row + c + 512);  // of the pixels that follow: the taps of a batch do not fit the caches
    sum += f * f;
  }
  const float of_whole = sum_lanes(sum);
  if (whole == channels) return of_whole;
  const FloatVec f = load_partial(row + whole, channels - whole);
  return of_whole + sum_lanes(f * f);
}

// Adds `count` coordinates of one pixel to as many sums.
template <typename S>
LPIPS_FAST_INLINE void add(const S* row, const float* scales, float r, const int8_t* signs, int64_t count,
                           float* sums) {
  for_each_vector(count, [&](int64_t i, int64_t left) __attribute__((always_inline)) {
    const FloatVec scale = with_signs(load_partial(scales + i, left) * r, load_partial(signs + i, left));
    store_partial(sums + i, load_partial(sums + i, left) + load_partial(row + i, left) * scale, left);
  });
}

// The distances of queries [query, query + Q) to rows [row, row + R). A distance is the same to the bit for all Q and
// R: it has one vector of sums.
template <int Q, int R, typename S>
LPIPS_FAST_INLINE void compare(const Comparison<S>& p, int64_t query, int64_t row) {
  const float* const queries = p.queries + query * p.length;
  const S* const rows = p.rows + row * p.length;
  float* const distances = p.distances + query * p.n_rows + row;
  const int64_t whole = p.length / kLanes<float> * kLanes<float>, left = p.length - whole;
  FloatVec sums[Q][R];
#pragma GCC unroll 8
  for (int q = 0; q < Q; ++q)
#pragma GCC unroll 8
    for (int k = 0; k < R; ++k) sums[q][k] = FloatVec{};
  for (int64_t i = 0; i < whole; i += kLanes<float>) {
    FloatVec of_rows[R];
#pragma GCC unroll 8
    for (int k = 0; k < R; ++k) {
      of_rows[k] = load(rows + k * p.length + i);
      __builtin_prefetch(rows + (R + k) * p.length + i);  // short runs in R places: the processor foresees too few
    }
#pragma GCC unroll 8
    for (int q = 0; q < Q; ++q) {
      const FloatVec of_query = load(queries + q * p.length + i);
#pragma GCC unroll 8
      for (int k = 0; k < R; ++k) {
        const FloatVec difference = of_query - of_rows[k];
        sums[q][k] += difference * difference;
      }
    }
  }
#pragma GCC unroll 8
  for (int q = 0; q < Q; ++q)
#pragma GCC unroll 8
    for (int k = 0; k < R; ++k) distances[q * p.n_rows + k] = sum_lanes(sums[q][k]);
  if (left == 0) return;
  for (int64_t q = 0; q < Q; ++q) {
    for (int64_t k = 0; k < R; ++k) {
      const FloatVec of_query = load_partial(queries + q * p.length + whole, left);
      const FloatVec difference = of_query - load_partial(rows + k * p.length + whole, left);
      distances[q * p.n_rows + k] += sum_lanes(difference * difference);
    }
  }
}

template <int Q, int R, typename S>
LPIPS_FAST_INLINE void compare_rows(const Comparison<S>& p, int64_t query, int64_t row, int64_t last) {
  for (; row + R <= last; row += R) compare<Q, R>(p, query, row);
  for (; row < last; ++row) compare<Q, 1>(p, query, row);
}

}  // namespace

// The sketch of an image, [length]. `sums` has 2 length floats: sum i is of bucket i mod length. So a turned block is
// one run of adjacent sums, from its offset on.
template <typename S>
void sketch_kernel(const Tap<S>* taps, int64_t n_taps, int64_t image, Norm<float> norm, const Buckets& buckets,
                   float* sums, float* sketch) {
  __builtin_memset(sums, 0, 2 * buckets.length * sizeof(float));
  const int8_t* signs = buckets.signs;
  const int64_t* offset = buckets.offsets;
  float* to = nullptr;
  int64_t left = 0;  // values of this block
  for (const Tap<S>* tap = taps; tap != taps + n_taps; ++tap) {
    const S* row = tap->features + image * tap->pixels * tap->channels;
    for (int64_t pixel = 0; pixel < tap->pixels; ++pixel, row += tap->channels) {
      const float r = norm_factors(sum_squares(row, tap->channels), norm).r;
      for (int64_t c = 0, count; c < tap->channels; c += count) {
        if (left == 0) to = sums + *offset++, left = buckets.length;
        count = smaller(left, tap->channels - c);
        add(row + c, tap->scales + c, r, signs, count, to);
        to += count, signs += count, left -= count;
      }
    }
  }
  for_each_vector(buckets.length, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
    store_partial(sketch + i, load_partial(sums + i, count) + load_partial(sums + buckets.length + i, count), count);
  });
}

// The distances of all queries to the rows [first, last).
template <typename S>
void distances_kernel(const Comparison<S>& p, int64_t first, int64_t last) {
  // The sums of Q queries and R rows fit the registers, with R rows, a query and a difference.
  constexpr int Q = 4, R = kVectorBytes == 64 ? 4 : 2;
  constexpr int64_t kRowsAtOnce = 16;  // with Q queries, 48 KiB of 1024 float16 and float32: the first-level cache
  for (int64_t row = first; row < last; row += kRowsAtOnce) {
    const int64_t end = smaller(row + kRowsAtOnce, last);
    int64_t query = 0;
    for (; query + Q <= p.n_queries; query += Q) compare_rows<Q, R>(p, query, row, end);
    for (; query < p.n_queries; ++query) compare_rows<1, 4>(p, query, row, end);
  }
}

#define LPIPS_FAST_INSTANTIATE(S)                                                                              \
  template void sketch_kernel<S>(const Tap<S>*, int64_t, int64_t, Norm<float>, const Buckets&, float*, float*);
LPIPS_FAST_INSTANTIATE(float)
LPIPS_FAST_INSTANTIATE(Half)
LPIPS_FAST_INSTANTIATE(BFloat16)
template void distances_kernel<float>(const Comparison<float>&, int64_t, int64_t);
template void distances_kernel<Half>(const Comparison<Half>&, int64_t, int64_t);

}  // namespace lpips_fast::sketch::LPIPS_FAST_ISA
