// Winograd's F(4x4, 3x3): for a tile of 4x4 outputs, from the 6x6 inputs d around it and the 3x3 filter g,
//
//   V = B^T d B,   U = G g G^T,   M = sum over input channels of U * V (36 products),   y = A^T M A
//
// that is, polynomial multiplication by values at the points 0, a, -a, b, -b and infinity:
//
//         a^2b^2     0     -(a^2+b^2)     0      1  0            1   1    1    1    1   0
//           0     -ab^2       -b^2        a      1  0            0   a   -a    b   -b   0
//   B^T =   0      ab^2       -b^2       -a      1  0    A^T =   0  a^2  a^2  b^2  b^2  0
//           0     -ba^2       -a^2        b      1  0            0  a^3 -a^3  b^3 -b^3  1
//           0      ba^2       -a^2       -b      1  0
//           0     a^2b^2        0    -(a^2+b^2)  0  1
//
// and row i of G is (1, p_i, p_i^2) / prod over j != i of (p_i - p_j), with (0, 0, 1) for infinity. Python computes U.
// With a = 5/8 and b = 3/2 the error in float32 is half as large as with the usual points, a = 1 and b = 2, because
// powers keep a similar size where the product a b is near 1. Every coefficient above is exact in float32.
//
// Channels are adjacent in memory, so a transform works on kWidth channels at once, without shuffles. V and M are
// [point][tile][channel]. The product for one point is a matrix product of [tiles, cin] by [cin, cout], in blocks of
// kBlockTiles tiles by kVectors vectors of output channels that stay in registers. Sums run over input channels from
// first to last, in parts of kPart, whatever the blocks are. So results depend neither on the blocks nor on the
// threads.
//
// A value that is not finite turns all outputs of the tiles that read it into NaN, not only the outputs near it.

constexpr float kA = 0.625f, kB = 1.5f;
constexpr float kA2 = kA * kA, kB2 = kB * kB;

LPIPS_FAST_INLINE void input_points(FloatVec d[6]) {
  const FloatVec even_a = d[4] - kB2 * d[2], odd_a = kA * (d[3] - kB2 * d[1]);
  const FloatVec even_b = d[4] - kA2 * d[2], odd_b = kB * (d[3] - kA2 * d[1]);
  d[0] = kA2 * kB2 * d[0] - (kA2 + kB2) * d[2] + d[4];
  d[5] = kA2 * kB2 * d[1] - (kA2 + kB2) * d[3] + d[5];
  d[1] = even_a + odd_a;
  d[2] = even_a - odd_a;
  d[3] = even_b + odd_b;
  d[4] = even_b - odd_b;
}

LPIPS_FAST_INLINE void output_points(const FloatVec m[6], FloatVec y[4]) {
  const FloatVec even_a = m[1] + m[2], odd_a = m[1] - m[2];
  const FloatVec even_b = m[3] + m[4], odd_b = m[3] - m[4];
  y[0] = m[0] + even_a + even_b;
  y[1] = kA * odd_a + kB * odd_b;
  y[2] = kA2 * even_a + kB2 * even_b;
  y[3] = kA * kA2 * odd_a + (kB * kB2 * odd_b + m[5]);
}

struct TileAt {
  int64_t n, row, col;  // image, and the tile's first output
};

LPIPS_FAST_INLINE TileAt tile_at(const Conv& p, int64_t tile) {
  if (p.chosen) tile = p.chosen[tile];
  const int64_t per_image = p.tiles_h * p.tiles_w;
  const int64_t in_image = tile % per_image;
  return {tile / per_image, in_image / p.tiles_w * kTile, in_image % p.tiles_w * kTile};
}

// Copies the 6x6 inputs of a tile that extends beyond the image, or whose channels do not fill vectors.
void fill_patch(const Conv& p, const float* image, TileAt at, float* patch) {
  for (int64_t i = 0; i < kPatch; ++i) {
    for (int64_t j = 0; j < kPatch; ++j, patch += p.ld_v) {
      const int64_t row = at.row + i - 1, col = at.col + j - 1;
      if (row < 0 || row >= p.h || col < 0 || col >= p.w) {
        __builtin_memset(patch, 0, p.ld_v * sizeof(float));
      } else {
        __builtin_memcpy(patch, image + row * p.x_strides.stride_h + col * p.x_strides.stride_w, p.cin * sizeof(float));
        __builtin_memset(patch + p.cin, 0, (p.ld_v - p.cin) * sizeof(float));
      }
    }
  }
}

void transform_input(const Conv& p, int64_t begin, int64_t end, float* v, float* patch) {
  const int64_t cin = p.cin, point_v = p.point_v;  // copies, which no store can change
  for (int64_t tile = begin; tile < end; ++tile, v += p.ld_v) {
    const TileAt at = tile_at(p, tile);
    const float* image = p.x + at.n * p.x_strides.stride_n;
    const bool inside = at.row > 0 && at.col > 0 && at.row + 4 < p.h && at.col + 4 < p.w && p.cin % kWidth == 0;
    const float* src = patch;
    int64_t stride_h = kPatch * p.ld_v, stride_w = p.ld_v;
    if (inside) {
      stride_h = p.x_strides.stride_h, stride_w = p.x_strides.stride_w;
      src = image + (at.row - 1) * stride_h + (at.col - 1) * stride_w;
    } else {
      fill_patch(p, image, at, patch);
    }
    for (int64_t c = 0; c < cin; c += kWidth) {
      FloatVec half[kPatch][kPatch];  // [column][point of the rows]
#pragma GCC unroll 6
      for (int j = 0; j < kPatch; ++j) {
#pragma GCC unroll 6
        for (int i = 0; i < kPatch; ++i) {
          half[j][i] = load(src + i * stride_h + j * stride_w + c);
          if (j > 1) __builtin_prefetch(src + i * stride_h + (j + 4) * stride_w + c);
        }
        input_points(half[j]);
      }
#pragma GCC unroll 6
      for (int i = 0; i < kPatch; ++i) {
        FloatVec row[kPatch];
#pragma GCC unroll 6
        for (int j = 0; j < kPatch; ++j) row[j] = half[j][i];
        input_points(row);
#pragma GCC unroll 6
        for (int j = 0; j < kPatch; ++j) store(v + (i * kPatch + j) * point_v + c, row[j]);
      }
    }
  }
}

// c[R][V] += a[R] b[V], of one input channel.
template <int R, int V>
LPIPS_FAST_INLINE void add_products(const float* a, int64_t ld_a, const float* b, int64_t panel, FloatVec c[R][V]) {
  FloatVec col[V];
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) col[v] = load(b + v * kWidth / kPanel * panel + v * kWidth % kPanel);
#pragma GCC unroll 32
  for (int r = 0; r < R; ++r) {
    const FloatVec row = splat(a[r * ld_a]);
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) c[r][v] += row * col[v];
  }
}

// The rounding of a sum grows with its length, and is most of the error of the convolution (docs/cpu.md). So kPart
// channels make two sums, over the even and the odd ones. These are added, and then added to the sums of the channels
// before. The two sums share the registers: a block has half as many tiles as one with single sums would have.
constexpr int64_t kPart = 64;
constexpr int64_t kBlockTiles = kRows / 2;

// c[R][V vectors] (+)= a[R][depth] b[depth][V vectors]. Columns of b lie in panels of 16, `panel` floats apart.
template <int R, int V>
LPIPS_FAST_INLINE void multiply_block(const float* a, int64_t ld_a, const float* b, int64_t panel, int64_t depth,
                                      float* c, int64_t ld_c, bool add) {
  for (int64_t begin = 0; begin < depth; begin += kPart, add = true) {
    FloatVec even[R][V], odd[R][V];
#pragma GCC unroll 32
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) even[r][v] = odd[r][v] = FloatVec{};
    const int64_t end = smaller(begin + kPart, depth);
    int64_t k = begin;
    for (; k + 1 < end; k += 2) {
      add_products<R, V>(a + k, ld_a, b + k * kPanel, panel, even);
      add_products<R, V>(a + k + 1, ld_a, b + (k + 1) * kPanel, panel, odd);
    }
    if (k < end) add_products<R, V>(a + k, ld_a, b + k * kPanel, panel, even);
#pragma GCC unroll 32
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        float* const dst = c + r * ld_c + v * kWidth;
        const FloatVec sum = even[r][v] + odd[r][v];
        store(dst, add ? load(dst) + sum : sum);
      }
  }
}

// As multiply_block, for `rows` <= R rows.
template <int R, int V>
void multiply_rows(int64_t rows, const float* a, int64_t ld_a, const float* b, int64_t panel, int64_t depth, float* c,
                   int64_t ld_c, bool add) {
  if constexpr (R > 1) {
    if (rows < R) return multiply_rows<R - 1, V>(rows, a, ld_a, b, panel, depth, c, ld_c, add);
  }
  multiply_block<R, V>(a, ld_a, b, panel, depth, c, ld_c, add);
}

// The rows of a panel that stay in the first-level cache while all tiles pass.
constexpr int64_t kDepth = 256;
static_assert(kDepth % kPart == 0);

template <int V>
LPIPS_FAST_INLINE void multiply_columns(const Conv& p, int64_t tiles, const float* v, const float* u, float* m) {
  for (int64_t k = 0; k < p.cin; k += kDepth) {
    for (int64_t t = 0; t < tiles; t += kBlockTiles) {
      multiply_rows<kBlockTiles, V>(smaller(kBlockTiles, tiles - t), v + t * p.ld_v + k, p.ld_v, u + k * kPanel,
                                    p.cin * kPanel, smaller(kDepth, p.cin - k), m + t * p.ld_m, p.ld_m, k > 0);
    }
  }
}

void multiply(const Conv& p, int64_t point, int64_t tiles, int64_t begin, int64_t end, const float* v, float* m) {
  const int64_t panels = p.ld_m / kPanel;
  const float* u = p.filters + point * panels * p.cin * kPanel;
  v += point * p.point_v, m += point * p.point_m;
  constexpr int64_t columns = kVectors * kWidth;
  int64_t c = begin * kPanel;
  const auto at = [&](int64_t col) { return u + col / kPanel * p.cin * kPanel + col % kPanel; };
  for (; c + columns <= end * kPanel; c += columns) multiply_columns<kVectors>(p, tiles, v, at(c), m + c);
  if constexpr (columns > kPanel) {
    for (; c < end * kPanel; c += kPanel) multiply_columns<kPanel / kWidth>(p, tiles, v, at(c), m + c);
  }
}

void transform_output(const Conv& p, int64_t begin, int64_t end, const float* m) {
  const int64_t sign_bytes = ceil_div(p.cout, 8);
  const int64_t pooled_h = p.h / 2, pooled_w = p.w / 2;
  for (int64_t tile = begin; tile < end; ++tile, m += p.ld_m) {
    const TileAt at = tile_at(p, tile);
    const int64_t rows = smaller(kTile, p.h - at.row), cols = smaller(kTile, p.w - at.col);
    const int64_t first = (at.n * p.h + at.row) * p.w + at.col;
    for (int64_t c = 0; c < p.cout; c += kWidth) {
      const int64_t count = p.cout - c;
      FloatVec half[kPatch][kTile];  // [column][output row]
#pragma GCC unroll 6
      for (int j = 0; j < kPatch; ++j) {
        FloatVec column[kPatch];
#pragma GCC unroll 6
        for (int i = 0; i < kPatch; ++i) column[i] = load(m + (i * kPatch + j) * p.point_m + c);
        output_points(column, half[j]);
      }
      const FloatVec bias = p.bias ? load_partial(p.bias + c, count) : FloatVec{};
      FloatVec y[kTile][kTile];
#pragma GCC unroll 4
      for (int i = 0; i < kTile; ++i) {
        FloatVec row[kPatch];
#pragma GCC unroll 6
        for (int j = 0; j < kPatch; ++j) row[j] = half[j][i];
        output_points(row, y[i]);
#pragma GCC unroll 4
        for (int j = 0; j < kTile; ++j) {
          y[i][j] += bias;
          if (p.relu) y[i][j] = relu(y[i][j]);
        }
      }
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < cols; ++j) {
          const int64_t pixel = first + i * p.w + j;
          const int64_t offset = pixel * p.cout + c;
          FloatVec value = y[i][j];
          if (p.addend) value += load_partial(p.addend + offset, count);
          if (p.mask) value = load_partial(p.mask + offset, count) <= 0.f ? FloatVec{} : value;
          if (p.mask_signs) value = load_signs(p.mask_signs + pixel * sign_bytes, c, count) ? value : FloatVec{};
          store_partial(p.y + offset, value, count);
        }
      }
      if (p.pooled) {
        for (int64_t i = 0; i < rows / 2; ++i) {
          for (int64_t j = 0; j < cols / 2; ++j) {
            const FloatVec best = maximum(maximum(y[2 * i][2 * j], y[2 * i][2 * j + 1]),
                                          maximum(y[2 * i + 1][2 * j], y[2 * i + 1][2 * j + 1]));
            const int64_t pixel = (at.n * pooled_h + at.row / 2 + i) * pooled_w + at.col / 2 + j;
            store_partial(p.pooled + pixel * p.cout + c, best, count);
          }
        }
      }
    }
    if (p.signs) {
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < cols; ++j) {
          const int64_t pixel = first + i * p.w + j;
          store_signs(p.y + pixel * p.cout, p.cout, p.signs + pixel * sign_bytes);
        }
      }
    }
  }
}
