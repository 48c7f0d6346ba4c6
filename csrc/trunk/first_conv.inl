// The first layer. It has few input channels, so Winograd's transforms would cost as much as they save. The convolution
// is direct, in blocks of kRows pixels by vectors of output channels that stay in registers. It reads `kernel` rows of
// the image from a buffer, where they are scaled and then padded with zeros, as a trunk pads its scaled input. There
// the columns of a row lie by phases, column q at [q % stride][q / stride]: the inputs of neighbouring outputs are
// neighbours, whatever the stride.

// The buffer: a ring of `kernel` rows [cin][stride][ld]. The first row of a window is at `first`.
struct FirstRows {
  float* memory;
  int64_t ld, first;
};

// Computes R pixels of a row, from column i on, by V vectors of output channels.
template <int R, int V>
LPIPS_FAST_INLINE void first_conv_block(const FirstConv& p, const FirstRows& rows, int64_t i, const float* u,
                                        int64_t panel, const float* bias, float* y, int64_t count) {
  const int64_t kernel = p.kernel, stride = p.stride, ld = rows.ld;
  FloatVec acc[R][V];
#pragma GCC unroll 32
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) acc[r][v] = load(bias + v * kWidth);
  for (int64_t c = 0; c < p.cin; ++c) {
    int64_t slot = rows.first;
    for (int64_t dy = 0; dy < kernel; ++dy) {
      const float* x = rows.memory + (slot * p.cin + c) * stride * ld + i;
      int64_t phase = 0;
      for (int64_t dx = 0; dx < kernel; ++dx, u += kPanel) {
        FloatVec col[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) col[v] = load(u + v * kWidth / kPanel * panel + v * kWidth % kPanel);
#pragma GCC unroll 32
        for (int r = 0; r < R; ++r) {
          const FloatVec pixel = splat(x[r]);
#pragma GCC unroll 4
          for (int v = 0; v < V; ++v) acc[r][v] += pixel * col[v];
        }
        x += ld;
        if (++phase == stride) phase = 0, x += 1 - stride * ld;
      }
      if (++slot == kernel) slot = 0;
    }
  }
  if (count >= V * kWidth) {
#pragma GCC unroll 32
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) store(y + r * p.cout + v * kWidth, relu(acc[r][v]));
    return;
  }
  FloatVec values[R * V];  // a copy, so that the sums stay in registers
#pragma GCC unroll 32
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) values[r * V + v] = relu(acc[r][v]);
  for (int64_t r = 0; r < R; ++r)
    for (int64_t v = 0; v < V && v * kWidth < count; ++v)
      store_partial(y + r * p.cout + v * kWidth, values[r * V + v], count - v * kWidth);
}

template <int R, int V>
void first_conv_pixels(int64_t pixels, const FirstConv& p, const FirstRows& rows, int64_t i, const float* u,
                       int64_t panel, const float* bias, float* y, int64_t count) {
  if constexpr (R > 1) {
    if (pixels < R) return first_conv_pixels<R - 1, V>(pixels, p, rows, i, u, panel, bias, y, count);
  }
  first_conv_block<R, V>(p, rows, i, u, panel, bias, y, count);
}

// Fills one row of the buffer with row `row` of image n, which may lie in the padding.
void fill_first_row(const FirstConv& p, int64_t n, int64_t row, int64_t ld, float* to) {
  for (int64_t c = 0; c < p.cin; ++c) {
    const float* from = p.x + n * p.stride_n + c * p.stride_c + row * p.stride_h;
    const float shift = p.shift ? p.shift[c] : 0.f, scale = p.scale ? p.scale[c] : 1.f;
    for (int64_t phase = 0; phase < p.stride; ++phase, to += ld) {
      // The columns j * stride + phase - padding that lie in the image.
      const int64_t offset = phase - p.padding;
      int64_t begin = 0, end = 0;
      if (row >= 0 && row < p.h) {
        begin = smaller(offset < 0 ? ceil_div(-offset, p.stride) : 0, ld);
        end = offset < p.w ? smaller(ceil_div(p.w - offset, p.stride), ld) : begin;
      }
      for (int64_t j = 0; j < begin; ++j) to[j] = 0.f;
      for (int64_t j = begin; j < end; ++j) to[j] = from[(j * p.stride + offset) * p.stride_w];
      for (int64_t j = begin; j < end; ++j) to[j] = (to[j] - shift) / scale;
      for (int64_t j = end; j < ld; ++j) to[j] = 0.f;
    }
  }
}

void first_conv(const FirstConv& p, int64_t begin, int64_t end, float* buffer) {
  FirstRows rows{buffer, ceil_div(p.w + 2 * p.padding, p.stride), 0};
  const int64_t row_floats = p.cin * p.stride * rows.ld, panel = p.cin * p.kernel * p.kernel * kPanel;
  constexpr int64_t vectors = kPanel / kWidth < kVectors ? kPanel / kWidth : kVectors;
  int64_t filled = -1;  // the last row in the buffer, of all rows of all padded images
  for (int64_t line = begin; line < end; ++line) {
    const int64_t n = line / p.out_h, top = line % p.out_h * p.stride;
    const int64_t first = n * (p.h + 2 * p.padding) + top;
    rows.first = first % p.kernel;
    for (int64_t dy = 0; dy < p.kernel; ++dy) {
      if (first + dy <= filled) continue;
      filled = first + dy;
      fill_first_row(p, n, top + dy - p.padding, rows.ld, buffer + filled % p.kernel * row_floats);
    }
    for (int64_t c = 0; c < p.cout; c += vectors * kWidth) {
      const float* u = p.filters + c / kPanel * panel + c % kPanel;
      for (int64_t i = 0; i < p.out_w; i += kRows) {
        first_conv_pixels<kRows, vectors>(smaller(kRows, p.out_w - i), p, rows, i, u, panel, p.bias + c,
                                          p.y + (line * p.out_w + i) * p.cout + c, p.cout - c);
      }
    }
    if (p.signs) {
      const int64_t sign_bytes = ceil_div(p.cout, 8);
      for (int64_t i = line * p.out_w; i < (line + 1) * p.out_w; ++i)
        pack_signs(p.y + i * p.cout, p.cout, p.signs + i * sign_bytes);
    }
  }
}
