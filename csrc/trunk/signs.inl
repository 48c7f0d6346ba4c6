// The signs of a ReLU's output, one bit for each value.

LPIPS_FAST_INLINE IntVec lane_bits() {
  IntVec bits;
  for (int i = 0; i < kWidth; ++i) bits[i] = 1 << i;
  return bits;
}

// The signs of channels [c, c + kWidth), as lanes of all ones or all zeros.
LPIPS_FAST_INLINE IntVec load_signs(const uint8_t* signs, int64_t c, int64_t count) {
  int32_t word = signs[c / 8];
  if constexpr (kWidth == 16) word |= count > 8 ? signs[c / 8 + 1] << 8 : 0;
  if constexpr (kWidth == 4) word >>= c % 8;
  return ((word - IntVec{}) & lane_bits()) != 0;
}

// Packs the signs of one pixel.
LPIPS_FAST_INLINE void pack_signs(const float* y, int64_t channels, uint8_t* signs) {
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
