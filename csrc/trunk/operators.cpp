// The CPU trunk's operators: 3x3 convolutions by Winograd's algorithm, the first layer, the pool's gradient, and the
// signs of other layers' ReLUs.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "common/integers.h"
#include "common/memory.h"
#include "common/threads.h"
#include "trunk/kernels.h"
#include "trunk/winograd.h"

namespace lpips_fast::trunk {
namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

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
  const ScratchMemory<float> memory(workers_for(ceil_div(rows, some_rows)) * each);
  for_each_range(rows, some_rows, [&](int64_t worker, int64_t begin, int64_t end) {
    k.first_conv(p, begin, end, memory.data() + worker * each);
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
  for_each_range(p.n * ceil_div(p.h, 2), some_pairs,
                 [&](int64_t, int64_t begin, int64_t end) { k.relu_pool_bwd(p, begin, end); });
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
  m.impl("conv3x3_fwd_cpu", TORCH_BOX(&conv3x3_fwd));
  m.impl("conv3x3_bwd_cpu", TORCH_BOX(&conv3x3_bwd));
  m.impl("conv3x3_first_cpu", TORCH_BOX(&conv3x3_first));
  m.impl("relu_pool_bwd_cpu", TORCH_BOX(&relu_pool_bwd));
  m.impl("pack_signs_cpu", TORCH_BOX(&pack_signs));
  m.impl("mask_by_signs_cpu", TORCH_BOX(&mask_by_signs));
}

}  // namespace lpips_fast::trunk
