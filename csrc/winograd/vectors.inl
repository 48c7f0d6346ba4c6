// Vectors of kWidth floats by the compiler's extension: plain operators work element by element, comparisons give lanes
// of all ones or all zeros, and `lanes ? a : b` selects.

typedef float Vec __attribute__((vector_size(kWidth * 4)));
typedef int32_t VecInt __attribute__((vector_size(kWidth * 4)));
typedef Vec VecUnaligned __attribute__((aligned(4), may_alias));

#define LPIPS_FAST_INLINE inline __attribute__((always_inline))

LPIPS_FAST_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
LPIPS_FAST_INLINE Vec splat(float x) { return x - Vec{}; }
LPIPS_FAST_INLINE Vec load(const float* p) { return *reinterpret_cast<const VecUnaligned*>(p); }
LPIPS_FAST_INLINE void store(float* p, Vec v) { *reinterpret_cast<VecUnaligned*>(p) = v; }

// The first `count` of a vector's floats, the others 0.
LPIPS_FAST_INLINE Vec load_some(const float* p, int64_t count) {
  if (count >= kWidth) return load(p);
  Vec v{};
  for (int64_t i = 0; i < count; ++i) v[i] = p[i];
  return v;
}

LPIPS_FAST_INLINE void store_some(float* p, Vec v, int64_t count) {
  if (count >= kWidth) return store(p, v);
  for (int64_t i = 0; i < count; ++i) p[i] = v[i];
}

// NaN stays NaN in both, as in torch.
LPIPS_FAST_INLINE Vec relu(Vec v) { return v < 0.f ? Vec{} : v; }
LPIPS_FAST_INLINE Vec maximum(Vec a, Vec b) { return a != a ? a : (a > b ? a : b); }

LPIPS_FAST_INLINE VecInt lane_bits() {
  VecInt bits;
  for (int i = 0; i < kWidth; ++i) bits[i] = 1 << i;
  return bits;
}

// The kWidth signs from channel c on, as lanes of all ones or all zeros.
LPIPS_FAST_INLINE VecInt load_signs(const uint8_t* signs, int64_t c, int64_t count) {
  int32_t word = signs[c / 8];
  if constexpr (kWidth == 16) word |= count > 8 ? signs[c / 8 + 1] << 8 : 0;
  if constexpr (kWidth == 4) word >>= c % 8;
  return ((word - VecInt{}) & lane_bits()) != 0;
}

// The signs of one pixel.
LPIPS_FAST_INLINE void store_signs(const float* y, int64_t channels, uint8_t* signs) {
  for (int64_t c = 0; c < channels; c += 8) {
    const int64_t count = smaller(8, channels - c);
    int bits = 0;
#if defined(__AVX__)
    if (count == 8) {
      bits = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(y + c), _mm256_setzero_ps(), _CMP_NLE_UQ));
    } else
#endif
      for (int64_t i = 0; i < count; ++i) bits |= !(y[c + i] <= 0.f) << i;
    signs[c / 8] = static_cast<uint8_t>(bits);
  }
}
