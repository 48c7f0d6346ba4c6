// An image cut into phases, and the gradient to it.

void phases(const Phases& p, int64_t begin, int64_t end, float* buffer) {
  const int64_t s = p.stride, ld = p.cin * s * s, width = p.out_w * s;
  for (int64_t line = begin; line < end; ++line) {
    const int64_t n = line / p.out_h, out_row = line % p.out_h;
    float* const y = p.y + line * p.out_w * ld;
    for (int64_t c = 0; c < p.cin; ++c) {
      const float shift = p.shift[c], scale = p.scale[c];
      for (int64_t i = 0; i < s; ++i) {
        const int64_t row = out_row * s + i - p.padding;
        __builtin_memset(buffer, 0, width * sizeof(float));
        if (row >= 0 && row < p.h) {
          const float* const x = p.x + n * p.stride_n + c * p.stride_c + row * p.stride_h;
          const int64_t count = smaller(p.w, width - p.padding);
          for (int64_t j = 0; j < count; ++j) buffer[p.padding + j] = x[j * p.stride_w];
          for (int64_t j = p.padding; j < p.padding + count; ++j) buffer[j] = (buffer[j] - shift) / scale;
        }
        float* const to = y + (c * s + i) * s;
        if (s == 4) {  // one copy of 16 bytes, which a call of memcpy would not be
          for (int64_t j = 0; j < p.out_w; ++j) __builtin_memcpy(to + j * ld, buffer + j * 4, 4 * sizeof(float));
        } else {
          for (int64_t j = 0; j < p.out_w; ++j) __builtin_memcpy(to + j * ld, buffer + j * s, s * sizeof(float));
        }
      }
    }
  }
}

void phases_gradient(const PhasesGradient& p, int64_t begin, int64_t end, float*) {
  const int64_t s = p.stride, ld = p.cin * s * s, width = smaller(p.w, p.out_w * s - p.padding);
  for (int64_t line = begin; line < end; ++line) {
    const int64_t n = line / p.h, padded_row = line % p.h + p.padding;
    for (int64_t c = 0; c < p.cin; ++c) {
      float* const d_x = p.d_x + ((n * p.cin + c) * p.h + line % p.h) * p.w;
      __builtin_memset(d_x, 0, p.w * sizeof(float));
      if (padded_row >= p.out_h * s) continue;  // no window reaches the last rows and columns
      const float* const d_y = p.d_y + (n * p.out_h + padded_row / s) * p.out_w * ld + (c * s + padded_row % s) * s;
      const float scale = p.scale[c];
      for (int64_t j = 0; j < width; ++j) {
        const int64_t col = j + p.padding;
        d_x[j] = d_y[col / s * ld + col % s] / scale;
      }
    }
  }
}
