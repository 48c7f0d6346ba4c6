// The first layer. It has few input channels, so Winograd's transforms would cost as much as they save. The convolution
// is direct, in blocks of pixels by vectors of output channels that stay in registers. It reads `kernel` rows of the
// image from a buffer, where they are scaled and then padded with zeros, as a trunk pads its scaled input. There the
// columns of a row lie by phases, column q at [q % stride][q / stride]: the inputs of neighbouring outputs are
// neighbours, whatever the stride. The buffer is a ring of rows [cin][stride][ceil((w + 2 padding) / stride)].

// Pixels of a block. Larger blocks would fit the registers of AVX-512, but the processor overlaps the end of one with
// the start of the next less well.
constexpr int64_t kFirstPixels = 6;

// Where the blocks of one row of outputs find their inputs: input t = (c * kernel + dy) * kernel + dx of output i is
// x[at[t] + i].
struct FirstInputs {
  const float* x;
  const float* at;  // bits of int32_t
};

// Computes R pixels of a row, from column i on, by V vectors of output channels.
template <int R, int V>
LPIPS_FAST_INLINE void first_conv_block(const FirstInputs& inputs, int64_t depth, int64_t i, const float* u,
                                        const float* bias, float* y, int64_t cout, int64_t count) {
  FloatVec acc[R][V];
#pragma GCC unroll 32
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) acc[r][v] = load(bias + v * kWidth);
  for (int64_t t = 0; t < depth; ++t)
    add_products<R, V>(inputs.x + i + load_bits<int32_t>(inputs.at + t), 1, u + t * kPanel, depth * kPanel, acc);
#pragma GCC unroll 32
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) acc[r][v] = relu(acc[r][v]);
  if (count >= V * kWidth) {
#pragma GCC unroll 32
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) store(y + r * cout + v * kWidth, acc[r][v]);
    return;
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) store_partial(y + r * cout + v * kWidth, acc[r][v], count - v * kWidth);
}

template <int R, int V>
void first_conv_pixels(int64_t pixels, const FirstInputs& inputs, int64_t depth, int64_t i, const float* u,
                       const float* bias, float* y, int64_t cout, int64_t count) {
  if constexpr (R > 1) {
    if (pixels < R) return first_conv_pixels<R - 1, V>(pixels, inputs, depth, i, u, bias, y, cout, count);
  }
  first_conv_block<R, V>(inputs, depth, i, u, bias, y, cout, count);
}

// Computes V vectors of output channels, from channel c on, of one of all n out_h rows.
template <int V>
LPIPS_FAST_INLINE void first_conv_columns(const FirstConv& p, const FirstInputs& inputs, int64_t line, int64_t c) {
  const int64_t depth = p.cin * p.kernel * p.kernel;
  const float* u = p.filters + c / kPanel * depth * kPanel + c % kPanel;
  for (int64_t i = 0; i < p.out_w; i += kFirstPixels) {
    first_conv_pixels<kFirstPixels, V>(smaller(kFirstPixels, p.out_w - i), inputs, depth, i, u, p.bias + c,
                                p.y + (line * p.out_w + i) * p.cout + c, p.cout, p.cout - c);
  }
}

LPIPS_FAST_INLINE void scale_row(const float* __restrict from, int64_t step, float shift, float scale, int64_t count,
                                 float* __restrict to) {
  for (int64_t i = 0; i < count; ++i) to[i] = (from[i * step] - shift) / scale;
}

// Fills one row of the buffer with row `row` of image n, which may lie in the padding.
void fill_first_row(const FirstConv& p, int64_t n, int64_t row, int64_t ld, float* to) {
  for (int64_t c = 0; c < p.cin; ++c) {
    const float* from = p.x + n * p.stride_n + c * p.stride_c + row * p.stride_h;
    const float shift = p.shift[c], scale = p.scale[c];
    for (int64_t phase = 0; phase < p.stride; ++phase, to += ld) {
      // The columns j * stride + phase - padding that lie in the image.
      const int64_t offset = phase - p.padding;
      int64_t begin = 0, end = 0;
      if (row >= 0 && row < p.h) {
        begin = smaller(offset < 0 ? ceil_div(-offset, p.stride) : 0, ld);
        end = offset < p.w ? smaller(ceil_div(p.w - offset, p.stride), ld) : begin;
      }
      for (int64_t j = 0; j < begin; ++j) to[j] = 0.f;
      const float* first = from + (begin * p.stride + offset) * p.stride_w;
      const int64_t step = p.stride * p.stride_w;
      // The compiler makes vectors of steps that it knows, and of the division in the last loop.
      if (step == 1) {
        scale_row(first, 1, shift, scale, end - begin, to + begin);
      } else if (step == 2) {
        scale_row(first, 2, shift, scale, end - begin, to + begin);
      } else {
        for (int64_t j = begin; j < end; ++j) to[j] = first[(j - begin) * step];
        for (int64_t j = begin; j < end; ++j) to[j] = (to[j] - shift) / scale;
      }
      for (int64_t j = end; j < ld; ++j) to[j] = 0.f;
    }
  }
}

void first_conv(const FirstConv& p, int64_t begin, int64_t end, float* scratch) {
  const int64_t kernel = p.kernel, ld = ceil_div(p.w + 2 * p.padding, p.stride), plane = p.stride * ld;
  float* const at = scratch + kernel * p.cin * plane;
  constexpr int64_t columns = kVectors * kWidth;
  int64_t filled = -1;  // the last row in the buffer, of all rows of all padded images
  for (int64_t line = begin; line < end; ++line) {
    const int64_t n = line / p.out_h, top = line % p.out_h * p.stride;
    for (int64_t dy = 0; dy < kernel; ++dy) {
      const int64_t row = n * (p.h + 2 * p.padding) + top + dy, slot = row % kernel * p.cin * plane;
      for (int64_t c = 0; c < p.cin; ++c) {
        int64_t offset = slot + c * plane, phase = 0;
        for (int64_t dx = 0; dx < kernel; ++dx, offset += ld) {
          store_bits(at + (c * kernel + dy) * kernel + dx, static_cast<int32_t>(offset));
          if (++phase == p.stride) phase = 0, offset += 1 - plane;
        }
      }
      if (row <= filled) continue;
      filled = row;
      fill_first_row(p, n, top + dy - p.padding, ld, scratch + slot);
    }
    const FirstInputs inputs{scratch, at};
    int64_t c = 0;
    for (; c + columns <= round_up(p.cout, kPanel); c += columns) first_conv_columns<kVectors>(p, inputs, line, c);
    if constexpr (columns > kPanel) {
      for (; c < p.cout; c += kPanel) first_conv_columns<kPanel / kWidth>(p, inputs, line, c);
    }
    if (p.signs) {
      const int64_t sign_bytes = ceil_div(p.cout, 8);
      for (int64_t i = line * p.out_w; i < (line + 1) * p.out_w; ++i)
        pack_signs(p.y + i * p.cout, p.cout, p.signs + i * sign_bytes);
    }
  }
}
