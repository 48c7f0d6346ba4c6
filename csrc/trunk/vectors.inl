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

// Calls f(c, count) for the vectors of a pixel's channels, from channel c on, with `count` channels left. The compiler
// knows that all but the last one are whole.
template <typename F>
LPIPS_FAST_INLINE void for_each_vector(int64_t channels, const F& f) {
  int64_t c = 0;
  for (; c + kWidth <= channels; c += kWidth) f(c, int64_t{kWidth});
  if (c < channels) f(c, channels - c);
}

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
