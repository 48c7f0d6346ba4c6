// Tensors of the head's operators on the CPU and in CUDA.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <type_traits>
#include <vector>

namespace lpips_fast {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;

// Calls `function` with a value of the features' type. Half and BFloat16 are the types that stand for the 16-bit ones.
template <typename Half, typename BFloat16, typename Function>
void dispatch(const Tensors& feats, const Function& function) {
  STD_TORCH_CHECK(!feats.empty(), "lpips_fast: the head needs at least one layer");
  switch (feats[0].scalar_type()) {
    case ScalarType::Float:
      return function(float{});
    case ScalarType::Double:
      return function(double{});
    case ScalarType::Half:
      return function(Half{});
    case ScalarType::BFloat16:
      return function(BFloat16{});
    default:
      STD_TORCH_CHECK(false, "lpips_fast: features must be float64, float32, float16 or bfloat16");
  }
}

// A tensor's memory: to read if T is const, else to write. Before it is written, torch makes a lazy copy a real one.
template <typename T>
T* data_of(const Tensor& tensor) {
  if constexpr (std::is_const_v<T>) {
    return static_cast<T*>(tensor.const_data_ptr());
  } else {
    return static_cast<T*>(tensor.mutable_data_ptr());
  }
}

// The type in which features are summed: Acc of math.h.
inline ScalarType accumulation_type(const Tensor& feats) {
  return feats.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline Tensor empty(std::vector<int64_t> sizes, ScalarType type, const Tensor& like) {
  return torch::stable::empty(sizes, type, std::nullopt, like.device());
}

// grad_like of lpips_fast/head/operators.py.
inline Tensor grad_like(const Tensor& feats) {
  const bool channels_last = feats.size(1) > 1 && feats.stride(1) == 1;
  return torch::stable::empty(feats.sizes(), feats.scalar_type(), std::nullopt, feats.device(), std::nullopt,
                              channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

}  // namespace lpips_fast
