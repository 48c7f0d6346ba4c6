// The operators of the `cuda` backend: head_fwd_cuda, head_maps_fwd_cuda, head_bwd_cuda and cuda_error.
// lpips_fast/head/operators.py states their contract. This file cuts the layers into tiles and blocks and launches the
// kernels.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/shim_utils.h>

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "common/integers.h"
#include "head/cuda/kernels.cuh"
#include "head/tensors.h"

// These return the current stream as a cudaStream_t. The first exists from torch 2.13 on, the second in every CUDA
// build of torch. The library loads without either.
extern "C" __attribute__((weak)) AOTITorchError torch_stream_native_handle(StreamHandle stream, void** handle);
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);

namespace lpips_fast {
namespace {

// Makes a tensor's device current, for torch and for the runtime that is linked into this library, and holds its
// stream.
class Device {
 public:
  explicit Device(const Tensor& like) : index_(like.get_device_index()), guard_(index_) {
    check(cudaSetDevice(index_), "cudaSetDevice");
    void* stream = nullptr;
    if (torch_stream_native_handle != nullptr) {
      StreamHandle current = nullptr;
      TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_stream(index_, &current));
      const torch::stable::accelerator::Stream owner(current);
      TORCH_ERROR_CODE_CHECK(torch_stream_native_handle(current, &stream));
    } else {
      STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr, "lpips_fast: this torch has no CUDA streams");
      TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream));
    }
    stream_ = static_cast<cudaStream_t>(stream);
  }

  template <typename... Params, typename... Args>
  void launch(const char* name, dim3 grid, int shared_bytes, void (*kernel)(Params...), Args&&... args) const {
    if (grid.x == 0 || grid.y == 0) return;
    if (shared_bytes > 0) {
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes), name);
      check(
          cudaFuncSetAttribute(
              kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared),
          name);
    }
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream_;
    check(cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...), name);
  }

  // The shared memory of a multiprocessor.
  int shared_bytes() const {
    int bytes = 0;
    check(
        cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerMultiprocessor, index_), "cudaDeviceGetAttribute");
    return bytes;
  }

 private:
  static void check(cudaError_t error, const char* what) {
    STD_TORCH_CHECK(error == cudaSuccess, "lpips_fast: ", what, " failed: ", cudaGetErrorString(error));
  }

  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

// The main kernels for one size of tiles.
template <typename T>
struct MainKernels {
  int packs;  // PACKS
  int shared_bytes;
  void (*fwd)(Layers<T>, Acc<T> eps, bool eps_inside_sqrt);
  void (*bwd)(Layers<T>, Acc<T> eps, bool eps_inside_sqrt);
};

template <typename T, int PACKS>
constexpr MainKernels<T> MAIN_KERNELS = {
    PACKS, sizeof(Shared<T, PACKS>), head_fwd_kernel<T, PACKS>, head_bwd_kernel<T, PACKS>};

// Those of the large tile if two of its blocks fit on a multiprocessor, where CUDA reserves 1 KiB for each block.
template <typename T>
MainKernels<T> main_kernels(const Device& device) {
  constexpr int LARGE_BLOCK = sizeof(Shared<T, LARGE_TILE>) + 1024, SMALL_BLOCK = sizeof(Shared<T, SMALL_TILE>) + 1024;
  static_assert(BLOCKS<LARGE_TILE> * LARGE_BLOCK <= 228 * 1024 && BLOCKS<SMALL_TILE> * SMALL_BLOCK <= 100 * 1024);
  return 2 * LARGE_BLOCK <= device.shared_bytes() ? MAIN_KERNELS<T, LARGE_TILE> : MAIN_KERNELS<T, SMALL_TILE>;
}

// The stride of a dimension of size 1 is never used. It becomes 0, which is a multiple of every alignment.
template <typename T>
View<T> view(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  const auto strides = tensor.strides();
  const auto stride = [&](int dim) { return sizes[dim] == 1 ? 0 : strides[dim]; };
  return {data_of<T>(tensor), stride(0), stride(1), stride(2), stride(3)};
}

// Makes stride_w the stride from pixel to pixel, across rows. If there is none, returns false and changes nothing.
template <typename T>
bool make_linear(View<T>& view, int64_t height, int64_t width) {
  if (width == 1) {
    view.stride_w = view.stride_h;
  } else if (height > 1 && view.stride_h != width * view.stride_w) {
    return false;
  }
  view.stride_h = 0;
  return true;
}

bool aligned(const void* ptr) { return reinterpret_cast<uintptr_t>(ptr) % 16 == 0; }

template <typename T>
bool is_planar(const View<T>& view) {
  constexpr int64_t VEC = Pack<T>::SIZE;
  return view.stride_w == 1 && view.stride_n % VEC == 0 && view.stride_c % VEC == 0 && aligned(view.data);
}

template <typename T>
bool is_channels_last(const View<T>& view) {
  constexpr int64_t VEC = Pack<T>::SIZE;
  return view.stride_c == 1 && view.stride_n % VEC == 0 && view.stride_w % VEC == 0 && aligned(view.data);
}

template <typename T>
View<T> mutable_view(const View<const T>& view) {
  return {const_cast<T*>(view.data), view.stride_n, view.stride_c, view.stride_h, view.stride_w};
}

// Chooses a layer's path and its tiles. The layer's pointers and strides must be set.
template <typename T>
void plan(Layer<T>& layer, int packs_per_thread, int64_t n_images, int64_t height, int64_t width) {
  constexpr int VEC = Pack<T>::SIZE;
  STD_TORCH_CHECK(n_images <= std::numeric_limits<int32_t>::max(), "lpips_fast: N = ", n_images, " is too large");
  STD_TORCH_CHECK(width < std::numeric_limits<int32_t>::max() - THREADS, "lpips_fast: W = ", width, " is too large");
  layer.n_pixels = height * width;
  layer.width = static_cast<int>(width);

  View<const Acc<T>> grad = layer.grad;
  std::vector<View<T>> views = {mutable_view(layer.f0), mutable_view(layer.f1)};
  if (layer.d0.data != nullptr) views.push_back(layer.d0);
  if (layer.d1.data != nullptr) views.push_back(layer.d1);
  const int channels = layer.channels;
  const int packs = channels / VEC;
  layer.linear = make_linear(grad, height, width);
  for (View<T>& v : views) layer.linear = make_linear(v, height, width) && layer.linear;
  if (layer.linear) {
    layer.grad = grad;
    make_linear(layer.f0, height, width);
    make_linear(layer.f1, height, width);
    make_linear(layer.d0, height, width);
    make_linear(layer.d1, height, width);
  }

  int pixels;
  if (layer.linear && channels > 0 && channels % VEC == 0 && channels <= std::min(MAX_CHANNELS_LAST, 128 * VEC) &&
      aligned(layer.weights) && std::all_of(views.begin(), views.end(), is_channels_last<T>)) {
    const int depth = packs <= 64 ? 2 : 4;
    layer.path = depth == 2 ? Path::CHANNELS_LAST_2 : Path::CHANNELS_LAST_4;
    layer.lanes_log2 = 2;
    while (depth << layer.lanes_log2 < packs) ++layer.lanes_log2;
    pixels = packs_per_thread / depth * (THREADS >> layer.lanes_log2);
  } else {
    const bool vectors = layer.linear && layer.n_pixels % VEC == 0 && channels <= THREADS / 2 * packs_per_thread &&
                         std::all_of(views.begin(), views.end(), is_planar<T>);
    layer.path = vectors ? Path::PLANAR : Path::STRIDED;
    layer.lanes_log2 = 5;
    const auto too_wide = [&] {
      const int lanes = 1 << layer.lanes_log2;
      return channels > THREADS / lanes * packs_per_thread || layer.n_pixels <= lanes / 2 * VEC;
    };
    while (layer.lanes_log2 > 1 && too_wide()) --layer.lanes_log2;
    pixels = VEC << layer.lanes_log2;
  }
  layer.tiles_per_image = ceil_div(layer.n_pixels, pixels);
  layer.n_tiles = n_images * layer.tiles_per_image;
}

// With gradients to the weights, a layer has at most so many blocks, for each writes a row of C sums. They are more
// than an H200 runs at a time, 396. All else has a block for each tile.
constexpr int64_t MAX_ROWS = 512;
constexpr int64_t BLOCK_A_TILE = std::numeric_limits<int64_t>::max();

// Cuts the layers' tiles into at most `max_blocks` blocks a layer, and returns the size of the grid.
template <typename T>
unsigned assign_blocks(Layers<T>& layers, int64_t max_blocks) {
  int64_t n_blocks = 0;
  for (int l = 0; l < layers.count; ++l) {
    Layer<T>& layer = layers.layer[l];
    layer.tiles_per_block = layer.n_tiles <= max_blocks ? 1 : ceil_div(layer.n_tiles, max_blocks);
    layer.first_block = static_cast<int>(n_blocks);
    const int64_t blocks = ceil_div(layer.n_tiles, layer.tiles_per_block);
    n_blocks += blocks;
    STD_TORCH_CHECK(
        n_blocks <= std::numeric_limits<int32_t>::max(), "lpips_fast: N * H * W is too large: the layers have ",
        n_blocks, " tiles");
    layer.n_blocks = static_cast<int>(blocks);
  }
  return static_cast<unsigned>(n_blocks);
}

template <typename T>
Layer<T> make_layer(const Tensor& f0, const Tensor& f1, const Tensor& weights) {
  STD_TORCH_CHECK(f0.size(1) < (int64_t{1} << 30), "lpips_fast: C = ", f0.size(1), " is too large");
  Layer<T> layer = {};
  layer.f0 = view<const T>(f0);
  layer.f1 = view<const T>(f1);
  layer.weights = data_of<const Acc<T>>(weights);
  layer.channels = static_cast<int>(f0.size(1));
  return layer;
}

// The layers of one launch, from `first` on.
template <typename T, typename Make>
Layers<T> make_layers(size_t first, size_t total, Make make) {
  Layers<T> layers = {};
  layers.count = static_cast<int>(std::min<size_t>(MAX_LAYERS, total - first));
  for (int l = 0; l < layers.count; ++l) layers.layer[l] = make(first + l);
  return layers;
}

// Fills D, or the maps if `mean` is null.
template <typename T>
void launch_head_fwd(
    const Tensors& feats0, const Tensors& feats1, const Tensors& weights, Norm<Acc<T>> norm, const Tensor* mean,
    const Tensors& maps) {
  const Device device(feats0[0]);
  const MainKernels<T> kernels = main_kernels<T>(device);
  const int64_t n_images = feats0[0].size(0);
  for (size_t first = 0; first < feats0.size(); first += MAX_LAYERS) {
    Layers<T> layers = make_layers<T>(first, feats0.size(), [&](size_t l) {
      Layer<T> layer = make_layer<T>(feats0[l], feats1[l], weights[l]);
      plan(layer, kernels.packs, n_images, feats0[l].size(2), feats0[l].size(3));
      if (mean == nullptr) layer.map = data_of<Acc<T>>(maps[l]);
      return layer;
    });
    const unsigned grid = assign_blocks(layers, BLOCK_A_TILE);
    Tensor partials;
    if (mean != nullptr) {
      int64_t n_tiles = 0;
      for (int l = 0; l < layers.count; ++l) n_tiles += layers.layer[l].n_tiles;
      partials = empty({n_tiles}, accumulation_type(feats0[0]), feats0[0]);
      Acc<T>* next = data_of<Acc<T>>(partials);
      for (int l = 0; l < layers.count; ++l) {
        layers.layer[l].partials = next;
        next += layers.layer[l].n_tiles;
      }
    }
    device.launch("head_fwd_kernel", grid, kernels.shared_bytes, kernels.fwd, layers, norm.eps, norm.inside_sqrt);
    if (mean != nullptr) {
      Acc<T>* out = data_of<Acc<T>>(*mean) + first;
      const dim3 outputs(static_cast<unsigned>(n_images), layers.count);
      device.launch(
          "head_mean_kernel", outputs, 0, head_mean_kernel<T>, layers, out, static_cast<int64_t>(feats0.size()));
    }
  }
}

// Fills the gradients. An empty list says that nobody needs them.
template <typename T>
void launch_head_bwd(
    const Tensors& grads, const Tensors& feats0, const Tensors& feats1, const Tensors& weights,
    Norm<Acc<T>> norm, bool mean, const Tensors& d_feats0, const Tensors& d_feats1, const Tensors& d_weights) {
  const Device device(feats0[0]);
  const MainKernels<T> kernels = main_kernels<T>(device);
  for (size_t first = 0; first < feats0.size(); first += MAX_LAYERS) {
    Layers<T> layers = make_layers<T>(first, feats0.size(), [&](size_t l) {
      Layer<T> layer = make_layer<T>(feats0[l], feats1[l], weights[l]);
      const int64_t height = feats0[l].size(2), width = feats0[l].size(3);
      if (!d_feats0.empty()) layer.d0 = view<T>(d_feats0[l]);
      if (!d_feats1.empty()) layer.d1 = view<T>(d_feats1[l]);
      if (mean) {
        const Acc<T>* grad = data_of<const Acc<T>>(grads[0]);
        layer.grad = {grad + l * grads[0].stride(1), grads[0].stride(0), 0, 0, 0};
        layer.grad_scale = 1 / static_cast<Acc<T>>(height * width);
      } else {
        layer.grad = view<const Acc<T>>(grads[l]);
        layer.grad_scale = 1;
      }
      plan(layer, kernels.packs, feats0[l].size(0), height, width);
      return layer;
    });
    const unsigned grid = assign_blocks(layers, d_weights.empty() ? BLOCK_A_TILE : MAX_ROWS);
    Tensor partials;
    int max_channels = 0;
    if (!d_weights.empty()) {
      int64_t size = 0;
      for (int l = 0; l < layers.count; ++l) size += int64_t{layers.layer[l].n_blocks} * layers.layer[l].channels;
      partials = empty({std::max<int64_t>(size, 1)}, accumulation_type(feats0[0]), feats0[0]);
      Acc<T>* next = data_of<Acc<T>>(partials);
      for (int l = 0; l < layers.count; ++l) {
        Layer<T>& layer = layers.layer[l];
        layer.partials = next;
        layer.d_weights = data_of<Acc<T>>(d_weights[first + l]);
        next += int64_t{layer.n_blocks} * layer.channels;
        max_channels = std::max(max_channels, layer.channels);
      }
    }
    device.launch("head_bwd_kernel", grid, kernels.shared_bytes, kernels.bwd, layers, norm.eps, norm.inside_sqrt);
    if (!d_weights.empty()) {
      const dim3 outputs(static_cast<unsigned>(ceil_div(max_channels, 32)), layers.count);
      device.launch("head_d_weights_kernel", outputs, 0, head_d_weights_kernel<T>, layers);
    }
  }
}

Tensor head_fwd_cuda(Tensors feats0, Tensors feats1, Tensors weights, double eps, bool eps_inside_sqrt) {
  Tensor mean;
  dispatch<__half, __nv_bfloat16>(feats0, [&](auto zero) {
    mean = empty({feats0[0].size(0), static_cast<int64_t>(feats0.size())}, accumulation_type(feats0[0]), feats0[0]);
    using T = decltype(zero);
    launch_head_fwd<T>(feats0, feats1, weights, {static_cast<Acc<T>>(eps), eps_inside_sqrt}, &mean, {});
  });
  return mean;
}

Tensors head_maps_fwd_cuda(Tensors feats0, Tensors feats1, Tensors weights, double eps, bool eps_inside_sqrt) {
  Tensors maps;
  dispatch<__half, __nv_bfloat16>(feats0, [&](auto zero) {
    for (const Tensor& f : feats0) {
      maps.push_back(empty({f.size(0), 1, f.size(2), f.size(3)}, accumulation_type(f), f));
    }
    using T = decltype(zero);
    launch_head_fwd<T>(feats0, feats1, weights, {static_cast<Acc<T>>(eps), eps_inside_sqrt}, nullptr, maps);
  });
  return maps;
}

Tensors head_bwd_cuda(
    Tensors grads, Tensors feats0, Tensors feats1, Tensors weights, double eps, bool eps_inside_sqrt, bool mean,
    bool need_feats0, bool need_feats1, bool need_weights) {
  Tensors d_feats0, d_feats1, d_weights;
  dispatch<__half, __nv_bfloat16>(feats0, [&](auto zero) {
    for (size_t l = 0; l < feats0.size(); ++l) {
      if (need_feats0) d_feats0.push_back(grad_like(feats0[l]));
      if (need_feats1) d_feats1.push_back(grad_like(feats1[l]));
      if (need_weights) d_weights.push_back(torch::stable::empty_like(weights[l]));
    }
    using T = decltype(zero);
    launch_head_bwd<T>(
        grads, feats0, feats1, weights, {static_cast<Acc<T>>(eps), eps_inside_sqrt}, mean, d_feats0, d_feats1,
        d_weights);
  });
  Tensors all = d_feats0;
  all.insert(all.end(), d_feats1.begin(), d_feats1.end());
  all.insert(all.end(), d_weights.begin(), d_weights.end());
  return all;
}

// Why no kernel of this library can run on a device, in the words of the CUDA runtime that is linked into the library,
// or ''. It loads a kernel for the device, and launches none.
std::string cuda_error(int64_t index) {
  const torch::stable::accelerator::DeviceGuard guard(static_cast<int32_t>(index));
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  cudaThreadExchangeStreamCaptureMode(&mode);  // a capture forbids loading in its own mode
  cudaFuncAttributes attributes;
  cudaError_t error = cudaSetDevice(static_cast<int>(index));
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, head_mean_kernel<float>);
  cudaThreadExchangeStreamCaptureMode(&mode);
  cudaGetLastError();  // or the next launch would report it
  if (error == cudaErrorMemoryAllocation) return "";  // a full GPU may have room later; a launch reports it
  return error == cudaSuccess ? "" : cudaGetErrorString(error);
}

STABLE_TORCH_LIBRARY_IMPL(lpips_fast, CUDA, m) {
  m.impl("head_fwd_cuda", TORCH_BOX(&head_fwd_cuda));
  m.impl("head_maps_fwd_cuda", TORCH_BOX(&head_maps_fwd_cuda));
  m.impl("head_bwd_cuda", TORCH_BOX(&head_bwd_cuda));
  m.impl("cuda_error", TORCH_BOX(&cuda_error));
}

}  // namespace
}  // namespace lpips_fast
