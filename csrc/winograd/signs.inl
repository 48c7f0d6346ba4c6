// A ReLU's signs, and the gradient's way back through it, of pixels [begin, end).

void pack_signs(const Signs& p, int64_t begin, int64_t end) {
  const int64_t bytes = (p.c + 7) / 8;
  for (int64_t pixel = begin; pixel < end; ++pixel) store_signs(p.y + pixel * p.c, p.c, p.signs + pixel * bytes);
}

void mask_by_signs(const SignsMask& p, int64_t begin, int64_t end) {
  const int64_t bytes = (p.c + 7) / 8;
  for (int64_t pixel = begin; pixel < end; ++pixel) {
    for (int64_t c = 0; c < p.c; c += kWidth) {
      const int64_t offset = pixel * p.c + c, count = p.c - c;
      Vec d = load_some(p.d_y + offset, count);
      if (p.addend) d += load_some(p.addend + offset, count);
      store_some(p.d_x + offset, load_signs(p.signs + pixel * bytes, c, count) ? d : Vec{}, count);
    }
  }
}
