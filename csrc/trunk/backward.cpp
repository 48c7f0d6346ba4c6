// The operator trunk_bwd_cpu: the gradient of the taps to the images, layer by layer from the last one back.
// lpips_fast/trunk/operators.py has its contract.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <vector>

#include "common/team.h"
#include "trunk/convolution.h"
#include "trunk/tensors.h"
#include "trunk/workspace.h"

namespace lpips_fast::trunk {
namespace {

// d_x of a layer from d_y, the channels [first_channel, first_channel + cout) of its step's gradient.
Conv gradient_of(const Layer& l, int64_t n, const float* d_y, const Tensor& filters) {
  Conv p{};
  p.n = n, p.in_h = l.h, p.in_w = l.w, p.cin = l.cout, p.h = l.in_h, p.w = l.in_w, p.cout = l.cin;
  p.kernel = l.kernel, p.padding = l.kernel - 1 - l.padding;
  if (l.gradient == Algorithm::phases) {
    p.cout *= l.stride * l.stride, p.kernel = kPhasesReach, p.padding = kPhasesReach - 1;
    p.h = l.h + kPhasesReach - 1, p.w = l.w + kPhasesReach - 1;
  }
  p.x = d_y + l.first_channel;
  p.x_strides = {l.h * l.w * l.channels, l.w * l.channels, l.channels};
  p.ld_y = p.cout;
  p.filters = checked_filters(filters, l.gradient, l.cout, p.cout, l.kernel, l.stride);
  return p;
}

void run_conv(Team& team, Scratch& scratch, const Layer& l, const Conv& p) {
  l.gradient == Algorithm::direct ? conv_direct(team, scratch, p) : conv_winograd(team, scratch, p);
}

// dL/dimages of the first layer, divided by the scale, in d_x.
void run_first(Team& team, Workspace& space, const Layer& l, const float* scale, Conv& p,
               float* d_x) {
  const Kernels& k = kernels();
  constexpr int64_t some_rows = 8;
  if (l.gradient == Algorithm::columns) {
    ImageGradient g{};
    g.n = p.n, g.h = l.in_h, g.w = l.in_w, g.out_h = l.h, g.out_w = l.w, g.cin = l.cin, g.cout = l.cout;
    g.kernel = l.kernel, g.stride = l.stride, g.padding = l.padding;
    g.d_y = p.x, g.filters = p.filters, g.scale = scale, g.d_x = d_x;
    const int64_t each = round_up(scratch_floats(g), kPanel);
    float* const memory = space.scratch.floats(team.size() * each);
    team.for_each_range(g.n * g.h, some_rows, [&](int64_t worker, int64_t begin, int64_t end) {
      k.image_gradient(g, begin, end, memory + worker * each);
    });
    return;
  }
  p.y = space.apart_from({p.x}, p.n * p.h * p.w * p.cout);
  run_conv(team, space.scratch, l, p);
  PhasesGradient g{p.n, l.in_h, l.in_w, l.cin, p.h, p.w, l.stride, l.padding, p.y, scale, d_x};
  if (l.gradient != Algorithm::phases) g.stride = 1, g.padding = 0;  // one phase: NHWC becomes NCHW
  team.for_each_range(g.n * g.h, some_rows,
                      [&](int64_t, int64_t begin, int64_t end) { k.phases_gradient(g, begin, end); });
}

// The gradient at the input of a tap's ReLU. d_pooled is dL/d(output of the pool after the tap), or null.
void run_tap(Team& team, Scratch& scratch, const Layer& l, int64_t n, const Tensor& tap, const Tensor& d_tap,
             const float* d_pooled, float* d_out) {
  TapGradient g{};
  g.n = n, g.h = l.h, g.w = l.w, g.c = l.channels;
  if (d_pooled) g.kernel = l.pool_kernel, g.stride = l.pool_stride, g.out_h = l.pooled_h, g.out_w = l.pooled_w;
  g.tap = tap.const_data_ptr<float>(), g.d_tap = d_tap.const_data_ptr<float>(), g.d_pooled = d_pooled, g.d_out = d_out;
  constexpr int64_t some_rows = 8;
  const int64_t each = round_up(scratch_floats(g), kPanel);
  float* const memory = scratch.floats(team.size() * each);
  team.for_each_range(n * l.h, some_rows, [&](int64_t worker, int64_t begin, int64_t end) {
    kernels().tap_backward(g, begin, end, memory + worker * each);
  });
}

Tensor trunk_bwd(std::vector<Tensor> taps, std::vector<Tensor> signs, std::vector<Tensor> d_taps,
                 std::optional<Tensor> scale, std::vector<Tensor> filters, std::vector<int64_t> program, int64_t height,
                 int64_t width) {
  const std::vector<Layer> layers = layers_of(program, height, width);
  STD_TORCH_CHECK(filters.size() == layers.size(), "filters must be those of ", layers.size(), " convolutions, got ",
                  filters.size(), " tensors");
  size_t n_taps = 0, n_signs = 0;
  for (const Layer& l : layers)
    if (!l.joined) ++(l.tap ? n_taps : n_signs);
  STD_TORCH_CHECK(layers.back().tap, "program: the last convolution must be a tap");
  STD_TORCH_CHECK(taps.size() == n_taps && d_taps.size() == n_taps && signs.size() == n_signs, "the program has ",
                  n_taps, " taps and ", n_signs, " signs, got ", taps.size(), " taps, ", d_taps.size(), " d_taps and ",
                  signs.size(), " signs");
  STD_TORCH_CHECK(taps[0].dim() == 4, "taps must be [N, C, H, W]");
  const int64_t n = taps[0].size(0), channels = layers[0].cin;
  std::vector<Conv> convolutions;
  auto tap = taps.begin(), d_tap = d_taps.begin(), sign = signs.begin();
  for (size_t i = 0; i < layers.size(); ++i) {
    const Layer& l = layers[i];
    convolutions.push_back(gradient_of(l, n, nullptr, filters[i]));
    if (l.joined) continue;
    if (l.tap) {
      for (Tensor* t : {&*tap, &*d_tap}) {
        check_float(*t, "taps and d_taps");
        check_shape(*t, n, l.channels, l.h, l.w, "taps and d_taps");
        *t = dense_nhwc(*t);
      }
      ++tap, ++d_tap;
    } else {
      const int64_t bytes = n * l.h * l.w * ceil_div(l.channels, 8);
      STD_TORCH_CHECK(sign->is_cpu() && sign->scalar_type() == ScalarType::Byte && sign->is_contiguous() &&
                          sign->numel() == bytes,
                      "signs must be uint8 [N, H, W, ceil(C / 8)]: ", bytes, " bytes after convolution ", i);
      ++sign;
    }
  }
  std::vector<float> scales(channels, 1.f);
  if (scale) {
    check_float(*scale, "scale");
    STD_TORCH_CHECK(scale->numel() == channels && scale->is_contiguous(), "scale must be ", channels,
                    " contiguous numbers");
    std::copy_n(scale->const_data_ptr<float>(), channels, scales.begin());
  }
  const Tensor d_images = in_large_pages(torch::stable::empty({n, channels, height, width}, ScalarType::Float));

  const auto run = [&](Team& team, Workspace& space) {
    // `grad` is always dL/d(the input of the ReLU of layer i's step).
    size_t i = layers.size() - 1;
    float* grad = space.apart_from({}, n * layers[i].h * layers[i].w * layers[i].channels);
    --tap, --d_tap;
    run_tap(team, space.scratch, layers[i], n, *tap, *d_tap, nullptr, grad);
    for (;; --i) {
      const Layer& l = layers[i];
      Conv& p = convolutions[i];
      p.x = grad + l.first_channel;
      if (i == 0) break;
      const float* d_other = nullptr;  // of the layer that is joined with this one
      if (layers[i - 1].joined) {
        Conv& other = convolutions[--i];
        other.x = grad;
        other.y = space.apart_from({grad}, n * other.h * other.w * other.cout);
        run_conv(team, space.scratch, layers[i], other);
        d_other = p.addend = other.y;
      }
      const Layer& before = layers[i - 1];
      float* const d_x = p.y = space.apart_from({grad, d_other}, n * p.h * p.w * p.cout);
      if (before.tap) {
        --tap, --d_tap;
      } else {
        --sign;
        p.mask_signs = sign->const_data_ptr<uint8_t>(), p.ld_signs = ceil_div(before.channels, 8);
      }
      const bool pooled = before.pool_kernel > 0;
      if (before.tap && !pooled) {
        p.addend = d_tap->const_data_ptr<float>(), p.mask = tap->const_data_ptr<float>();
      }
      run_conv(team, space.scratch, l, p);
      grad = d_x;
      if (pooled) {
        grad = space.apart_from({d_x}, n * before.h * before.w * before.channels);
        run_tap(team, space.scratch, before, n, *tap, *d_tap, d_x, grad);
      }
    }
    run_first(team, space, layers[0], scales.data(), convolutions[0], d_images.mutable_data_ptr<float>());
  };
  if (n > 0) {
    Workspace::use([&](Workspace& space) {
      Team::run(threads_for(layers, n), [&](Team& team) { run(team, space); });
    });
  }
  return d_images;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lpips_fast, CPU, m) { m.impl("trunk_bwd_cpu", TORCH_BOX(&trunk_bwd)); }

}  // namespace lpips_fast::trunk
