// The operator trunk_fwd_cpu: the trunk's layers, one after the other. lpips_fast/trunk/operators.py has its contract.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <utility>
#include <vector>

#include "common/team.h"
#include "trunk/convolution.h"
#include "trunk/rows.h"
#include "trunk/tensors.h"
#include "trunk/workspace.h"

namespace lpips_fast::trunk {
namespace {

// The images, and the statistics that scale them.
struct Images {
  std::vector<Tensor> batches;
  int64_t n = 0, c = 0, h = 0, w = 0;
  bool scaled = false;
  std::vector<float> shift, scale;
};

Images checked_images(std::vector<Tensor> batches, const std::optional<Tensor>& shift,
                      const std::optional<Tensor>& scale) {
  Images images;
  STD_TORCH_CHECK(!batches.empty() && batches[0].dim() == 4, "images must be batches [N, C, H, W]");
  images.c = batches[0].size(1), images.h = batches[0].size(2), images.w = batches[0].size(3);
  for (const Tensor& batch : batches) {
    check_float(batch, "images");
    check_shape(batch, batch.dim() == 4 ? batch.size(0) : 0, images.c, images.h, images.w, "images");
    images.n += batch.size(0);
  }
  images.batches = std::move(batches);
  STD_TORCH_CHECK(shift.has_value() == scale.has_value(), "shift and scale come together");
  images.scaled = scale.has_value();
  images.shift = numbers_or(shift, images.c, 0.f, "shift"), images.scale = numbers_or(scale, images.c, 1.f, "scale");
  return images;
}

// What the operator computes, and with what.
struct Forward {
  Images images;
  std::vector<Layer> layers;
  std::vector<Conv> convolutions;  // without the addresses of activations
  Tensor pixels;                   // the image, channels-last, if the first layer takes it so
  std::vector<Tensor> taps, signs;
};

Forward prepared(Images images, const std::vector<Tensor>& filters, const std::vector<int64_t>& program,
                 bool keep_signs) {
  Forward f;
  f.layers = layers_of(program, images.h, images.w);
  STD_TORCH_CHECK(f.layers[0].cin == images.c, "images must have ", f.layers[0].cin, " channels, got ", images.c);
  STD_TORCH_CHECK(filters.size() == 2 * f.layers.size(), "filters must be filters and bias of ", f.layers.size(),
                  " convolutions, got ", filters.size(), " tensors");
  for (size_t i = 0; i < f.layers.size(); ++i) {
    const Layer& l = f.layers[i];
    const Tensor& bias = filters[2 * i + 1];
    Conv p{};
    p.n = images.n, p.in_h = l.in_h, p.in_w = l.in_w, p.cin = l.cin, p.h = l.h, p.w = l.w, p.cout = l.cout;
    p.kernel = l.kernel, p.padding = l.padding;
    p.ld_y = l.channels, p.ld_signs = ceil_div(l.channels, 8);
    if (l.algorithm == Algorithm::phases) {
      p.cin *= l.stride * l.stride, p.kernel = kPhasesReach, p.padding = 0;
      p.phases = l.stride, p.unused_phases = kPhasesReach * l.stride - l.kernel;
      p.in_h = l.h + kPhasesReach - 1, p.in_w = l.w + kPhasesReach - 1;
    }
    p.x_strides = {p.in_h * p.in_w * p.cin, p.in_w * p.cin, p.cin};
    p.filters = checked_filters(filters[2 * i], l.algorithm, p.cin, l.cout, l.kernel, l.stride);
    check_float(bias, "bias");
    STD_TORCH_CHECK(bias.is_contiguous() && bias.numel() == round_up(l.cout, kPanel), "bias must have ",
                    round_up(l.cout, kPanel), " contiguous elements, got ", bias.numel());
    p.bias = bias.const_data_ptr<float>();
    f.convolutions.push_back(p);
    if (l.joined) continue;
    if (l.tap) {
      f.taps.push_back(empty_nhwc(p.n, l.channels, l.h, l.w));
    } else if (keep_signs) {
      f.signs.push_back(torch::stable::empty({p.n, l.h, l.w, p.ld_signs}, ScalarType::Byte));
    }
  }
  const Algorithm first = f.layers[0].algorithm;
  if (first == Algorithm::direct || first == Algorithm::winograd) {
    STD_TORCH_CHECK(images.batches.size() == 1 && !images.scaled, "a program that begins with a direct or winograd ",
                    "convolution takes one batch, without shift and scale");
    f.pixels = dense_nhwc(images.batches[0]);
  }
  f.images = std::move(images);
  return f;
}

// A first layer by the direct convolution of the image's planes.
void run_planes(Team& team, Scratch& scratch, const Images& images, const Layer& l, const Conv& p) {
  float* y = p.y;
  uint8_t* signs = p.signs;
  for (const Tensor& x : images.batches) {
    FirstConv f{};
    f.n = x.size(0), f.h = l.in_h, f.w = l.in_w, f.cin = l.cin, f.cout = l.cout;
    f.kernel = l.kernel, f.stride = l.stride, f.padding = l.padding, f.out_h = l.h, f.out_w = l.w;
    f.x = x.const_data_ptr<float>();
    f.stride_n = x.stride(0), f.stride_c = x.stride(1), f.stride_h = x.stride(2), f.stride_w = x.stride(3);
    f.shift = images.shift.data(), f.scale = images.scale.data();
    f.filters = p.filters, f.bias = p.bias, f.y = y, f.signs = signs;
    run_rows(team, scratch, kernels().first_conv, f, f.n * l.h);
    y += f.n * l.h * l.w * l.cout;
    if (signs) signs += f.n * l.h * l.w * p.ld_signs;
  }
}

// The input of the convolution of stride 1 that phases make of a layer, in `y`.
void cut_into_phases(Team& team, Scratch& scratch, const Images& images, const Layer& l, const Conv& conv, float* y) {
  for (const Tensor& x : images.batches) {
    Phases p{};
    p.n = x.size(0), p.h = l.in_h, p.w = l.in_w, p.cin = l.cin;
    p.out_h = conv.in_h, p.out_w = conv.in_w, p.stride = l.stride, p.padding = l.padding;
    p.x = x.const_data_ptr<float>();
    p.stride_n = x.stride(0), p.stride_c = x.stride(1), p.stride_h = x.stride(2), p.stride_w = x.stride(3);
    p.shift = images.shift.data(), p.scale = images.scale.data(), p.y = y;
    run_rows(team, scratch, kernels().phases, p, p.n * p.out_h);
    y += p.n * conv.x_strides.stride_n;
  }
}

void run(Team& team, Workspace& space, Forward& f) {
  const int64_t n = f.images.n;
  auto tap = f.taps.begin(), sign = f.signs.begin();
  const float* x = f.pixels.defined() ? f.pixels.const_data_ptr<float>() : nullptr;
  float* y = nullptr;
  for (size_t i = 0; i < f.layers.size(); ++i) {
    const Layer& l = f.layers[i];
    const Layer& end = f.layers[i + l.joined];  // of the step
    Conv& p = f.convolutions[i];
    if (i == 0 || !f.layers[i - 1].joined)
      y = end.tap ? tap->mutable_data_ptr<float>() : space.apart_from({x}, n * l.h * l.w * l.channels);
    if (l.algorithm == Algorithm::phases) {
      float* const cut = space.apart_from({y}, n * p.x_strides.stride_n);
      cut_into_phases(team, space.scratch, f.images, l, p, cut);
      x = cut;
    }
    p.x = x, p.y = y + l.first_channel;
    if (!end.tap && !f.signs.empty()) p.signs = sign->mutable_data_ptr<uint8_t>() + l.first_channel / 8;
    float* pooled = nullptr;
    if (l.pool_kernel) pooled = space.apart_from({x, y}, n * l.pooled_h * l.pooled_w * l.channels);
    if (l.algorithm == Algorithm::first) {
      run_planes(team, space.scratch, f.images, l, p);
    } else if (l.algorithm == Algorithm::direct) {
      conv_direct(team, space.scratch, p);
    } else {
      const bool is_2x2 = l.pool_kernel == 2 && l.pool_stride == 2 && !l.pool_ceil;
      if (is_2x2 && l.channels == l.cout) p.pooled = pooled;
      conv_winograd_with_repeats(team, space.scratch, p);
    }
    if (l.joined) continue;
    if (pooled && !p.pooled) {
      const MaxPool pool{n, l.h, l.w, l.channels, l.pool_kernel, l.pool_stride, l.pooled_h, l.pooled_w, y, pooled};
      run_rows(team, space.scratch, kernels().max_pool, pool, n * l.pooled_h);
    }
    x = pooled ? pooled : y;
    if (l.tap) {
      ++tap;
    } else if (!f.signs.empty()) {
      ++sign;
    }
  }
}

std::vector<Tensor> trunk_fwd(std::vector<Tensor> images, std::optional<Tensor> shift, std::optional<Tensor> scale,
                              std::vector<Tensor> filters, std::vector<int64_t> program, bool signs) {
  Forward f = prepared(checked_images(std::move(images), shift, scale), filters, program, signs);
  if (f.images.n > 0) {
    Workspace::use([&](Workspace& space) {
      Team::run(threads_for(f.layers, f.images.n), [&](Team& team) { run(team, space, f); });
    });
  }
  f.taps.insert(f.taps.end(), f.signs.begin(), f.signs.end());
  return f.taps;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lpips_fast, CPU, m) { m.impl("trunk_fwd_cpu", TORCH_BOX(&trunk_fwd)); }

}  // namespace lpips_fast::trunk
