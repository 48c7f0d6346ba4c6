// The operators of the `cpu` backend: head_fwd_cpu, head_maps_fwd_cpu, head_bwd_cpu. lpips_fast/head/operators.py
// states their contract.
//
// One list of tasks of about equal size covers all layers, images and blocks of pixels. Each thread takes the next task
// that is free. The list does not depend on the number of threads, each task writes its sums to a place of its own, and
// the sums are added in the list's order, in float64. So the result is the same to the bit on any number of threads.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <vector>

#include "common/isa.h"
#include "common/memory.h"
#include "common/team.h"
#include "head/cpu/kernels.h"
#include "head/tensors.h"

namespace lpips_fast::cpu {
namespace {

template <typename S>
struct Kernels {
  decltype(&portable::head_fwd_kernel<S>) fwd;
  decltype(&portable::head_bwd_kernel<S>) bwd;
};

template <typename S>
Kernels<S> kernels() {
  switch (isa()) {
#if defined(__x86_64__)
    case Isa::avx512:
    case Isa::avx2:
      return {avx2::head_fwd_kernel<S>, avx2::head_bwd_kernel<S>};
#endif
    default:
      return {portable::head_fwd_kernel<S>, portable::head_bwd_kernel<S>};
  }
}

template <typename T>
View<T> view(const Tensor& tensor) {
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  View<T> v{data_of<T>(tensor), strides[0], strides[1], strides[2], strides[3], sizes[3]};
  if (sizes[3] == 1) v.stride_w = v.stride_h;
  if (sizes[2] <= 1 || sizes[3] == 1 || strides[2] == sizes[3] * strides[3]) v.width = sizes[2] * sizes[3];
  return v;
}

template <typename S>
std::vector<HeadLayer<S>> make_layers(const Tensors& feats0, const Tensors& feats1, const Tensors& weights) {
  std::vector<HeadLayer<S>> layers;
  for (size_t l = 0; l < feats0.size(); ++l) {
    HeadLayer<S> layer{};
    layer.channels = feats0[l].size(1);
    layer.pixels = feats0[l].size(2) * feats0[l].size(3);
    layer.feats0 = view<const S>(feats0[l]);
    layer.feats1 = view<const S>(feats1[l]);
    layer.weights = data_of<const Acc<S>>(weights[l]);
    layers.push_back(layer);
  }
  return layers;
}

template <typename S>
std::vector<HeadTask> make_tasks(const std::vector<HeadLayer<S>>& layers, int64_t n_images) {
  constexpr int64_t kTaskElements = 64 * 1024;
  std::vector<HeadTask> tasks;
  for (size_t l = 0; l < layers.size(); ++l) {
    const int64_t block = plane_block_pixels<Acc<S>>(layers[l].channels);
    const int64_t blocks = std::max<int64_t>(1, kTaskElements / (block * std::max<int64_t>(1, layers[l].channels)));
    for (int64_t n = 0; n < n_images; ++n) {
      for (int64_t first = 0; first < layers[l].pixels; first += blocks * block) {
        tasks.push_back({static_cast<int64_t>(l), n, first, std::min(layers[l].pixels, first + blocks * block)});
      }
    }
  }
  return tasks;
}

// Calls run(i, scratch) for every task i.
template <typename S, typename F>
void run_tasks(const std::vector<HeadLayer<S>>& layers, const std::vector<HeadTask>& tasks, const F& run) {
  using A = Acc<S>;
  int64_t scratch = 0, elements = 0;
  for (const auto& layer : layers) scratch = std::max(scratch, padded<A>(Scratch<A>::elements(layer.channels)));
  for (const HeadTask& task : tasks) elements += (task.last - task.first) * layers[task.layer].channels;
  constexpr int64_t kElements = 1 << 20;  // for each thread: about a millisecond
  const int64_t threads = std::clamp<int64_t>(elements / kElements, 1, torch::stable::get_num_threads());
  const ScratchMemory<A> memory(threads * scratch);
  Team::run(threads, [&](Team& team) {
    team.for_each_job(tasks.size(), [&](int64_t worker, int64_t i) { run(i, memory.data() + worker * scratch); });
  });
}

Tensor head_fwd(const Tensors& feats0, const Tensors& feats1, const Tensors& weights, double eps,
                bool eps_inside_sqrt) {
  const int64_t n_images = feats0[0].size(0), n_layers = feats0.size();
  Tensor out = empty({n_images, n_layers}, accumulation_type(feats0[0]), feats0[0]);
  dispatch<Half, BFloat16>(feats0, [&](auto storage) {
    using S = decltype(storage);
    const auto layers = make_layers<S>(feats0, feats1, weights);
    const auto tasks = make_tasks(layers, n_images);
    std::vector<double> partial(tasks.size()), sums(n_images * n_layers);
    const Norm<Acc<S>> norm{static_cast<Acc<S>>(eps), eps_inside_sqrt};
    const auto kernel = kernels<S>();
    run_tasks(layers, tasks, [&](int64_t i, Acc<S>* scratch) {
      partial[i] = kernel.fwd(layers[tasks[i].layer], tasks[i], norm, scratch);
    });
    for (size_t i = 0; i < tasks.size(); ++i) sums[tasks[i].n * n_layers + tasks[i].layer] += partial[i];
    auto* to = data_of<Acc<S>>(out);
    for (size_t i = 0; i < sums.size(); ++i) to[i] = sums[i] / layers[i % n_layers].pixels;
  });
  return out;
}

Tensors head_maps_fwd(const Tensors& feats0, const Tensors& feats1, const Tensors& weights, double eps,
                      bool eps_inside_sqrt) {
  Tensors maps;
  for (const auto& f : feats0) {
    maps.push_back(empty({f.size(0), 1, f.size(2), f.size(3)}, accumulation_type(f), f));
  }
  dispatch<Half, BFloat16>(feats0, [&](auto storage) {
    using S = decltype(storage);
    auto layers = make_layers<S>(feats0, feats1, weights);
    for (size_t l = 0; l < layers.size(); ++l) layers[l].map = data_of<Acc<S>>(maps[l]);
    const auto tasks = make_tasks(layers, feats0[0].size(0));
    const Norm<Acc<S>> norm{static_cast<Acc<S>>(eps), eps_inside_sqrt};
    const auto kernel = kernels<S>();
    run_tasks(layers, tasks, [&](int64_t i, Acc<S>* scratch) {
      kernel.fwd(layers[tasks[i].layer], tasks[i], norm, scratch);
    });
  });
  return maps;
}

// Sets the layer's s: dL/dD spread over its pixels, or dL/dd.
template <typename S>
void set_grad(HeadLayer<S>& layer, const Tensors& grads, int64_t l, bool mean) {
  if (mean) {
    const auto* data = data_of<const Acc<S>>(grads[0]);
    layer.grad = {data + l * grads[0].stride(1), grads[0].stride(0), 0, 0, 0, layer.pixels};
    layer.grad_scale = Acc<S>(1) / layer.pixels;
  } else {
    layer.grad = view<const Acc<S>>(grads[l]);
  }
}

Tensors head_bwd(const Tensors& grads, const Tensors& feats0, const Tensors& feats1, const Tensors& weights,
                 double eps, bool eps_inside_sqrt, bool mean, bool need_feats0, bool need_feats1, bool need_weights) {
  const int64_t n_images = feats0[0].size(0), n_layers = feats0.size();
  Tensors d_feats0, d_feats1, d_weights;
  for (int64_t l = 0; l < n_layers; ++l) {
    if (need_feats0) d_feats0.push_back(in_large_pages(grad_like(feats0[l])));
    if (need_feats1) d_feats1.push_back(in_large_pages(grad_like(feats1[l])));
    if (need_weights) d_weights.push_back(empty({weights[l].size(0)}, weights[l].scalar_type(), weights[l]));
  }
  dispatch<Half, BFloat16>(feats0, [&](auto storage) {
    using S = decltype(storage);
    using A = Acc<S>;
    // A gradient of this size leaves the cache before it is read. Stores around the caches then save a read of memory.
    constexpr int64_t kStreamBytes = 4 << 20;
    auto layers = make_layers<S>(feats0, feats1, weights);
    for (int64_t l = 0; l < n_layers; ++l) {
      set_grad(layers[l], grads, l, mean);
      if (need_feats0) layers[l].d_feats0 = view<S>(d_feats0[l]);
      if (need_feats1) layers[l].d_feats1 = view<S>(d_feats1[l]);
      layers[l].stream = feats0[l].numel() * static_cast<int64_t>(sizeof(S)) >= kStreamBytes;
    }
    const auto tasks = make_tasks(layers, n_images);
    std::vector<int64_t> offsets(tasks.size());
    int64_t n_partial = 0;
    for (size_t i = 0; need_weights && i < tasks.size(); ++i) {
      offsets[i] = n_partial;
      n_partial += layers[tasks[i].layer].channels;
    }
    std::vector<A> partial(n_partial);
    const Norm<Acc<S>> norm{static_cast<Acc<S>>(eps), eps_inside_sqrt};
    const auto kernel = kernels<S>();
    run_tasks(layers, tasks, [&](int64_t i, A* scratch) {
      kernel.bwd(layers[tasks[i].layer], tasks[i], norm, scratch,
                 need_weights ? partial.data() + offsets[i] : nullptr);
    });
    if (!need_weights) return;

    std::vector<std::vector<double>> sums;
    for (const auto& layer : layers) sums.emplace_back(layer.channels);
    for (size_t i = 0; i < tasks.size(); ++i) {
      auto& sum = sums[tasks[i].layer];
      for (size_t c = 0; c < sum.size(); ++c) sum[c] += partial[offsets[i] + c];
    }
    for (int64_t l = 0; l < n_layers; ++l) {
      std::copy(sums[l].begin(), sums[l].end(), data_of<A>(d_weights[l]));
    }
  });
  Tensors out = std::move(d_feats0);
  out.insert(out.end(), d_feats1.begin(), d_feats1.end());
  out.insert(out.end(), d_weights.begin(), d_weights.end());
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lpips_fast, CPU, m) {
  m.impl("head_fwd_cpu", TORCH_BOX(&head_fwd));
  m.impl("head_maps_fwd_cpu", TORCH_BOX(&head_maps_fwd));
  m.impl("head_bwd_cpu", TORCH_BOX(&head_bwd));
}

}  // namespace lpips_fast::cpu
