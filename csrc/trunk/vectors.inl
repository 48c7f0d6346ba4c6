// Operations on vectors of floats that the trunk needs besides common/vectors.inl.

constexpr int kWidth = kLanes<float>;

LPIPS_FAST_INLINE FloatVec splat(float x) { return x - FloatVec{}; }

// A vector whose first `count` floats come from p; the others are 0. The head's function of this name goes through an
// array, for the 16-bit types. With AVX-512 the array would have 64 bytes here. GCC 12's AddressSanitizer aligns it to
// 32 bytes, but GCC fills it with one aligned store: `make sanitize` would end with a segmentation fault.
LPIPS_FAST_INLINE FloatVec load_partial(const float* p, int64_t count) {
  if (count >= kWidth) return load(p);
  FloatVec v{};
  for (int64_t i = 0; i < count; ++i) v[i] = p[i];
  return v;
}

LPIPS_FAST_INLINE void store_partial(float* p, FloatVec v, int64_t count) {
  if (count >= kWidth) return store(p, v);
  for (int64_t i = 0; i < count; ++i) p[i] = v[i];
}

// NaN stays NaN in both, as in torch.
LPIPS_FAST_INLINE FloatVec relu(FloatVec v) { return v < 0.f ? FloatVec{} : v; }
LPIPS_FAST_INLINE FloatVec maximum(FloatVec a, FloatVec b) { return a != a ? a : (a > b ? a : b); }
