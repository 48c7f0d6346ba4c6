// The signs of a ReLU's output, one bit for each value, and the gradient through the ReLU.

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

void pack_signs(const Signs& p, int64_t begin, int64_t end) {
  const int64_t bytes = ceil_div(p.c, 8);
  for (int64_t pixel = begin; pixel < end; ++pixel) store_signs(p.y + pixel * p.c, p.c, p.signs + pixel * bytes);
}

void mask_by_signs(const SignsMask& p, int64_t begin, int64_t end) {
  const int64_t bytes = ceil_div(p.c, 8);
  for (int64_t pixel = begin; pixel < end; ++pixel) {
    for (int64_t c = 0; c < p.c; c += kWidth) {
      const int64_t offset = pixel * p.c + c, count = p.c - c;
      FloatVec d = load_partial(p.d_y + offset, count);
      if (p.addend) d += load_partial(p.addend + offset, count);
      store_partial(p.d_x + offset, load_signs(p.signs + pixel * bytes, c, count) ? d : FloatVec{}, count);
    }
  }
}
