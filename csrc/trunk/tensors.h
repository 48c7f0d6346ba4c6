// Tensors of the trunk's operators, checked and made.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <vector>

#include "common/integers.h"
#include "common/memory.h"
#include "trunk/kernels.h"
#include "trunk/program.h"

namespace lpips_fast::trunk {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check_float(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float && t.is_cpu(), name, " must be a float32 tensor on the CPU");
}

inline void check_shape(const Tensor& t, int64_t n, int64_t c, int64_t h, int64_t w, const char* name) {
  STD_TORCH_CHECK(t.dim() == 4 && t.size(0) == n && t.size(1) == c && t.size(2) == h && t.size(3) == w, name,
                  " must be [", n, ", ", c, ", ", h, ", ", w, "]");
}

inline Tensor dense_nhwc(const Tensor& t) { return torch::stable::contiguous(t, MemoryFormat::ChannelsLast); }

inline Tensor empty_nhwc(int64_t n, int64_t c, int64_t h, int64_t w) {
  return in_large_pages(torch::stable::empty({n, c, h, w}, ScalarType::Float, std::nullopt, std::nullopt, std::nullopt,
                                             MemoryFormat::ChannelsLast));
}

// `count` numbers, or as many times the same one.
inline std::vector<float> numbers_or(const std::optional<Tensor>& t, int64_t count, float otherwise, const char* name) {
  if (!t) return std::vector<float>(count, otherwise);
  check_float(*t, name);
  STD_TORCH_CHECK(t->numel() == count && t->is_contiguous(), name, " must be ", count, " contiguous numbers");
  return {t->const_data_ptr<float>(), t->const_data_ptr<float>() + count};
}

// The data of filters for `cout` output and `cin` input channels.
inline const float* checked_filters(const Tensor& t, Algorithm algorithm, int64_t cin, int64_t cout, int64_t kernel,
                                    int64_t stride) {
  check_float(t, "filters");
  int64_t k = kernel * kernel;
  if (algorithm == Algorithm::phases) {
    const int64_t reach = ceil_div(kernel, stride);
    STD_TORCH_CHECK(reach == 3, "program: phases need a kernel of 3 strides, got ", kernel, " and ", stride);
  }
  const bool transposed = algorithm == Algorithm::transposed;
  STD_TORCH_CHECK(algorithm != Algorithm::winograd || kernel == 3 || kernel == 5,
                  "program: winograd needs a kernel of 3 or 5, got ", kernel);
  STD_TORCH_CHECK(!transposed || (kernel == 3 && cin % kPanel == 0 && cout % kPanel == 0),
                  "program: transposed filters need a kernel of 3 and multiples of ", kPanel, " channels, got ", kernel,
                  ", ", cin, " and ", cout);
  if (algorithm == Algorithm::winograd || algorithm == Algorithm::phases || transposed) {
    const int64_t patch = kTile + (algorithm == Algorithm::phases ? 3 : kernel) - 1;
    k = patch * patch;
  }
  const bool columns = algorithm == Algorithm::columns;
  const int64_t count = columns ? cin * round_up(cout * k, kPanel) : cin * round_up(cout, kPanel) * k;
  STD_TORCH_CHECK(t.is_contiguous() && t.numel() == count, "filters must have ", count, " contiguous elements for ",
                  cin, " input and ", cout, " output channels, got ", t.numel());
  return t.const_data_ptr<float>();
}

}  // namespace lpips_fast::trunk
