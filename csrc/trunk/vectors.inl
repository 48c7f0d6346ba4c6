// Operations on vectors of floats that the trunk needs besides common/vectors.inl.

constexpr int kWidth = kLanes<float>;

LPIPS_FAST_INLINE FloatVec splat(float x) { return x - FloatVec{}; }

// NaN stays NaN in both, as in torch.
LPIPS_FAST_INLINE FloatVec relu(FloatVec v) { return v < 0.f ? FloatVec{} : v; }
LPIPS_FAST_INLINE FloatVec maximum(FloatVec a, FloatVec b) { return a != a ? a : (a > b ? a : b); }
