// Large pages for tensors, and scratch memory.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "common/integers.h"

namespace lpips_fast {

// Asks for large pages under a tensor that has not been written to. The memory of a large tensor is fresh from the
// system each time, and the faults for its 4 KiB pages cost as much as filling them.
inline torch::stable::Tensor in_large_pages(torch::stable::Tensor tensor) {
#if defined(__linux__)
  constexpr uintptr_t kPage = 2 << 20;
  const auto begin = reinterpret_cast<uintptr_t>(tensor.data_ptr());
  const uintptr_t end = begin + tensor.numel() * tensor.element_size();
  const uintptr_t first = (begin + kPage - 1) / kPage * kPage, last = end / kPage * kPage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
  return tensor;
}

// Memory for the time of one operator. It begins on a cache line.
template <typename T>
class ScratchMemory {
 public:
  explicit ScratchMemory(int64_t count)
      : bytes_(in_large_pages(torch::stable::empty(
            {count * static_cast<int64_t>(sizeof(T)) + kLine}, torch::headeronly::ScalarType::Byte))) {}

  T* data() const {
    const auto address = reinterpret_cast<uintptr_t>(bytes_.data_ptr());
    return reinterpret_cast<T*>(round_up(address, kLine));
  }

 private:
  static constexpr int64_t kLine = 64;
  torch::stable::Tensor bytes_;
};

}  // namespace lpips_fast
