// The operator trunk_fwd_cpu: the trunk's layers, one after the other. lpips_fast/trunk/operators.py has its contract.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <vector>

#include "common/team.h"
#include "trunk/convolution.h"
#include "trunk/tensors.h"
#include "trunk/workspace.h"

namespace lpips_fast::trunk {
namespace {

// The images, the statistics that scale them, and the scratch of the layers that read them.
struct Images {
  std::vector<Tensor> batches;
  int64_t n = 0, c = 0, h = 0, w = 0;
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
  images.shift.assign(images.c, 0.f), images.scale.assign(images.c, 1.f);
  if (shift) {
    for (const Tensor* t : {&*shift, &*scale}) {
      check_float(*t, "shift and scale");
      STD_TORCH_CHECK(t->numel() == images.c && t->is_contiguous(), "shift and scale must be ", images.c,
                      " contiguous numbers");
    }
    std::copy_n(shift->const_data_ptr<float>(), images.c, images.shift.begin());
    std::copy_n(scale->const_data_ptr<float>(), images.c, images.scale.begin());
  }
  return images;
}

void run_first(Team& team, Scratch& scratch, const Images& images, const Layer& l, const Conv& p) {
  const Kernels& k = kernels();
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
    constexpr int64_t some_rows = 8;
    const int64_t each = round_up(scratch_floats(f), kPanel);
    float* const memory = scratch.floats(team.size() * each);
    team.for_each_range(f.n * l.h, some_rows, [&](int64_t worker, int64_t begin, int64_t end) {
      k.first_conv(f, begin, end, memory + worker * each);
    });
    y += f.n * l.h * l.w * l.cout;
    if (signs) signs += f.n * l.h * l.w * ceil_div(l.cout, 8);
  }
}

// The input of the convolution of stride 1 that the phases make of a layer, in `y`.
void cut_into_phases(Team& team, Scratch& scratch, const Images& images, const Layer& l, float* y) {
  for (const Tensor& x : images.batches) {
    Phases p{};
    p.n = x.size(0), p.h = l.in_h, p.w = l.in_w, p.cin = l.cin;
    p.out_h = l.h + kPhasesReach - 1, p.out_w = l.w + kPhasesReach - 1, p.stride = l.stride, p.padding = l.padding;
    p.x = x.const_data_ptr<float>();
    p.stride_n = x.stride(0), p.stride_c = x.stride(1), p.stride_h = x.stride(2), p.stride_w = x.stride(3);
    p.shift = images.shift.data(), p.scale = images.scale.data(), p.y = y;
    constexpr int64_t some_rows = 4;
    const int64_t each = round_up(scratch_floats(p), kPanel);
    float* const memory = scratch.floats(team.size() * each);
    team.for_each_range(p.n * p.out_h, some_rows, [&](int64_t worker, int64_t begin, int64_t end) {
      kernels().phases(p, begin, end, memory + worker * each);
    });
    y += p.n * p.out_h * p.out_w * l.cin * l.stride * l.stride;
  }
}

void run_pool(Team& team, const Layer& l, int64_t n, const float* x, float* y) {
  const MaxPool p{n, l.h, l.w, l.channels, l.pool_kernel, l.pool_stride, l.pooled_h, l.pooled_w, x, y};
  constexpr int64_t some_rows = 4;
  team.for_each_range(n * l.pooled_h, some_rows,
                      [&](int64_t, int64_t begin, int64_t end) { kernels().max_pool(p, begin, end); });
}

std::vector<Tensor> trunk_fwd(std::vector<Tensor> batches, std::optional<Tensor> shift, std::optional<Tensor> scale,
                              std::vector<Tensor> filters, std::vector<int64_t> program, bool keep_signs) {
  const Images images = checked_images(std::move(batches), shift, scale);
  const int64_t n = images.n;
  const std::vector<Layer> layers = layers_of(program, images.h, images.w);
  STD_TORCH_CHECK(layers[0].cin == images.c, "images must have ", layers[0].cin, " channels, got ", images.c);
  STD_TORCH_CHECK(filters.size() == 2 * layers.size(), "filters must be filters and bias of ", layers.size(),
                  " convolutions, got ", filters.size(), " tensors");

  // All that can fail comes first: the threads must not.
  std::vector<Conv> convolutions;
  std::vector<Tensor> taps, signs;
  for (size_t i = 0; i < layers.size(); ++i) {
    const Layer& l = layers[i];
    const Tensor& bias = filters[2 * i + 1];
    Conv p{};
    p.n = n, p.in_h = l.in_h, p.in_w = l.in_w, p.cin = l.cin, p.h = l.h, p.w = l.w, p.cout = l.cout;
    p.kernel = l.kernel, p.padding = l.padding;
    p.ld_y = l.channels, p.ld_signs = ceil_div(l.channels, 8);
    check_float(bias, "bias");
    STD_TORCH_CHECK(bias.is_contiguous() && bias.numel() == round_up(l.cout, kPanel), "bias must have ",
                    round_up(l.cout, kPanel), " contiguous elements, got ", bias.numel());
    p.bias = bias.const_data_ptr<float>();
    if (l.algorithm == Algorithm::phases) {
      p.cin *= l.stride * l.stride, p.kernel = kPhasesReach, p.padding = 0;
      p.phases = l.stride, p.unused_phases = kPhasesReach * l.stride - l.kernel;
      p.in_h = l.h + kPhasesReach - 1, p.in_w = l.w + kPhasesReach - 1;
    }
    p.filters = checked_filters(filters[2 * i], l.algorithm, p.cin, l.cout, l.kernel, l.stride);
    convolutions.push_back(p);
    if (l.joined) continue;
    if (l.tap) {
      taps.push_back(empty_nhwc(n, l.channels, l.h, l.w));
    } else if (keep_signs) {
      signs.push_back(torch::stable::empty({n, l.h, l.w, p.ld_signs}, ScalarType::Byte));
    }
  }
  const bool from_pixels = layers[0].algorithm == Algorithm::direct || layers[0].algorithm == Algorithm::winograd;
  STD_TORCH_CHECK(!from_pixels || (images.batches.size() == 1 && !scale),
                  "a program that begins with a direct or winograd convolution takes one batch, without shift and scale");
  const Tensor pixels = from_pixels ? dense_nhwc(images.batches[0]) : Tensor();

  const auto run = [&](Team& team, Workspace& space) {
    auto tap = taps.begin(), sign = signs.begin();
    const float* x = from_pixels ? pixels.const_data_ptr<float>() : nullptr;
    float* y = nullptr;
    float* pooled = nullptr;
    for (size_t i = 0; i < layers.size(); ++i) {
      const Layer& l = layers[i];
      Conv& p = convolutions[i];
      const Layer& end = layers[i + l.joined];  // of the step
      const bool begins = i == 0 || !layers[i - 1].joined;
      if (begins) {
        const int64_t count = n * l.h * l.w * l.channels;
        y = end.tap ? tap->mutable_data_ptr<float>() : space.apart_from({x}, count);
      }
      if (l.algorithm == Algorithm::phases) {
        float* const cut = space.apart_from({y}, n * p.in_h * p.in_w * p.cin);
        cut_into_phases(team, space.scratch, images, l, cut);
        x = cut;
      }
      p.x = x, p.y = y + l.first_channel;
      p.x_strides = {p.in_h * p.in_w * p.cin, p.in_w * p.cin, p.cin};
      if (!end.tap && keep_signs) p.signs = sign->mutable_data_ptr<uint8_t>() + l.first_channel / 8;
      const bool pools_2x2 = l.pool_kernel == 2 && l.pool_stride == 2 && !l.pool_ceil;
      if (l.pool_kernel) pooled = space.apart_from({x, y}, n * l.pooled_h * l.pooled_w * l.channels);
      switch (l.algorithm) {
        case Algorithm::first:
          run_first(team, space.scratch, images, l, p);
          break;
        case Algorithm::direct:
          conv_direct(team, space.scratch, p);
          break;
        default:
          if (pools_2x2 && l.channels == l.cout) p.pooled = pooled;
          conv_winograd_with_repeats(team, space.scratch, p);
      }
      if (l.joined) continue;
      if (l.pool_kernel && !p.pooled) run_pool(team, l, n, y, pooled);
      x = l.pool_kernel ? pooled : y;
      if (l.tap) {
        ++tap;
      } else if (keep_signs) {
        ++sign;
      }
    }
  };
  if (n > 0) {
    Workspace::use([&](Workspace& space) {
      Team::run(threads_for(layers, n), [&](Team& team) { run(team, space); });
    });
  }
  taps.insert(taps.end(), signs.begin(), signs.end());
  return taps;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lpips_fast, CPU, m) { m.impl("trunk_fwd_cpu", TORCH_BOX(&trunk_fwd)); }

}  // namespace lpips_fast::trunk
