// Winograd's F(4x4, KxK) for K = 3 and 5: for a tile of 4x4 outputs, from the inputs d around it (P = K + 3 in each
// direction) and the filter g,
//
//   V = B^T d B,   U = G g G^T,   M = sum over input channels of U * V (P^2 products),   y = A^T M A
//
// that is, polynomial multiplication by values at P - 1 points p and at infinity. With the points 0, a, -a, b, -b, and
// c, -c for K = 5:
//
//   - Row i of B^T has the coefficients of prod over j != i of (x - p_j); infinity's those of the product of all.
//   - Column i of A^T is (1, p_i, p_i^2, p_i^3); infinity's is (0, 0, 0, 1).
//   - Row i of G is (1, p_i, ..., p_i^(K - 1)) / prod over j != i of (p_i - p_j); infinity's is (0, ..., 0, 1).
//
// Python computes U. For K = 3, a = 2/3 and b = 3/2: the error in float32 is half as large as with the usual points,
// 1 and 2, because powers keep a similar size where the product a b is near 1. For K = 5 the points are 1/2, 1 and 2.
// docs/cpu.md has what else was tried.
//
// Channels are adjacent in memory, so a transform works on kWidth channels at once, without shuffles. V and M are
// [point][tile][channel]. The product for one point is a matrix product of [tiles, cin] by [cin, cout], in blocks of
// kBlockTiles tiles by kVectors vectors of output channels that stay in registers. Sums run over input channels from
// first to last, in parts of kPart, whatever the blocks are. So results depend neither on the blocks nor on the
// threads.
//
// A value that is not finite turns all outputs of the tiles that read it into NaN, not only the outputs near it.

constexpr float kA = 2.f / 3, kB = 1.5f;  // a b = 1
constexpr float kA2 = kA * kA, kB2 = kB * kB;

LPIPS_FAST_INLINE void input_points(FloatVec (&d)[6]) {
  const FloatVec even_a = d[4] - kB2 * d[2], odd_a = kA * (d[3] - kB2 * d[1]);
  const FloatVec even_b = d[4] - kA2 * d[2], odd_b = kB * (d[3] - kA2 * d[1]);
  d[0] = d[0] - (kA2 + kB2) * d[2] + d[4];
  d[5] = d[1] - (kA2 + kB2) * d[3] + d[5];
  d[1] = even_a + odd_a;
  d[2] = even_a - odd_a;
  d[3] = even_b + odd_b;
  d[4] = even_b - odd_b;
}

LPIPS_FAST_INLINE void output_points(const FloatVec (&m)[6], FloatVec (&y)[4]) {
  const FloatVec even_a = m[1] + m[2], odd_a = m[1] - m[2];
  const FloatVec even_b = m[3] + m[4], odd_b = m[3] - m[4];
  y[0] = m[0] + even_a + even_b;
  y[1] = kA * odd_a + kB * odd_b;
  y[2] = kA2 * even_a + kB2 * even_b;
  y[3] = kA * kA2 * odd_a + (kB * kB2 * odd_b + m[5]);
}

// 1/2, 1 and 2: with squares s_a, s_b, s_c, the products of two of them are 1/4, 1 and 4, and that of all three is 1.
LPIPS_FAST_INLINE void input_points(FloatVec (&d)[8]) {
  const FloatVec even_a = d[6] - 5.f * d[4] + 4.f * d[2], odd_a = 0.5f * (d[5] - 5.f * d[3] + 4.f * d[1]);
  const FloatVec even_b = d[6] - 4.25f * d[4] + d[2], odd_b = d[5] - 4.25f * d[3] + d[1];
  const FloatVec even_c = d[6] - 1.25f * d[4] + 0.25f * d[2], odd_c = 2.f * (d[5] - 1.25f * d[3] + 0.25f * d[1]);
  d[0] = d[6] - d[0] + 5.25f * (d[2] - d[4]);
  d[7] = d[7] - d[1] + 5.25f * (d[3] - d[5]);
  d[1] = even_a + odd_a;
  d[2] = even_a - odd_a;
  d[3] = even_b + odd_b;
  d[4] = even_b - odd_b;
  d[5] = even_c + odd_c;
  d[6] = even_c - odd_c;
}

LPIPS_FAST_INLINE void output_points(const FloatVec (&m)[8], FloatVec (&y)[4]) {
  const FloatVec even_a = m[1] + m[2], odd_a = m[1] - m[2];
  const FloatVec even_b = m[3] + m[4], odd_b = m[3] - m[4];
  const FloatVec even_c = m[5] + m[6], odd_c = m[5] - m[6];
  y[0] = m[0] + even_a + even_b + even_c;
  y[1] = 0.5f * odd_a + odd_b + 2.f * odd_c;
  y[2] = 0.25f * even_a + even_b + 4.f * even_c;
  y[3] = 0.125f * odd_a + odd_b + (8.f * odd_c + m[7]);
}

struct TileAt {
  int64_t n, row, col;  // image, and the tile's first output
};

LPIPS_FAST_INLINE TileAt tile_at(const Tiles& t, int64_t tile) {
  if (t.chosen) tile = t.chosen[tile];
  const int64_t per_image = t.tiles_h * t.tiles_w;
  const int64_t in_image = tile % per_image;
  return {tile / per_image, in_image / t.tiles_w * kTile, in_image % t.tiles_w * kTile};
}

// Copies the inputs of a tile that extends beyond the image, or whose channels do not fill vectors.
template <int P>
void fill_patch(const Conv& p, int64_t ld, const float* image, TileAt at, float* patch) {
  for (int64_t i = 0; i < P; ++i) {
    for (int64_t j = 0; j < P; ++j, patch += ld) {
      const int64_t row = at.row + i - p.padding, col = at.col + j - p.padding;
      if (row < 0 || row >= p.in_h || col < 0 || col >= p.in_w) {
        __builtin_memset(patch, 0, ld * sizeof(float));
      } else {
        __builtin_memcpy(patch, image + row * p.x_strides.stride_h + col * p.x_strides.stride_w, p.cin * sizeof(float));
        __builtin_memset(patch + p.cin, 0, (ld - p.cin) * sizeof(float));
      }
    }
  }
}

template <int P>
void transform_input(const Conv& p, const Tiles& t, int64_t begin, int64_t end, float* v, float* patch) {
  const int64_t cin = p.cin, point_v = t.point_v;  // copies, which no store can change
  for (int64_t tile = begin; tile < end; ++tile, v += t.ld_v) {
    const TileAt at = tile_at(t, tile);
    const int64_t row = at.row - p.padding, col = at.col - p.padding;
    const float* image = p.x + at.n * p.x_strides.stride_n;
    const bool inside = row >= 0 && col >= 0 && row + P <= p.in_h && col + P <= p.in_w && p.cin % kWidth == 0;
    const float* src = patch;
    int64_t stride_h = P * t.ld_v, stride_w = t.ld_v;
    if (inside) {
      stride_h = p.x_strides.stride_h, stride_w = p.x_strides.stride_w;
      src = image + row * stride_h + col * stride_w;
    } else {
      fill_patch<P>(p, t.ld_v, image, at, patch);
    }
    for (int64_t c = 0; c < cin; c += kWidth) {
      FloatVec half[P][P];  // [column][point of the rows]
#pragma GCC unroll 8
      for (int j = 0; j < P; ++j) {
#pragma GCC unroll 8
        for (int i = 0; i < P; ++i) {
          half[j][i] = load(src + i * stride_h + j * stride_w + c);
          if (j >= P - kTile) __builtin_prefetch(src + i * stride_h + (j + kTile) * stride_w + c);
        }
        input_points(half[j]);
      }
#pragma GCC unroll 8
      for (int i = 0; i < P; ++i) {
        FloatVec row[P];
#pragma GCC unroll 8
        for (int j = 0; j < P; ++j) row[j] = half[j][i];
        input_points(row);
#pragma GCC unroll 8
        for (int j = 0; j < P; ++j) store(v + (i * P + j) * point_v + c, row[j]);
      }
    }
  }
}

// The turned filters h(k) = g(2 - k) of a 3x3 convolution have the polynomial x^2 g(1/x). So their value at a point p
// follows from that of g at 1/p, and 1/a = b: with the divisors of G, h at +-a is -b^2 times g at +-b, h at +-b is -a^2
// times g at +-a, and 0 and infinity change places. The filters of the gradient are therefore those of the forward, at
// another point, transposed and scaled. `transposed` makes a part of them, which saves the memory for all.
struct TurnedPoint {
  int64_t point;
  float factor;
};

LPIPS_FAST_INLINE TurnedPoint turned_point(int64_t point) {
  constexpr int64_t kTurned[6] = {5, 3, 4, 1, 2, 0};
  constexpr float kFactor[6] = {1.f, -kB2, -kB2, -kA2, -kA2, 1.f};
  return {kTurned[point / 6] * 6 + kTurned[point % 6], kFactor[point / 6] * kFactor[point % 6]};
}

// Writes [panels][depth][16] from u, [depth / 16][channels][16]: column c of the result is u's channel c.
void transposed(const float* u, int64_t channels, int64_t depth, int64_t panels, float factor, float* to) {
  for (int64_t panel = 0; panel < panels; ++panel) {
    for (int64_t k = 0; k < depth; k += kPanel) {
      const float* const from = u + (k / kPanel * channels + panel * kPanel) * kPanel;
      float* const block = to + (panel * depth + k) * kPanel;
      for (int64_t i = 0; i < kPanel; i += kWidth) {
        for (int64_t j = 0; j < kPanel; j += kWidth) {
          FloatVec square[kWidth];
#pragma GCC unroll 16
          for (int r = 0; r < kWidth; ++r) square[r] = load(from + (i + r) * kPanel + j);
          transpose(square);
#pragma GCC unroll 16
          for (int r = 0; r < kWidth; ++r) store(block + (j + r) * kPanel + i, square[r] * factor);
        }
      }
    }
  }
}

// Columns of b lie in panels of 16, `panel` floats apart.
template <int V>
LPIPS_FAST_INLINE void multiply_columns(const Tiles& t, int64_t tiles, int64_t depth, const float* v, const float* b,
                                        int64_t panel, float* m, bool add) {
  for (int64_t i = 0; i < tiles; i += kBlockTiles)
    multiply_rows<kBlockTiles, V>(smaller(kBlockTiles, tiles - i), v + i * t.ld_v, t.ld_v, b, panel, depth,
                                  m + i * t.ld_m, t.ld_m, add);
}

void multiply(const Conv& p, const Tiles& t, int64_t point, int64_t tiles, int64_t begin, int64_t end, const float* v,
              float* m) {
  const int64_t panels = t.ld_m / kPanel;
  constexpr int64_t columns = kVectors * kWidth, most_panels = columns > kPanel ? columns / kPanel : 1;
  const TurnedPoint turned = p.transposed ? turned_point(point) : TurnedPoint{point, 1.f};
  const float* const u = p.filters + turned.point * panels * p.cin * kPanel;
  v += point * t.point_v, m += point * t.point_m;
  for (int64_t c = begin; c < end; c += most_panels) {
    const int64_t count = smaller(most_panels, end - c);
    for (int64_t k = 0; k < p.cin; k += kDepth) {
      const int64_t depth = smaller(kDepth, p.cin - k);
      const float* b = u + (c * p.cin + k) * kPanel;
      int64_t panel = p.cin * kPanel;
      alignas(64) float part[most_panels * kDepth * kPanel];
      if (p.transposed) {
        transposed(u + k * p.cout + c * kPanel * kPanel, p.cout, depth, count, turned.factor, part);
        b = part, panel = depth * kPanel;
      }
      for (int64_t i = 0; i < count * kPanel; i += columns) {
        const float* const at = b + i / kPanel * panel + i % kPanel;
        float* const to = m + c * kPanel + i;
        if (columns <= kPanel || count == most_panels) {
          multiply_columns<kVectors>(t, tiles, depth, v + k, at, panel, to, k > 0);
        } else {
          multiply_columns<kPanel / kWidth>(t, tiles, depth, v + k, at, panel, to, k > 0);
        }
      }
    }
  }
}

template <int P>
void transform_output(const Conv& p, const Tiles& t, int64_t begin, int64_t end, const float* m) {
  const int64_t pooled_h = p.h / 2, pooled_w = p.w / 2;
  for (int64_t tile = begin; tile < end; ++tile, m += t.ld_m) {
    const TileAt at = tile_at(t, tile);
    const int64_t rows = smaller(kTile, p.h - at.row), cols = smaller(kTile, p.w - at.col);
    const int64_t first = (at.n * p.h + at.row) * p.w + at.col;
    for (int64_t c = 0; c < p.cout; c += kWidth) {
      const int64_t count = p.cout - c;
      FloatVec half[P][kTile];  // [column][output row]
#pragma GCC unroll 8
      for (int j = 0; j < P; ++j) {
        FloatVec column[P];
#pragma GCC unroll 8
        for (int i = 0; i < P; ++i) column[i] = load(m + (i * P + j) * t.point_m + c);
        output_points(column, half[j]);
      }
      FloatVec y[kTile][kTile];
#pragma GCC unroll 4
      for (int i = 0; i < kTile; ++i) {
        FloatVec row[P];
#pragma GCC unroll 8
        for (int j = 0; j < P; ++j) row[j] = half[j][i];
        output_points(row, y[i]);
      }
      if (p.bias) {
        const FloatVec bias = load(p.bias + c);
#pragma GCC unroll 4
        for (int i = 0; i < kTile; ++i)
#pragma GCC unroll 4
          for (int j = 0; j < kTile; ++j) y[i][j] = relu(y[i][j] + bias);
      }
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < cols; ++j) store_output(p, y[i][j], first + i * p.w + j, c, count);
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
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < cols; ++j) store_signs(p, first + i * p.w + j, 0, p.cout);
    }
  }
}
