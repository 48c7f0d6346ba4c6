// Operations on vectors of floats that the trunk needs besides common/vectors.inl.

constexpr int kWidth = kLanes<float>;

LPIPS_FAST_INLINE FloatVec splat(float x) { return x - FloatVec{}; }

// A vector whose first `count` floats come from p; the others are 0.
LPIPS_FAST_INLINE FloatVec load_some(const float* p, int64_t count) {
  if (count >= kWidth) return load(p);
  FloatVec v{};
  for (int64_t i = 0; i < count; ++i) v[i] = p[i];
  return v;
}

LPIPS_FAST_INLINE void store_some(float* p, FloatVec v, int64_t count) {
  if (count >= kWidth) return store(p, v);
  for (int64_t i = 0; i < count; ++i) p[i] = v[i];
}

// NaN stays NaN in both, as in torch.
LPIPS_FAST_INLINE FloatVec relu(FloatVec v) { return v < 0.f ? FloatVec{} : v; }
LPIPS_FAST_INLINE FloatVec maximum(FloatVec a, FloatVec b) { return a != a ? a : (a > b ? a : b); }
