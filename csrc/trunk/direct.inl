// Direct convolutions: a product of [pixels, kernel kernel cin] by [kernel kernel cin, cout], in blocks of kRows pixels
// by kVectors vectors of output channels that stay in registers. For the 1x1 kernel the first matrix is x itself.
// Otherwise its rows are copied from x first: these convolutions are small.
//
// An output's sum runs over the kernel's pixels and the input channels from first to last, in parts of kDirectDepth
// that are added in y. So equal inputs give equal outputs, wherever they are, and any number of threads the same ones.

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

// The rows of a panel that stay in the first-level cache while the pixels pass.
constexpr int64_t kDirectDepth = 512;

// Computes R pixels by V vectors of channels from c on, from `depth` of each pixel's inputs. Except for the first part,
// y has the sums of the parts before.
template <int R, int V>
LPIPS_FAST_INLINE void direct_block(const Conv& p, const float* a, int64_t ld_a, const float* b, int64_t panel,
                                    int64_t depth, int64_t pixel, int64_t c, bool first, bool last) {
  FloatVec sum[R][V];
#pragma GCC unroll 32
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const int64_t at = c + v * kWidth;
      sum[r][v] = first ? FloatVec{} : load_partial(p.y + (pixel + r) * p.ld_y + at, p.cout - at);
    }
  for (int64_t k = 0; k < depth; ++k) add_products<R, V>(a + k, ld_a, b + k * kPanel, panel, sum);
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    const int64_t at = c + v * kWidth, count = p.cout - at;
    if (!last) {
#pragma GCC unroll 32
      for (int r = 0; r < R; ++r) store_partial(p.y + (pixel + r) * p.ld_y + at, sum[r][v], count);
      continue;
    }
    const FloatVec bias = p.bias ? load(p.bias + at) : FloatVec{};
#pragma GCC unroll 32
    for (int r = 0; r < R; ++r) {
      const FloatVec value = p.relu ? relu(sum[r][v] + bias) : sum[r][v] + bias;
      store_output(p, value, pixel + r, at, count);
    }
  }
}

template <int R, int V>
void direct_rows(int64_t rows, const Conv& p, const float* a, int64_t ld_a, const float* b, int64_t panel,
                 int64_t depth, int64_t pixel, int64_t c, bool first, bool last) {
  if constexpr (R > 1) {
    if (rows < R) return direct_rows<R - 1, V>(rows, p, a, ld_a, b, panel, depth, pixel, c, first, last);
  }
  direct_block<R, V>(p, a, ld_a, b, panel, depth, pixel, c, first, last);
}

template <int V>
LPIPS_FAST_INLINE void direct_columns(const Conv& p, const Rows& rows, int64_t begin, int64_t end, int64_t c) {
  const int64_t depth = p.kernel * p.kernel * p.cin, panel = depth * kPanel;
  const float* const b = p.filters + c / kPanel * panel + c % kPanel;
  for (int64_t k = 0; k < depth; k += kDirectDepth) {
    const int64_t part = smaller(kDirectDepth, depth - k);
    for (int64_t pixel = begin; pixel < end; pixel += kRows) {
      direct_rows<kRows, V>(smaller(kRows, end - pixel), p, rows.a + pixel * rows.ld + k, rows.ld, b + k * kPanel,
                            panel, part, pixel, c, k == 0, k + part == depth);
    }
  }
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
