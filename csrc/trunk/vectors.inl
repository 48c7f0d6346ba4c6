// Operations on vectors of floats that the trunk needs besides common/vectors.inl.

constexpr int kWidth = kLanes<float>;

LPIPS_FAST_INLINE FloatVec splat(float x) { return x - FloatVec{}; }

// NaN stays NaN in both, as in torch.
LPIPS_FAST_INLINE FloatVec relu(FloatVec v) { return v < 0.f ? FloatVec{} : v; }
LPIPS_FAST_INLINE FloatVec maximum(FloatVec a, FloatVec b) { return a != a ? a : (a > b ? a : b); }

// Two vectors' lanes as `lanes` says: those of a, then those of b.
LPIPS_FAST_INLINE FloatVec shuffle(FloatVec a, FloatVec b, IntVec lanes) {
#if defined(__clang__)
  FloatVec v;
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; ++i) v[i] = lanes[i] < kWidth ? a[lanes[i]] : b[lanes[i] - kWidth];
  return v;
#else
  return __builtin_shuffle(a, b, lanes);
#endif
}

// Transposes a square of kWidth x kWidth, first in squares of 2 x 2, then in squares of those, and so on.
template <int kStep = 1>
LPIPS_FAST_INLINE void transpose(FloatVec m[kWidth]) {
  IntVec upper, lower;
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; ++i) {
    upper[i] = i & kStep ? kWidth + i - kStep : i;
    lower[i] = i & kStep ? kWidth + i : i + kStep;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; ++i) {
    if (i & kStep) continue;
    const FloatVec a = m[i], b = m[i + kStep];
    m[i] = shuffle(a, b, upper), m[i + kStep] = shuffle(a, b, lower);
  }
  if constexpr (2 * kStep < kWidth) transpose<2 * kStep>(m);
}
