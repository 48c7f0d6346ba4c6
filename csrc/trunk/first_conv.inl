// The first layer. It has few input channels, so Winograd's transforms would cost as much as they save. The convolution
// is direct, in blocks of kRows pixels by vectors of output channels that stay in registers. It reads three rows of the
// image from a buffer, where they are scaled and then padded with zeros, as a trunk pads its scaled input.

// Computes R pixels of a row by V vectors of output channels. rows[dy] is a scaled and padded row, channel by channel.
template <int R, int V>
LPIPS_FAST_INLINE void first_conv_block(const FirstConv& p, const float* const rows[3], const float* u, int64_t panel,
                                        const float* bias, float* y, int64_t count) {
  FloatVec acc[R][V];
#pragma GCC unroll 32
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) acc[r][v] = load(bias + v * kWidth);
  for (int64_t c = 0; c < p.cin; ++c) {
    for (int dy = 0; dy < 3; ++dy) {
      const float* row = rows[dy] + c * (p.w + 2);
      for (int dx = 0; dx < 3; ++dx, u += kPanel) {
        FloatVec col[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) col[v] = load(u + v * kWidth / kPanel * panel + v * kWidth % kPanel);
#pragma GCC unroll 32
        for (int r = 0; r < R; ++r) {
          const FloatVec pixel = splat(row[dx + r]);
#pragma GCC unroll 4
          for (int v = 0; v < V; ++v) acc[r][v] += pixel * col[v];
        }
      }
    }
  }
#pragma GCC unroll 32
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store_partial(y + r * p.cout + v * kWidth, relu(acc[r][v]), count - v * kWidth);
}

template <int R, int V>
void first_conv_pixels(int64_t pixels, const FirstConv& p, const float* const rows[3], const float* u, int64_t panel,
                       const float* bias, float* y, int64_t count) {
  if constexpr (R > 1) {
    if (pixels < R) return first_conv_pixels<R - 1, V>(pixels, p, rows, u, panel, bias, y, count);
  }
  first_conv_block<R, V>(p, rows, u, panel, bias, y, count);
}

void first_conv(const FirstConv& p, int64_t begin, int64_t end, float* buffer) {
  const int64_t ld = p.w + 2, slot = p.cin * ld, panel = p.cin * 9 * kPanel;
  constexpr int64_t vectors = kPanel / kWidth < kVectors ? kPanel / kWidth : kVectors;
  int64_t filled = -1;  // the last row in the buffer; counts all rows of all images, with two rows of padding each
  for (int64_t line = begin; line < end; ++line) {
    const int64_t n = line / p.h, h = line % p.h;
    const float* rows[3];
    for (int64_t dy = 0; dy < 3; ++dy) {
      const int64_t wanted = n * (p.h + 2) + h + dy, row = h + dy - 1;
      float* dst = buffer + wanted % 3 * slot;
      rows[dy] = dst;
      if (wanted <= filled) continue;
      filled = wanted;
      for (int64_t c = 0; c < p.cin; ++c, dst += ld) {
        dst[0] = dst[ld - 1] = 0.f;
        if (row < 0 || row >= p.h) {
          __builtin_memset(dst, 0, ld * sizeof(float));
          continue;
        }
        const float* src = p.x + n * p.stride_n + c * p.stride_c + row * p.stride_h;
        const float shift = p.shift[c], scale = p.scale[c];
        for (int64_t i = 0; i < p.w; ++i) dst[i + 1] = src[i * p.stride_w];
        for (int64_t i = 1; i <= p.w; ++i) dst[i] = (dst[i] - shift) / scale;
      }
    }
    for (int64_t c = 0; c < p.cout; c += vectors * kWidth) {
      const float* u = p.filters + c / kPanel * panel + c % kPanel;
      for (int64_t i = 0; i < p.w; i += kRows) {
        const float* at[3] = {rows[0] + i, rows[1] + i, rows[2] + i};
        first_conv_pixels<kRows, vectors>(smaller(kRows, p.w - i), p, at, u, panel, p.bias + c,
                                          p.y + (line * p.w + i) * p.cout + c, p.cout - c);
      }
    }
    if (p.signs) {
      const int64_t sign_bytes = ceil_div(p.cout, 8);
      for (int64_t i = line * p.w; i < (line + 1) * p.w; ++i)
        store_signs(p.y + i * p.cout, p.cout, p.signs + i * sign_bytes);
    }
  }
}
