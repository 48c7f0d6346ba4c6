// The operator trunk_bwd_cpu: the gradient of the taps to the images, layer by layer from the last one back.
// lpips_fast/trunk/operators.py has its contract.
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

// What the operator computes, and with what.
struct Backward {
  int64_t n;
  std::vector<Layer> layers;
  std::vector<Conv> convolutions;  // without the addresses of activations
  std::vector<Tensor> taps, signs, d_taps;
  std::vector<float> scale;
  Tensor d_images;
};

// d_x of a layer from d_y, the channels [first_channel, first_channel + cout) of its step's gradient.
Conv gradient_of(const Layer& l, int64_t n, const Tensor& filters) {
  Conv p{};
  p.n = n, p.in_h = l.h, p.in_w = l.w, p.cin = l.cout, p.h = l.in_h, p.w = l.in_w, p.cout = l.cin;
  p.kernel = l.kernel, p.padding = l.kernel - 1 - l.padding;
  if (l.gradient == Algorithm::phases) {
    p.cout *= l.stride * l.stride, p.kernel = kPhasesReach, p.padding = kPhasesReach - 1;
    p.h = l.h + kPhasesReach - 1, p.w = l.w + kPhasesReach - 1;
  }
  p.x_strides = {l.h * l.w * l.channels, l.w * l.channels, l.channels};
  p.ld_y = p.cout, p.transposed = l.gradient == Algorithm::transposed;
  p.filters = checked_filters(filters, l.gradient, l.cout, p.cout, l.kernel, l.stride);
  return p;
}

Backward prepared(std::vector<Tensor> taps, std::vector<Tensor> signs, std::vector<Tensor> d_taps,
                  const std::optional<Tensor>& scale, const std::vector<Tensor>& filters,
                  const std::vector<int64_t>& program, int64_t height, int64_t width) {
  Backward b{};
  b.layers = layers_of(program, height, width);
  STD_TORCH_CHECK(filters.size() == b.layers.size(), "filters must be those of ", b.layers.size(),
                  " convolutions, got ", filters.size(), " tensors");
  size_t n_taps = 0, n_signs = 0;
  for (const Layer& l : b.layers)
    if (!l.joined) ++(l.tap ? n_taps : n_signs);
  STD_TORCH_CHECK(taps.size() == n_taps && d_taps.size() == n_taps && signs.size() == n_signs, "the program has ",
                  n_taps, " taps and ", n_signs, " signs, got ", taps.size(), " taps, ", d_taps.size(), " d_taps and ",
                  signs.size(), " signs");
  STD_TORCH_CHECK(taps[0].dim() == 4, "taps must be [N, C, H, W]");
  b.n = taps[0].size(0);
  auto tap = taps.begin(), d_tap = d_taps.begin(), sign = signs.begin();
  for (size_t i = 0; i < b.layers.size(); ++i) {
    const Layer& l = b.layers[i];
    STD_TORCH_CHECK(!l.joined || !b.layers[i - 1].tap,
                    "program: there is no gradient of joined convolutions after a tap");
    b.convolutions.push_back(gradient_of(l, b.n, filters[i]));
    if (l.joined) continue;
    if (l.tap) {
      for (Tensor* t : {&*tap++, &*d_tap++}) {
        check_float(*t, "taps and d_taps");
        check_shape(*t, b.n, l.channels, l.h, l.w, "taps and d_taps");
        *t = dense_nhwc(*t);
      }
    } else {
      const int64_t bytes = b.n * l.h * l.w * ceil_div(l.channels, 8);
      STD_TORCH_CHECK(sign->is_cpu() && sign->scalar_type() == ScalarType::Byte && sign->is_contiguous() &&
                          sign->numel() == bytes,
                      "signs must be uint8 [N, H, W, ceil(C / 8)]: ", bytes, " bytes after convolution ", i);
      ++sign;
    }
  }
  b.taps = std::move(taps), b.signs = std::move(signs), b.d_taps = std::move(d_taps);
  const int64_t channels = b.layers[0].cin;
  b.scale = numbers_or(scale, channels, 1.f, "scale");
  b.d_images = in_large_pages(torch::stable::empty({b.n, channels, height, width}, ScalarType::Float));
  return b;
}

void run_conv(Team& team, Scratch& scratch, const Layer& l, const Conv& p) {
  l.gradient == Algorithm::direct ? conv_direct(team, scratch, p) : conv_winograd(team, scratch, p);
}

// The gradient at the input of a tap's ReLU. d_pooled is dL/d(output of the pool after the tap), or null.
void run_tap(Team& team, Scratch& scratch, const Layer& l, int64_t n, const Tensor& tap, const Tensor& d_tap,
             const float* d_pooled, float* d_out) {
  TapGradient g{};
  g.n = n, g.h = l.h, g.w = l.w, g.c = l.channels;
  if (d_pooled) g.kernel = l.pool_kernel, g.stride = l.pool_stride, g.out_h = l.pooled_h, g.out_w = l.pooled_w;
  g.tap = tap.const_data_ptr<float>(), g.d_tap = d_tap.const_data_ptr<float>(), g.d_pooled = d_pooled, g.d_out = d_out;
  run_rows(team, scratch, kernels().tap_backward, g, n * l.h);
}

// dL/dimages from dL/d(the input of the first ReLU).
void run_to_images(Team& team, Workspace& space, Backward& b) {
  const Layer& l = b.layers[0];
  Conv& p = b.convolutions[0];
  float* const d_x = b.d_images.mutable_data_ptr<float>();
  if (l.gradient == Algorithm::columns) {
    ImageGradient g{};
    g.n = b.n, g.h = l.in_h, g.w = l.in_w, g.out_h = l.h, g.out_w = l.w, g.cin = l.cin, g.cout = l.cout;
    g.kernel = l.kernel, g.stride = l.stride, g.padding = l.padding;
    g.d_y = p.x, g.filters = p.filters, g.scale = b.scale.data(), g.d_x = d_x;
    run_rows(team, space.scratch, kernels().image_gradient, g, g.n * g.h);
    return;
  }
  p.y = space.apart_from({p.x}, b.n * p.h * p.w * p.cout);
  run_conv(team, space.scratch, l, p);
  PhasesGradient g{b.n, l.in_h, l.in_w, l.cin, p.h, p.w, l.stride, l.padding, p.y, b.scale.data(), d_x};
  if (l.gradient != Algorithm::phases) g.stride = 1, g.padding = 0;
  run_rows(team, space.scratch, kernels().phases_gradient, g, g.n * g.h);
}

void run(Team& team, Workspace& space, Backward& b) {
  const std::vector<Layer>& layers = b.layers;
  auto tap = b.taps.end(), d_tap = b.d_taps.end(), sign = b.signs.end();
  size_t last = layers.size() - 1;  // of a step
  float* grad = space.apart_from({}, b.n * layers[last].h * layers[last].w * layers[last].channels);
  run_tap(team, space.scratch, layers[last], b.n, *--tap, *--d_tap, nullptr, grad);
  for (;;) {
    // Here grad is dL/d(the input of the step's ReLU). The lines below make it the same for the step before.
    const bool pair = last > 0 && layers[last - 1].joined;
    const size_t first = last - pair;
    Conv& p = b.convolutions[last];
    p.x = grad + layers[last].first_channel;
    if (first == 0) break;
    if (pair) {
      Conv& other = b.convolutions[first];
      other.x = grad, other.y = space.apart_from({grad}, b.n * other.h * other.w * other.cout);
      run_conv(team, space.scratch, layers[first], other);
      p.addend = other.y;
    }
    const Layer& before = layers[first - 1];
    // An addend is read before the output is written in its place.
    p.y = pair ? b.convolutions[first].y : space.apart_from({grad}, b.n * p.h * p.w * p.cout);
    if (!before.tap) {
      p.mask_signs = (--sign)->const_data_ptr<uint8_t>(), p.ld_signs = ceil_div(before.channels, 8);
    } else if (--tap, --d_tap; before.pool_kernel == 0) {
      p.mask = tap->const_data_ptr<float>(), p.addend = d_tap->const_data_ptr<float>();
    }
    run_conv(team, space.scratch, layers[last], p);
    grad = p.y;
    if (before.pool_kernel > 0) {
      grad = space.apart_from({p.y}, b.n * before.h * before.w * before.channels);
      run_tap(team, space.scratch, before, b.n, *tap, *d_tap, p.y, grad);
    }
    last = first - 1;
  }
  run_to_images(team, space, b);
}

Tensor trunk_bwd(std::vector<Tensor> taps, std::vector<Tensor> signs, std::vector<Tensor> d_taps,
                 std::optional<Tensor> scale, std::vector<Tensor> filters, std::vector<int64_t> program, int64_t height,
                 int64_t width) {
  Backward b = prepared(std::move(taps), std::move(signs), std::move(d_taps), scale, filters, program, height, width);
  if (b.n > 0) {
    Workspace::use([&](Workspace& space) {
      Team::run(threads_for(b.layers, b.n), [&](Team& team) { run(team, space, b); });
    });
  }
  return b.d_images;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lpips_fast, CPU, m) { m.impl("trunk_bwd_cpu", TORCH_BOX(&trunk_bwd)); }

}  // namespace lpips_fast::trunk
