// Vectors by the compiler's extension: plain operators work element by element, comparisons give lanes of all ones or
// all zeros, and `lanes ? a : b` selects. Included inside the namespace of an instruction set.

#define LPIPS_FAST_INLINE static inline __attribute__((always_inline))

constexpr int kVectorBytes = LPIPS_FAST_VECTOR_BYTES;

template <typename T, int kBytes = kVectorBytes>
struct VectorOf {
  typedef T type __attribute__((vector_size(kBytes)));
};
template <typename T>
using Vec = typename VectorOf<T>::type;
using FloatVec = Vec<float>;
using IntVec = Vec<int32_t>;

template <typename T>
constexpr int64_t kLanes = kVectorBytes / sizeof(T);

LPIPS_FAST_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

template <typename V>
LPIPS_FAST_INLINE V load_bits(const void* from) {
  V v;
  __builtin_memcpy(&v, from, sizeof(V));
  return v;
}

template <typename V>
LPIPS_FAST_INLINE void store_bits(void* to, V v) {
  __builtin_memcpy(to, &v, sizeof(V));
}

typedef FloatVec FloatVecAnywhere __attribute__((aligned(4), may_alias));
typedef Vec<double> DoubleVecAnywhere __attribute__((aligned(8), may_alias));

LPIPS_FAST_INLINE FloatVec load(const float* from) { return *reinterpret_cast<const FloatVecAnywhere*>(from); }
LPIPS_FAST_INLINE Vec<double> load(const double* from) { return *reinterpret_cast<const DoubleVecAnywhere*>(from); }
LPIPS_FAST_INLINE void store(float* to, FloatVec v) { *reinterpret_cast<FloatVecAnywhere*>(to) = v; }
LPIPS_FAST_INLINE void store(double* to, Vec<double> v) { *reinterpret_cast<DoubleVecAnywhere*>(to) = v; }

// A vector whose first `count` floats come from p, or all; the others are 0. For float32 no array on the stack is in
// between, as in common/storage.inl: with AVX-512 it would have 64 bytes. GCC 12's AddressSanitizer aligns it to 32
// bytes, but GCC fills it with one aligned store: `make sanitize` would end with a segmentation fault.
LPIPS_FAST_INLINE FloatVec load_partial(const float* p, int64_t count) {
  if (count >= kLanes<float>) return load(p);
  FloatVec v{};
  for (int64_t i = 0; i < count; ++i) v[i] = p[i];
  return v;
}

LPIPS_FAST_INLINE void store_partial(float* p, FloatVec v, int64_t count) {
  if (count >= kLanes<float>) return store(p, v);
  for (int64_t i = 0; i < count; ++i) p[i] = v[i];
}

// Calls f(i, left) for the vectors of `count` floats, or of what becomes floats: from value i on, with `left` values
// left. The compiler knows that all but the last one are whole.
template <typename F>
LPIPS_FAST_INLINE void for_each_vector(int64_t count, const F& f) {
  int64_t i = 0;
  for (; i + kLanes<float> <= count; i += kLanes<float>) f(i, kLanes<float>);
  if (i < count) f(i, count - i);
}
