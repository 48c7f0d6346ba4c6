// Direct convolutions: a product of [pixels, kernel kernel cin] by [kernel kernel cin, cout], in blocks of kRows pixels
// by kVectors vectors of output channels that stay in registers. For the 1x1 kernel the first matrix is x itself.
// Otherwise its rows are copied from x first: these convolutions are small.
//
// An output's sum runs over the kernel's pixels and the input channels from first to last. So equal inputs give equal
// outputs, wherever they are, and any number of threads the same ones.

void gather(const Conv& p, int64_t begin, int64_t end, float* rows) {
  const int64_t bytes = p.cin * sizeof(float);
  for (int64_t pixel = begin; pixel < end; ++pixel) {
    const int64_t n = pixel / (p.h * p.w), row = pixel / p.w % p.h, col = pixel % p.w;
    for (int64_t i = 0; i < p.kernel; ++i) {
      for (int64_t j = 0; j < p.kernel; ++j, rows += p.cin) {
        const int64_t r = row + i - p.padding, c = col + j - p.padding;
        if (r < 0 || r >= p.in_h || c < 0 || c >= p.in_w) {
          __builtin_memset(rows, 0, bytes);
        } else {
          const float* const x = p.x + n * p.x_strides.stride_n + r * p.x_strides.stride_h + c * p.x_strides.stride_w;
          __builtin_memcpy(rows, x, bytes);
        }
      }
    }
  }
}

// Stores outputs that need more than bias and ReLU, or whose channels do not fill the vectors.
template <int R, int V>
__attribute__((noinline)) void store_direct(const Conv& p, const FloatVec* values, int64_t pixel, int64_t c) {
  for (int64_t r = 0; r < R; ++r)
    for (int64_t v = 0; v < V && c + v * kWidth < p.cout; ++v)
      store_output(p, values[r * V + v], pixel + r, c + v * kWidth, p.cout - c - v * kWidth);
}

// Computes R pixels by V vectors of channels from c on.
template <int R, int V>
LPIPS_FAST_INLINE void direct_block(const Conv& p, const float* a, int64_t ld_a, const float* b, int64_t panel,
                                    int64_t depth, int64_t pixel, int64_t c) {
  FloatVec sum[R][V];
#pragma GCC unroll 32
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[r][v] = FloatVec{};
  for (int64_t k = 0; k < depth; ++k) add_products<R, V>(a + k, ld_a, b + k * kPanel, panel, sum);
  if (p.bias) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const FloatVec bias = load(p.bias + c + v * kWidth);
#pragma GCC unroll 32
      for (int r = 0; r < R; ++r) sum[r][v] = relu(sum[r][v] + bias);
    }
  }
  if (!p.addend && !p.mask && !p.mask_signs && p.cout - c >= V * kWidth) {
#pragma GCC unroll 32
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) store(p.y + (pixel + r) * p.ld_y + c + v * kWidth, sum[r][v]);
    return;
  }
  FloatVec values[R * V];  // a copy, so that the sums stay in registers
#pragma GCC unroll 32
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) values[r * V + v] = sum[r][v];
  store_direct<R, V>(p, values, pixel, c);
}

template <int R, int V>
void direct_rows(int64_t rows, const Conv& p, const float* a, int64_t ld_a, const float* b, int64_t panel,
                 int64_t depth, int64_t pixel, int64_t c) {
  if constexpr (R > 1) {
    if (rows < R) return direct_rows<R - 1, V>(rows, p, a, ld_a, b, panel, depth, pixel, c);
  }
  direct_block<R, V>(p, a, ld_a, b, panel, depth, pixel, c);
}

template <int V>
LPIPS_FAST_INLINE void direct_columns(const Conv& p, const Rows& rows, int64_t begin, int64_t end, int64_t c) {
  const int64_t depth = p.kernel * p.kernel * p.cin, panel = depth * kPanel;
  const float* const b = p.filters + c / kPanel * panel + c % kPanel;
  for (int64_t pixel = begin; pixel < end; pixel += kRows)
    direct_rows<kRows, V>(smaller(kRows, end - pixel), p, rows.a + pixel * rows.ld, rows.ld, b, panel, depth, pixel, c);
}

void direct(const Conv& p, const Rows& rows, int64_t begin, int64_t end, int64_t first, int64_t last) {
  constexpr int64_t columns = kVectors * kWidth;
  int64_t c = first * kPanel;
  for (; c + columns <= last * kPanel; c += columns) direct_columns<kVectors>(p, rows, begin, end, c);
  if constexpr (columns > kPanel) {
    for (; c < last * kPanel; c += kPanel) direct_columns<kPanel / kWidth>(p, rows, begin, end, c);
  }
  if (p.signs) {
    for (int64_t pixel = begin; pixel < end; ++pixel)
      store_signs(p, pixel, first * kPanel, smaller(last * kPanel, p.cout));
  }
}
