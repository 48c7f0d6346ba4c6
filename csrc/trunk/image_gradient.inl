// The gradient of the first layer to the image. Each pixel of d_y times the filters gives its part of the gradient to
// the kernel x kernel pixels of its window, cin kernel kernel values: a matrix product, as in winograd.inl. Then each
// pixel of the image sums its parts, over d_y's rows, and in a row over dx. The products of the rows of d_y that a row
// of the image needs stay in a ring, so that each is computed once for a range of rows. They are transposed there,
// [column][pixel of d_y], so that the sums run along rows of memory.

// Computes the products of one row of d_y, to [columns][ld]. `block` is scratch.
void image_products(const ImageGradient& p, const float* d_y, int64_t columns, int64_t ld, float* to, float* block) {
  const int64_t panel = p.cout * kPanel, ld_block = round_up(columns, kPanel);
  const auto filters = [&](int64_t c) { return p.filters + c / kPanel * panel + c % kPanel; };
  constexpr int64_t both = kVectors * kWidth;
  for (int64_t begin = 0; begin < p.out_w; begin += kGradientPixels) {
    const int64_t pixels = smaller(kGradientPixels, p.out_w - begin);
    for (int64_t i = 0; i < pixels; i += kBlockTiles) {
      const int64_t rows = smaller(kBlockTiles, pixels - i);
      const float* a = d_y + (begin + i) * p.cout;
      float* dst = block + i * ld_block;
      int64_t c = 0;
      for (; c + both <= ld_block; c += both)
        multiply_rows<kBlockTiles, kVectors>(rows, a, p.cout, filters(c), panel, p.cout, dst + c, ld_block, false);
      if constexpr (both > kPanel) {
        for (; c < ld_block; c += kPanel)
          multiply_rows<kBlockTiles, kPanel / kWidth>(rows, a, p.cout, filters(c), panel, p.cout, dst + c, ld_block,
                                                      false);
      }
    }
    for (int64_t i = 0; i < pixels; i += kWidth) {
      for (int64_t c = 0; c < columns; c += kWidth) {
        FloatVec square[kWidth];
#pragma GCC unroll 16
        for (int r = 0; r < kWidth; ++r) square[r] = load(block + (i + r) * ld_block + c);
        transpose(square);
        float* dst = to + c * ld + begin + i;
#pragma GCC unroll 16
        for (int r = 0; r < kWidth; ++r) store(dst + r * ld, square[r]);
      }
    }
  }
}

LPIPS_FAST_INLINE void add(float* __restrict sums, const float* __restrict terms, int64_t count) {
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) store(sums + i, load(sums + i) + load(terms + i));
  for (; i < count; ++i) sums[i] += terms[i];
}

void image_gradient(const ImageGradient& p, int64_t begin, int64_t end, float* scratch) {
  const int64_t kernel = p.kernel, stride = p.stride, columns = p.cin * kernel * kernel;
  const int64_t ring = ceil_div(kernel, stride), ld = round_up(p.out_w, kPanel);
  const int64_t row_floats = round_up(columns, kPanel) * ld, ld_sums = ceil_div(p.w + 2 * p.padding, stride);
  float* const block = scratch + ring * row_floats;
  float* const sums = block + kGradientPixels * round_up(columns, kPanel);  // as the rows of the first layer's buffer
  int64_t known = -1;  // the last row of d_y, of all n out_h, whose products are in its slot of the ring
  for (int64_t line = begin; line < end; ++line) {
    const int64_t n = line / p.h, row = line % p.h + p.padding;
    const Span rows = windows_at(row, kernel, stride, p.out_h);
    for (int64_t o = rows.begin; o < rows.end; ++o) {
      const int64_t from = n * p.out_h + o;
      if (from <= known) continue;
      known = from;
      image_products(p, p.d_y + from * p.out_w * p.cout, columns, ld, scratch + o % ring * row_floats, block);
    }
    for (int64_t c = 0; c < p.cin; ++c) {
      for (int64_t i = 0; i < stride * ld_sums; ++i) sums[i] = 0.f;
      for (int64_t o = rows.begin; o < rows.end; ++o) {
        const float* terms = scratch + o % ring * row_floats + (c * kernel + row - o * stride) * kernel * ld;
        for (int64_t dx = 0; dx < kernel; ++dx)
          add(sums + dx % stride * ld_sums + dx / stride, terms + dx * ld, p.out_w);
      }
      for (int64_t i = 0; i < stride * ld_sums; ++i) sums[i] /= p.scale[c];
      float* d_x = p.d_x + ((n * p.cin + c) * p.h + line % p.h) * p.w;
      for (int64_t phase = 0; phase < stride; ++phase) {
        for (int64_t i = 0; i < ld_sums; ++i) {
          const int64_t col = i * stride + phase - p.padding;
          if (col >= 0 && col < p.w) d_x[col] = sums[phase * ld_sums + i];
        }
      }
    }
  }
}
