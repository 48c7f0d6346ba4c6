// Loads and stores of float32, float64 and the types of common/storage.h, besides common/vectors.inl. A vector holds
// what it computes with: float32 for the types of 16 bits.

using UintVec = Vec<uint32_t>;
using Uint16Vec = VectorOf<uint16_t, kVectorBytes / 2>::type;

LPIPS_FAST_INLINE UintVec as_uint(FloatVec v) { return (UintVec)v; }
LPIPS_FAST_INLINE FloatVec as_float(UintVec v) { return (FloatVec)v; }

LPIPS_FAST_INLINE FloatVec load(const BFloat16* from) {
  return as_float(__builtin_convertvector(load_bits<Uint16Vec>(from), UintVec) << 16);
}

// Exponents are re-biased by a multiplication, which also makes subnormal halves normal.
LPIPS_FAST_INLINE FloatVec load(const Half* from) {
#if LPIPS_FAST_VECTOR_BYTES == 64  // AVX-512F
  return _mm512_maskz_cvtph_ps(0xffff, load_bits<__m256i>(from));  // without a mask, GCC 12 warns of its header
#elif LPIPS_FAST_VECTOR_BYTES == 32  // AVX2 with F16C
  return _mm256_cvtph_ps(load_bits<__m128i>(from));
#else
  const UintVec h = __builtin_convertvector(load_bits<Uint16Vec>(from), UintVec);
  const UintVec magnitude = (h & 0x7fff) << 13;
  const UintVec finite = as_uint(as_float(magnitude) * 0x1p112f);
  const UintVec special = (UintVec)(magnitude >= (0x7c00u << 13)) & 0x7f800000u;
  return as_float(finite | special | (h & 0x8000) << 16);
#endif
}

// Conversions to 16 bits round to nearest, ties to even.
LPIPS_FAST_INLINE Uint16Vec to_bits(FloatVec v, const BFloat16*) {
  const UintVec x = as_uint(v);
  const UintVec rounded = (x + 0x7fff + (x >> 16 & 1)) >> 16;
  const UintVec nan = (UintVec)((x & 0x7fffffff) > 0x7f800000u);
  return __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0), Uint16Vec);
}

LPIPS_FAST_INLINE Uint16Vec to_bits(FloatVec v, const Half*) {
#if LPIPS_FAST_VECTOR_BYTES == 32  // AVX2 with F16C
  return (Uint16Vec)_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const UintVec x = as_uint(v) & 0x7fffffffu;
  const UintVec normal = (x - (112u << 23) + 0xfff + (x >> 13 & 1)) >> 13;
  // Adding 0.5 leaves a subnormal half, rounded, in the low bits of the sum.
  const UintVec subnormal = as_uint(as_float(x) + 0.5f) - 0x3f000000u;
  const UintVec special = ((UintVec)(x > 0x7f800000u) & 0x200) | 0x7c00;
  const UintVec is_special = (UintVec)(x >= 0x47800000u), is_subnormal = (UintVec)(x < 113u << 23);
  const UintVec magnitude =
      (special & is_special) | (subnormal & is_subnormal) | (normal & ~is_special & ~is_subnormal);
  return __builtin_convertvector(magnitude | (as_uint(v) & 0x80000000u) >> 16, Uint16Vec);
#endif
}

LPIPS_FAST_INLINE void store(BFloat16* to, FloatVec v) { store_bits(to, to_bits(v, to)); }
LPIPS_FAST_INLINE void store(Half* to, FloatVec v) { store_bits(to, to_bits(v, to)); }

// Stores around the caches. The address must be a multiple of the bytes that are stored.
#if LPIPS_FAST_VECTOR_BYTES == 32
LPIPS_FAST_INLINE void stream(float* to, FloatVec v) { _mm256_stream_ps(to, v); }
LPIPS_FAST_INLINE void stream(double* to, Vec<double> v) { _mm256_stream_pd(to, v); }
template <typename S>
LPIPS_FAST_INLINE void stream(S* to, FloatVec v) {
  _mm_stream_si128(reinterpret_cast<__m128i*>(to), (__m128i)to_bits(v, to));
}
LPIPS_FAST_INLINE void finish_streams() { _mm_sfence(); }
constexpr bool kStreams = true;
#else
template <typename S, typename V>
LPIPS_FAST_INLINE void stream(S* to, V v) {
  store(to, v);
}
LPIPS_FAST_INLINE void finish_streams() {}
constexpr bool kStreams = false;
#endif

// How many values of type S a vector holds.
template <typename S>
constexpr int64_t kValues = sizeof(S) < sizeof(float) ? kLanes<float> : kLanes<S>;

// As those of common/vectors.inl for float32.
template <typename S>
LPIPS_FAST_INLINE auto load_partial(const S* from, int64_t count) {
  if (count >= kValues<S>) return load(from);
  S whole[kValues<S>] = {};
  for (int64_t i = 0; i < count; ++i) whole[i] = from[i];
  return load(whole);
}

template <typename S, typename V>
LPIPS_FAST_INLINE void store_partial(S* to, V v, int64_t count) {
  if (count >= kValues<S>) return store(to, v);
  S whole[kValues<S>];
  store(whole, v);
  for (int64_t i = 0; i < count; ++i) to[i] = whole[i];
}

// The sum of a vector's lanes, in a fixed order. It takes halves lane by lane: through its address, the vector would be
// in memory for all of its life.
template <typename V>
LPIPS_FAST_INLINE auto sum_lanes(V v) {
  using A = std::remove_reference_t<decltype(v[0])>;
  constexpr int kHalf = sizeof(V) / sizeof(A) / 2;
  if constexpr (kHalf == 1) {
    return v[0] + v[1];
  } else {
    typename VectorOf<A, kHalf * sizeof(A)>::type low, high;
#pragma GCC unroll 8
    for (int i = 0; i < kHalf; ++i) low[i] = v[i], high[i] = v[kHalf + i];
    return sum_lanes(low + high);
  }
}

// The product, rounded before it is used. In a fused multiply-add, a c - b c would not be 0 for a = b.
template <typename V>
LPIPS_FAST_INLINE V rounded(V product) {
#if defined(__x86_64__)
  asm("" : "+x"(product));
#elif defined(__aarch64__)
  asm("" : "+w"(product));
#else
  asm("" : "+m"(product));
#endif
  return product;
}
