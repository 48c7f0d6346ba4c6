// Large pages, and scratch memory.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace lpips_fast {

// Asks for large pages under memory that has not been written to. A large block comes fresh from the system each time,
// and the page faults for its 4 KiB pages cost more than writing to it.
inline void use_large_pages([[maybe_unused]] void* memory, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kPage = 2 << 20;
  const auto begin = reinterpret_cast<uintptr_t>(memory);
  const uintptr_t first = (begin + kPage - 1) / kPage * kPage, last = (begin + bytes) / kPage * kPage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

inline torch::stable::Tensor in_large_pages(torch::stable::Tensor tensor) {
  use_large_pages(tensor.mutable_data_ptr(), tensor.numel() * tensor.element_size());
  return tensor;
}

// Memory for the time of one operator. It begins at a cache line.
template <typename T>
class ScratchMemory {
 public:
  explicit ScratchMemory(int64_t count) : memory_(::operator new(count * sizeof(T), kLine)) {
    use_large_pages(memory_.get(), count * sizeof(T));
  }

  T* data() const { return static_cast<T*>(memory_.get()); }

 private:
  static constexpr std::align_val_t kLine{64};
  struct Free {
    void operator()(void* memory) const { ::operator delete(memory, kLine); }
  };
  std::unique_ptr<void, Free> memory_;
};

// Scratch memory for several uses, one after the other. It grows, and its values are then lost.
class Scratch {
 public:
  float* floats(int64_t count) {
    if (count > count_) {
      memory_.reset();  // first, so that both are never there
      memory_ = std::make_unique<ScratchMemory<float>>(count);
      count_ = count;
    }
    return data();
  }

  float* data() const { return memory_ ? memory_->data() : nullptr; }
  int64_t count() const { return count_; }

 private:
  std::unique_ptr<ScratchMemory<float>> memory_;
  int64_t count_ = 0;
};

}  // namespace lpips_fast
