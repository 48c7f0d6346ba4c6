// The backward of ReLU, tap and 2x2 max pool in one pass over the tap.

void relu_pool_bwd(const ReluPool& p, int64_t begin, int64_t end) {
  const int64_t pairs = ceil_div(p.h, 2), pooled_h = p.h / 2, pooled_w = p.w / 2;
  for (int64_t pair = begin; pair < end; ++pair) {
    const int64_t n = pair / pairs, row = pair % pairs * 2;
    for (int64_t col = 0; col < p.w; col += 2) {
      const bool whole = p.d_pooled && row + 1 < p.h && col + 1 < p.w;
      const int64_t rows = smaller(2, p.h - row), cols = smaller(2, p.w - col);
      const int64_t first = ((n * p.h + row) * p.w + col) * p.c;
      const int64_t pooled = ((n * pooled_h + row / 2) * pooled_w + col / 2) * p.c;
      for (int64_t c = 0; c < p.c; c += kWidth) {
        const int64_t count = p.c - c;
        IntVec chosen{};  // the element that the pool took: the window's first maximum, or its last NaN
        FloatVec d_window{};
        if (whole) {
          d_window = load_partial(p.d_pooled + pooled + c, count);
          FloatVec best = load_partial(p.tap + first + c, count);
          for (int32_t i = 1; i < 4; ++i) {
            const FloatVec next = load_partial(p.tap + first + (i / 2 * p.w + i % 2) * p.c + c, count);
            const IntVec better = (next > best) | (next != next);
            best = better ? next : best;
            chosen = better ? i - IntVec{} : chosen;
          }
        }
        for (int32_t i = 0; i < rows; ++i) {
          for (int32_t j = 0; j < cols; ++j) {
            const int64_t offset = first + (i * p.w + j) * p.c + c;
            FloatVec d = chosen == i * 2 + j ? d_window : FloatVec{};
            if (p.d_head) d += load_partial(p.d_head + offset, count);
            store_partial(p.d_out + offset, load_partial(p.tap + offset, count) <= 0.f ? FloatVec{} : d, count);
          }
        }
      }
    }
  }
}
