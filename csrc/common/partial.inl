// Loads and stores of a vector's first `count` lanes, for every type that `load` and `store` take. A template finds
// only the overloads that stand before it, so include this file after all of them.

// The other lanes are 0.
template <typename T>
LPIPS_FAST_INLINE auto load_partial(const T* from, int64_t count) {
  constexpr int64_t kCount = sizeof(load(from)) / sizeof(load(from)[0]);
  if (count >= kCount) return load(from);
  T whole[kCount] = {};
  for (int64_t i = 0; i < count; ++i) whole[i] = from[i];
  return load(whole);
}

template <typename T, typename V>
LPIPS_FAST_INLINE void store_partial(T* to, V v, int64_t count) {
  constexpr int64_t kCount = sizeof(v) / sizeof(v[0]);
  if (count >= kCount) return store(to, v);
  T whole[kCount];
  store(whole, v);
  for (int64_t i = 0; i < count; ++i) to[i] = whole[i];
}
