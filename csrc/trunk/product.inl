// Matrix products in blocks that stay in registers.

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
