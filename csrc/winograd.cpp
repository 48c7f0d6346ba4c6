// The CPU trunk's operators: 3x3 convolutions by Winograd's algorithm, the first layer, the pool's gradient, and the
// signs of other layers' ReLUs.
//
// The tiles go through in blocks, and a block through three steps (winograd/transforms.inl): input transform, 36 matrix
// products, output transform. Where there are blocks enough, each thread takes whole blocks and keeps its own V and M in its
// cache. Where there are few tiles or the filters are large, all threads work on one block, step by step, and the
// transformed filters pass through the cache once for all of them.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "winograd/repeats.h"
#include "winograd/winograd.h"

namespace lpips_fast::winograd {
namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
float maximum(float a, float b) { return a != a ? a : (a > b ? a : b); }  // a NaN stays, as in torch

// The best kernels for this processor, or those that LPIPS_FAST_CPU_ISA names, so that others can be tested.
const Kernels& kernels() {
  static const Kernels* const chosen = [] {
    const char* const wanted = std::getenv("LPIPS_FAST_CPU_ISA");
    for (const Kernels* k : {kernels_avx512(), kernels_avx2(), kernels_portable()})
      if (k && (!wanted || !std::strcmp(wanted, k->name))) return k;
    return static_cast<const Kernels*>(nullptr);
  }();
  STD_TORCH_CHECK(chosen, "lpips_fast has no convolutions for this processor");
  return *chosen;
}

// Calls f(worker, job) for every job, each worker (one a thread) taking the next that is free.
template <typename F>
void for_each_job(int64_t jobs, const F& f) {
  const int64_t workers = std::min<int64_t>(jobs, torch::stable::get_num_threads());
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker)
      for (int64_t job; (job = next.fetch_add(1, std::memory_order_relaxed)) < jobs;) f(worker, job);
  });
}

// Large memory is fresh from the kernel each time, and to map it in small pages costs as much as to fill it.
Tensor in_large_pages(Tensor t) {
#if defined(__linux__)
  constexpr uintptr_t page = 4096, least = 4 << 20;
  const auto begin = reinterpret_cast<uintptr_t>(t.mutable_data_ptr<float>());
  const uintptr_t end = (begin + t.numel() * sizeof(float)) / page * page, first = (begin + page - 1) / page * page;
  if (end > first + least) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#endif
  return t;
}

Tensor scratch(int64_t floats) { return in_large_pages(torch::stable::empty({floats}, ScalarType::Float)); }

// The start of scratch memory on a cache line.
float* aligned(const Tensor& t) {
  const auto address = reinterpret_cast<uintptr_t>(t.mutable_data_ptr<float>());
  return reinterpret_cast<float*>(round_up(address, 64));
}

// How the tiles go through, from sizes and the number of threads alone.
struct Plan {
  int64_t block;  // tiles
  bool shared;    // all threads on one block
};

Plan plan(int64_t tiles, int64_t cin, int64_t cout, int64_t rows, int64_t threads) {
  // More tiles a block mean fewer passes of the filters, fewer tiles a V and M nearer to the processor: measured.
  constexpr int64_t most_bytes = 20 << 20;
  const int64_t bytes = kPoints * sizeof(float) * (cin + cout);
  const int64_t own = round_up(std::clamp<int64_t>((cin + cout) * 3 / 16, 24, 96), rows);
  if (threads == 1 || (ceil_div(tiles, own) >= 4 * threads && threads * own * bytes <= most_bytes))
    return {std::min(own, tiles), false};
  const int64_t blocks = ceil_div(tiles, std::max(most_bytes / bytes, rows));
  return {std::min(round_up(ceil_div(tiles, blocks), rows), tiles), true};
}

// The tiles [0, tiles), or as many of p.chosen.
void run_tiles(Conv& p, int64_t tiles) {
  const Kernels& k = kernels();
  p.ld_v = round_up(p.cin, kPanel), p.ld_m = round_up(p.cout, kPanel);
  const int64_t patch = kPoints * p.ld_v, panels = p.ld_m / kPanel;
  const int64_t threads = torch::stable::get_num_threads();
  const auto [block, shared] = plan(tiles, p.ld_v, p.ld_m, k.rows, threads);
  // A line more than a power of two from point to point, or all 36 would fall on the same lines of the cache.
  p.point_v = block * p.ld_v + kPanel, p.point_m = block * p.ld_m + kPanel;
  const int64_t size_v = kPoints * p.point_v, size_m = kPoints * p.point_m;

  if (!shared) {
    const int64_t each = size_v + size_m + patch;
    const Tensor memory = scratch(threads * each + kPanel);
    float* const base = aligned(memory);
    for_each_job(ceil_div(tiles, block), [&, block = block](int64_t worker, int64_t job) {
      float* const v = base + worker * each;
      float* const m = v + size_v;
      const int64_t begin = job * block, end = std::min(begin + block, tiles);
      k.transform_input(p, begin, end, v, m + size_m);
      for (int64_t point = 0; point < kPoints; ++point) k.multiply(p, point, end - begin, 0, panels, v, m);
      k.transform_output(p, begin, end, m);
    });
    return;
  }
  const Tensor memory = scratch(size_v + size_m + threads * patch + kPanel);
  float* const v = aligned(memory);
  float* const m = v + size_v;
  float* const patches = m + size_m;
  constexpr int64_t some_tiles = 4, some_panels = 8;
  for (int64_t begin = 0; begin < tiles; begin += block) {
    const int64_t count = std::min(block, tiles - begin);
    for_each_job(ceil_div(count, some_tiles), [&](int64_t worker, int64_t job) {
      const int64_t first = job * some_tiles, last = std::min(first + some_tiles, count);
      k.transform_input(p, begin + first, begin + last, v + first * p.ld_v, patches + worker * patch);
    });
    const int64_t groups = ceil_div(panels, some_panels);
    for_each_job(kPoints * groups, [&](int64_t, int64_t job) {
      const int64_t first = job % groups * some_panels;
      k.multiply(p, job / groups, count, first, std::min(first + some_panels, panels), v, m);
    });
    for_each_job(ceil_div(count, some_tiles), [&](int64_t, int64_t job) {
      const int64_t first = job * some_tiles, last = std::min(first + some_tiles, count);
      k.transform_output(p, begin + first, begin + last, m + first * p.ld_m);
    });
  }
}

void set_tiles(Conv& p) { p.tiles_h = ceil_div(p.h, kTile), p.tiles_w = ceil_div(p.w, kTile); }

void run(Conv& p) {
  set_tiles(p);
  if (const int64_t tiles = p.n * p.tiles_h * p.tiles_w) run_tiles(p, tiles);
}

// Fills in the outputs that are copies: y, its signs, and the pool's windows that hold one.
void copy_repeats(const Conv& p, const Repeats& repeats) {
  const int64_t bytes = ceil_div(p.cout, 8), pairs = ceil_div(p.h, 2);
  for_each_job(p.n * pairs, [&](int64_t, int64_t job) {
    const int64_t n = job / pairs, top = job % pairs * 2;
    if (!repeats.has_candidates(n)) return;
    const int64_t image = n * p.h * p.w;
    const auto y = [&](int64_t i) { return p.y + (image + i) * p.cout; };
    const auto signs = [&](int64_t i) { return p.signs + (image + i) * bytes; };
    std::vector<uint8_t> touched(p.w);  // the columns that hold a copy
    for (int64_t i = top * p.w; i < std::min(top + 2, p.h) * p.w; ++i) {
      const int64_t origin = repeats.origin(n, i);
      if (i == origin) continue;
      std::memcpy(y(i), y(origin), p.cout * sizeof(float));
      if (p.signs) std::memcpy(signs(i), signs(origin), bytes);
      touched[i % p.w] = 1;
    }
    if (!p.pooled || top + 1 == p.h) return;
    for (int64_t col = 0; col + 1 < p.w; col += 2) {
      if (!touched[col] && !touched[col + 1]) continue;
      const float* const first = y(top * p.w + col);
      const float* const below = first + p.w * p.cout;
      float* const pooled = p.pooled + ((n * (p.h / 2) + top / 2) * (p.w / 2) + col / 2) * p.cout;
      for (int64_t c = 0; c < p.cout; ++c) {
        const float above = maximum(first[c], first[p.cout + c]);
        pooled[c] = maximum(above, maximum(below[c], below[p.cout + c]));
      }
    }
  });
}

// As run, but outputs of equal inputs are equal to the bit (winograd/repeats.h).
void run_with_repeats(Conv& p) {
  set_tiles(p);
  if (p.n == 0) return;
  Repeats repeats(p, ceil_div(torch::stable::get_num_threads(), p.n));
  const auto each = [&](int64_t count, int64_t at_once, void (Repeats::*step)(int64_t)) {
    for_each_job(ceil_div(count, at_once), [&](int64_t, int64_t job) {
      for (int64_t i = job * at_once; i < std::min((job + 1) * at_once, count); ++i) (repeats.*step)(i);
    });
  };
  constexpr int64_t some_rows = 16;
  each(repeats.padded_rows(), some_rows, &Repeats::make_keys);
  each(repeats.rows(), some_rows, &Repeats::combine_keys);
  each(repeats.parts(), 1, &Repeats::find_candidates);
  if (!repeats.any_candidates()) return run(p);
  each(repeats.padded_rows(), some_rows, &Repeats::hash_pixels);
  each(repeats.rows_of_tiles(), some_rows / kTile, &Repeats::measure_tiles);
  each(repeats.parts(), 1, &Repeats::find_origins);
  const std::vector<int64_t> tiles = repeats.tiles();
  p.chosen = tiles.data();
  run_tiles(p, tiles.size());
  copy_repeats(p, repeats);
}

void check_float(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float && t.is_cpu(), name, " must be a float32 tensor on the CPU");
}

Tensor empty_nhwc(const Tensor& x, int64_t channels, int64_t h, int64_t w) {
  return in_large_pages(torch::stable::empty({x.size(0), channels, h, w}, ScalarType::Float, std::nullopt,
                                             std::nullopt, std::nullopt, MemoryFormat::ChannelsLast));
}

bool is_nhwc(const Tensor& x) { return x.size(1) == 1 || x.stride(1) == 1; }
Tensor dense_nhwc(const Tensor& x) { return torch::stable::contiguous(x, MemoryFormat::ChannelsLast); }

// `t`, which must be [n, c, h, w], dense in NHWC; an undefined tensor for none.
Tensor dense_nhwc(const std::optional<Tensor>& t, int64_t n, int64_t c, int64_t h, int64_t w, const char* name) {
  if (!t) return Tensor();
  check_float(*t, name);
  STD_TORCH_CHECK(t->dim() == 4 && t->size(0) == n && t->size(1) == c && t->size(2) == h && t->size(3) == w, name,
                  " must be [", n, ", ", c, ", ", h, ", ", w, "]");
  return dense_nhwc(*t);
}

Tensor empty_signs(const Tensor& x, int64_t channels) {
  return torch::stable::empty({x.size(0), x.size(2), x.size(3), ceil_div(channels, 8)}, ScalarType::Byte);
}

const uint8_t* checked_signs(const Tensor& signs, const Tensor& of) {
  STD_TORCH_CHECK(signs.is_cpu() && signs.scalar_type() == ScalarType::Byte && signs.is_contiguous() &&
                      signs.numel() == of.size(0) * of.size(2) * of.size(3) * ceil_div(of.size(1), 8),
                  "signs must be uint8 [N, H, W, ceil(C / 8)]");
  return signs.const_data_ptr<uint8_t>();
}

Conv problem(const Tensor& x, const Tensor& filters, int64_t channels) {
  STD_TORCH_CHECK(x.size(1) > 0 && filters.dim() == 4 && filters.is_contiguous() && filters.size(0) == kPoints &&
                      filters.size(1) == ceil_div(channels, kPanel) && filters.size(2) == x.size(1) &&
                      filters.size(3) == kPanel,
                  "filters must be what winograd_filters gives for ", x.size(1), " input and ", channels,
                  " output channels");
  Conv p{};
  p.n = x.size(0), p.cin = x.size(1), p.h = x.size(2), p.w = x.size(3), p.cout = channels;
  p.x = x.const_data_ptr<float>();
  p.x_strides = {x.stride(0), x.stride(2), x.stride(3)};
  p.filters = filters.const_data_ptr<float>();
  return p;
}

std::vector<Tensor> conv3x3_fwd(Tensor x, const Tensor& filters, const Tensor& bias, bool pool, bool signs) {
  check_float(x, "x"), check_float(filters, "filters"), check_float(bias, "bias");
  STD_TORCH_CHECK(x.dim() == 4, "x must be [N, C, H, W]");
  STD_TORCH_CHECK(bias.dim() == 1 && bias.is_contiguous(), "bias must be one contiguous dimension");
  if (!is_nhwc(x)) x = dense_nhwc(x);
  const int64_t channels = bias.size(0);
  Conv p = problem(x, filters, channels);
  p.bias = bias.const_data_ptr<float>(), p.relu = true;
  std::vector<Tensor> out = {empty_nhwc(x, channels, p.h, p.w)};
  p.y = out[0].mutable_data_ptr<float>();
  if (pool) {
    out.push_back(empty_nhwc(x, channels, p.h / 2, p.w / 2));
    p.pooled = out.back().mutable_data_ptr<float>();
  }
  if (signs) {
    out.push_back(empty_signs(x, channels));
    p.signs = out.back().mutable_data_ptr<uint8_t>();
  }
  run_with_repeats(p);
  return out;
}

Tensor conv3x3_bwd(Tensor d_y, const Tensor& filters, int64_t channels, const std::optional<Tensor>& addend,
                   const std::optional<Tensor>& mask) {
  check_float(d_y, "d_y"), check_float(filters, "filters");
  STD_TORCH_CHECK(d_y.dim() == 4, "d_y must be [N, C, H, W]");
  if (!is_nhwc(d_y)) d_y = dense_nhwc(d_y);
  Conv p = problem(d_y, filters, channels);
  const Tensor d_x = empty_nhwc(d_y, channels, p.h, p.w);
  p.y = d_x.mutable_data_ptr<float>();
  const Tensor added = dense_nhwc(addend, p.n, channels, p.h, p.w, "addend");
  if (addend) p.addend = added.const_data_ptr<float>();
  const bool packed = mask && mask->scalar_type() == ScalarType::Byte;
  const Tensor values = packed ? Tensor() : dense_nhwc(mask, p.n, channels, p.h, p.w, "mask");
  if (packed) {
    p.mask_signs = checked_signs(*mask, d_x);
  } else if (mask) {
    p.mask = values.const_data_ptr<float>();
  }
  run(p);
  return d_x;
}

std::vector<Tensor> conv3x3_first(const Tensor& x, const Tensor& shift, const Tensor& scale, const Tensor& filters,
                                  const Tensor& bias, int64_t channels, bool signs) {
  const Kernels& k = kernels();
  for (const Tensor* t : {&x, &shift, &scale, &filters, &bias}) check_float(*t, "every tensor");
  STD_TORCH_CHECK(x.dim() == 4 && shift.numel() == x.size(1) && scale.numel() == x.size(1) && shift.is_contiguous() &&
                      scale.is_contiguous(),
                  "x must be [N, C, H, W], shift and scale contiguous of C elements");
  const int64_t panels = ceil_div(channels, kPanel);
  STD_TORCH_CHECK(filters.is_contiguous() && filters.numel() == panels * x.size(1) * 9 * kPanel &&
                      bias.is_contiguous() && bias.numel() == panels * kPanel,
                  "filters and bias must be what first_filters gives for ", x.size(1), " input and ", channels,
                  " output channels");
  FirstConv p{};
  p.n = x.size(0), p.cin = x.size(1), p.h = x.size(2), p.w = x.size(3), p.cout = channels;
  p.x = x.const_data_ptr<float>();
  p.stride_n = x.stride(0), p.stride_c = x.stride(1), p.stride_h = x.stride(2), p.stride_w = x.stride(3);
  p.shift = shift.const_data_ptr<float>(), p.scale = scale.const_data_ptr<float>();
  p.filters = filters.const_data_ptr<float>(), p.bias = bias.const_data_ptr<float>();
  std::vector<Tensor> out = {empty_nhwc(x, channels, p.h, p.w)};
  p.y = out[0].mutable_data_ptr<float>();
  if (signs) {
    out.push_back(empty_signs(x, channels));
    p.signs = out[1].mutable_data_ptr<uint8_t>();
  }
  constexpr int64_t some_rows = 8;
  const int64_t rows = p.n * p.h, each = round_up(3 * p.cin * (p.w + 2), kPanel);
  const Tensor memory = scratch(torch::stable::get_num_threads() * each + kPanel);
  for_each_job(ceil_div(rows, some_rows), [&](int64_t worker, int64_t job) {
    k.first_conv(p, job * some_rows, std::min((job + 1) * some_rows, rows), aligned(memory) + worker * each);
  });
  return out;
}

Tensor relu_pool_bwd(const Tensor& tap, const std::optional<Tensor>& d_head, const std::optional<Tensor>& d_pooled) {
  const Kernels& k = kernels();
  check_float(tap, "tap");
  STD_TORCH_CHECK(tap.dim() == 4, "tap must be [N, C, H, W]");
  ReluPool p{};
  p.n = tap.size(0), p.c = tap.size(1), p.h = tap.size(2), p.w = tap.size(3);
  const Tensor tap_nhwc = dense_nhwc(tap), head = dense_nhwc(d_head, p.n, p.c, p.h, p.w, "d_head"),
               pooled = dense_nhwc(d_pooled, p.n, p.c, p.h / 2, p.w / 2, "d_pooled");
  Tensor d_out = empty_nhwc(tap, p.c, p.h, p.w);
  p.tap = tap_nhwc.const_data_ptr<float>(), p.d_out = d_out.mutable_data_ptr<float>();
  if (d_head) p.d_head = head.const_data_ptr<float>();
  if (d_pooled) p.d_pooled = pooled.const_data_ptr<float>();
  constexpr int64_t some_pairs = 4;
  const int64_t pairs = p.n * ceil_div(p.h, 2);
  for_each_job(ceil_div(pairs, some_pairs), [&](int64_t, int64_t job) {
    k.relu_pool_bwd(p, job * some_pairs, std::min((job + 1) * some_pairs, pairs));
  });
  return d_out;
}

template <typename Problem>
void for_each_pixel(const Tensor& t, void (*kernel)(const Problem&, int64_t, int64_t), const Problem& p) {
  constexpr int64_t some_values = 1 << 14;
  torch::stable::parallel_for(0, t.size(0) * t.size(2) * t.size(3), ceil_div(some_values, std::max<int64_t>(p.c, 1)),
                              [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
}

Tensor pack_signs(const Tensor& y) {
  check_float(y, "y");
  STD_TORCH_CHECK(y.dim() == 4, "y must be [N, C, H, W]");
  const Tensor y_nhwc = dense_nhwc(y);
  Tensor signs = empty_signs(y, y.size(1));
  for_each_pixel(y, kernels().pack_signs,
                 Signs{y.size(1), y_nhwc.const_data_ptr<float>(), signs.mutable_data_ptr<uint8_t>()});
  return signs;
}

Tensor mask_by_signs(const Tensor& d_y, const Tensor& signs, const std::optional<Tensor>& addend) {
  check_float(d_y, "d_y");
  STD_TORCH_CHECK(d_y.dim() == 4, "d_y must be [N, C, H, W]");
  const int64_t n = d_y.size(0), c = d_y.size(1), h = d_y.size(2), w = d_y.size(3);
  const Tensor d_nhwc = dense_nhwc(d_y), added = dense_nhwc(addend, n, c, h, w, "addend");
  Tensor d_x = empty_nhwc(d_y, c, h, w);
  for_each_pixel(d_y, kernels().mask_by_signs,
                 SignsMask{c, d_nhwc.const_data_ptr<float>(), addend ? added.const_data_ptr<float>() : nullptr,
                           checked_signs(signs, d_y), d_x.mutable_data_ptr<float>()});
  return d_x;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lpips_fast, CPU, m) {
  if (!kernels_portable()) return;  // a compiler without vector extensions
  m.impl("conv3x3_fwd_cpu", TORCH_BOX(&conv3x3_fwd));
  m.impl("conv3x3_bwd_cpu", TORCH_BOX(&conv3x3_bwd));
  m.impl("conv3x3_first_cpu", TORCH_BOX(&conv3x3_first));
  m.impl("relu_pool_bwd_cpu", TORCH_BOX(&relu_pool_bwd));
  m.impl("pack_signs_cpu", TORCH_BOX(&pack_signs));
  m.impl("mask_by_signs_cpu", TORCH_BOX(&mask_by_signs));
}

}  // namespace lpips_fast::winograd
