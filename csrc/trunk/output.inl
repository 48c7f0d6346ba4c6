// What follows the sums of a convolution: other parts of the gradient, the ReLU's gradient, signs.

// Stores the outputs of the channels [c, c + kWidth) of a pixel, `count` of which there are.
LPIPS_FAST_INLINE void store_output(const Conv& p, FloatVec value, int64_t pixel, int64_t c, int64_t count) {
  const int64_t offset = pixel * p.ld_y + c;
  if (p.addend) value += load_partial(p.addend + offset, count);
  if (p.mask) value = load_partial(p.mask + offset, count) <= 0.f ? FloatVec{} : value;
  if (p.mask_signs) value = load_signs(p.mask_signs + pixel * p.ld_signs, c, count) ? value : FloatVec{};
  store_partial(p.y + offset, value, count);
}

// Packs the signs of the channels [first, last) of a pixel of y; first is a multiple of 8.
LPIPS_FAST_INLINE void store_signs(const Conv& p, int64_t pixel, int64_t first, int64_t last) {
  pack_signs(p.y + pixel * p.ld_y + first, last - first, p.signs + pixel * p.ld_signs + first / 8);
}
