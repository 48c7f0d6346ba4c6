// The max pool, and the backward of ReLU, tap and max pool in one pass over the tap. A window takes what is left of it
// where it overruns the image.

struct Span {
  int64_t begin, end;
};

// The windows that contain position i of one dimension, of `count` windows.
LPIPS_FAST_INLINE Span windows_at(int64_t i, int64_t kernel, int64_t stride, int64_t count) {
  return {i < kernel ? 0 : (i - kernel) / stride + 1, smaller(i / stride + 1, count)};
}

// What a pool leaves of a window: rows x cols pixels from x on.
LPIPS_FAST_INLINE void max_of_window(const float* x, int64_t rows, int64_t cols, int64_t stride_h, int64_t channels,
                                     float* y) {
  for_each_vector(channels, [&](int64_t c, int64_t count) __attribute__((always_inline)) {
    FloatVec best = load_partial(x + c, count);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = i == 0; j < cols; ++j)
        best = maximum(best, load_partial(x + i * stride_h + j * channels + c, count));
    }
    store_partial(y + c, best, count);
  });
}

void max_pool(const MaxPool& problem, int64_t begin, int64_t end, float*) {
  const MaxPool p = problem;  // a copy, which no store can change
  const int64_t stride_h = p.w * p.c;
  for (int64_t line = begin; line < end; ++line) {
    const int64_t n = line / p.out_h, row = line % p.out_h * p.stride;
    const int64_t rows = smaller(p.kernel, p.h - row);
    for (int64_t i = 0; i < p.out_w; ++i) {
      const int64_t col = i * p.stride, cols = smaller(p.kernel, p.w - col);
      const float* x = p.x + ((n * p.h + row) * p.w + col) * p.c;
      float* y = p.y + (line * p.out_w + i) * p.c;
      if (rows == 2 && cols == 2) {
        max_of_window(x, 2, 2, stride_h, p.c, y);
      } else if (rows == 3 && cols == 3) {
        max_of_window(x, 3, 3, stride_h, p.c, y);
      } else {
        max_of_window(x, rows, cols, stride_h, p.c, y);
      }
    }
  }
}

// The place that a pool takes from a window, i * kernel + j for row i and column j: its first maximum in row-major
// order, or its last NaN. `winners` has space for whole vectors.
LPIPS_FAST_INLINE void find_winners(const float* tap, int64_t rows, int64_t cols, int64_t stride_h, int64_t channels,
                                    int64_t kernel, float* winners) {
  for_each_vector(channels, [&](int64_t c, int64_t count) __attribute__((always_inline)) {
    FloatVec best = load_partial(tap + c, count);
    IntVec winner{};
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = i == 0; j < cols; ++j) {
        const FloatVec next = load_partial(tap + i * stride_h + j * channels + c, count);
        const IntVec keep = ~(next > best) & (next == next);
        best = keep ? best : next;
        winner = keep ? winner : static_cast<int32_t>(i * kernel + j) - IntVec{};
      }
    }
    store_bits(winners + c, winner);
  });
}

// AVX-512 loads gradients under masks, for which the processor does not read ahead.
constexpr int64_t kAhead = 512;

// A pixel of the tap, and the first of the windows that contain it.
struct TapPixel {
  int64_t offset;         // in the tap
  int64_t place;          // in the window
  int64_t slot, col;      // of the window's winners
  const float* d_pooled;  // of the window
};

// The gradient at a pixel that lies in rows x cols windows. `winners` is [ring][out_w][ld].
LPIPS_FAST_INLINE void tap_gradient(const TapGradient& p, const TapPixel& at, int64_t rows, int64_t cols,
                                    const float* winners, int64_t ring, int64_t ld) {
  for_each_vector(p.c, [&](int64_t c, int64_t count) __attribute__((always_inline)) {
    FloatVec d{};
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t slot = at.slot + i < ring ? at.slot + i : at.slot + i - ring;
      for (int64_t j = 0; j < cols; ++j) {
        const IntVec winner = load_bits<IntVec>(winners + (slot * p.out_w + at.col + j) * ld + c);
        const auto place = static_cast<int32_t>(at.place - (i * p.kernel + j) * p.stride);
        const FloatVec d_window = load_partial(at.d_pooled + (i * p.out_w + j) * p.c + c, count);
        d += winner == place ? d_window : FloatVec{};
        __builtin_prefetch(at.d_pooled + (i * p.out_w + j) * p.c + c + kAhead);
      }
    }
    d += load_partial(p.d_tap + at.offset + c, count);
    __builtin_prefetch(p.d_tap + at.offset + c + kAhead);
    __builtin_prefetch(p.d_out + at.offset + c + kAhead, 1);
    store_partial(p.d_out + at.offset + c, load_partial(p.tap + at.offset + c, count) <= 0.f ? FloatVec{} : d, count);
  });
}

void tap_backward(const TapGradient& problem, int64_t begin, int64_t end, float* winners) {
  const TapGradient p = problem;  // a copy, which no store can change
  const int64_t stride_h = p.w * p.c, ld = round_up(p.c, kPanel);
  const int64_t ring = p.d_pooled ? ceil_div(p.kernel, p.stride) : 1;
  int64_t known = -1;  // the last row of windows, of all n out_h, whose winners are in its slot of the ring
  for (int64_t line = begin; line < end; ++line) {
    const int64_t n = line / p.h, row = line % p.h;
    const Span rows = p.d_pooled ? windows_at(row, p.kernel, p.stride, p.out_h) : Span{0, 0};
    for (int64_t o = rows.begin; o < rows.end; ++o) {
      if (n * p.out_h + o <= known) continue;
      known = n * p.out_h + o;
      float* to = winners + o % ring * p.out_w * ld;
      for (int64_t i = 0; i < p.out_w; ++i, to += ld) {
        const int64_t top = o * p.stride, left = i * p.stride;
        const float* window = p.tap + ((n * p.h + top) * p.w + left) * p.c;
        const int64_t rows_left = smaller(p.kernel, p.h - top), cols_left = smaller(p.kernel, p.w - left);
        if (p.kernel == 2 && rows_left == 2 && cols_left == 2) {
          find_winners(window, 2, 2, stride_h, p.c, 2, to);
        } else if (p.kernel == 3 && rows_left == 3 && cols_left == 3) {
          find_winners(window, 3, 3, stride_h, p.c, 3, to);
        } else {
          find_winners(window, rows_left, cols_left, stride_h, p.c, p.kernel, to);
        }
      }
    }
    const int64_t count_h = rows.end - rows.begin, first_slot = rows.begin % ring;
    Span cols{0, 0};
    for (int64_t col = 0; col < p.w; ++col) {
      TapPixel at{(line * p.w + col) * p.c, 0, 0, 0, nullptr};
      if (count_h > 0) {  // windows_at(col), without its divisions
        if (cols.end < p.out_w && col == cols.end * p.stride) ++cols.end;
        if (col == cols.begin * p.stride + p.kernel) ++cols.begin;
      }
      const int64_t count_w = cols.end - cols.begin;
      if (count_h <= 0 || count_w <= 0) {
        tap_gradient(p, at, 0, 0, winners, ring, ld);
        continue;
      }
      at.place = (row - rows.begin * p.stride) * p.kernel + col - cols.begin * p.stride;
      at.slot = first_slot, at.col = cols.begin;
      at.d_pooled = p.d_pooled + ((n * p.out_h + rows.begin) * p.out_w + cols.begin) * p.c;
      if (count_h == 1 && count_w == 1) {
        tap_gradient(p, at, 1, 1, winners, ring, ld);
      } else if (count_h == 1 && count_w == 2) {
        tap_gradient(p, at, 1, 2, winners, ring, ld);
      } else if (count_h == 2 && count_w == 1) {
        tap_gradient(p, at, 2, 1, winners, ring, ld);
      } else if (count_h == 2 && count_w == 2) {
        tap_gradient(p, at, 2, 2, winners, ring, ld);
      } else {
        tap_gradient(p, at, count_h, count_w, winners, ring, ld);
      }
    }
  }
}
