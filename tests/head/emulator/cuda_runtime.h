// What csrc/head/cuda needs of CUDA, for a C++ compiler: kernels run on the CPU. scheduler.cpp runs a block's threads,
// and is compiled by itself so that sanitizers instrument the kernels only.
//
// The types come from CUDA's own headers, and so do the conversions of cuda_fp16.h and cuda_bf16.h. This header comes
// before CUDA's on the include path.
#pragma once

#include <driver_types.h>
#include <vector_functions.h>
#include <vector_types.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>
#include <vector>

#undef __shared__
#undef __launch_bounds__
#undef __grid_constant__
#undef __forceinline__
#define __shared__ thread_local  // a block runs in one thread of the operating system, whose memory is its shared memory
#define __launch_bounds__(...)
#define __grid_constant__
#define __forceinline__ inline  // forced inlining makes a sanitizer's build take minutes

extern uint3 threadIdx, blockIdx;
extern dim3 gridDim;

namespace emulator {

// A place in the kernels' source.
struct Place {
  const char* file;
  int line;
};

void barrier(Place place);
// The value of lane `lane ^ offset`. All 32 lanes must come to the same place.
void shuffle(void* value, size_t size, unsigned mask, int offset, Place place);
// Lets another thread go on, sometimes.
void yield();
// Ends the launch with an error. It does not return to the kernel.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Asynchronous copies of the running thread.
struct Copy {
  uint4* to;
  const uint4* from;  // null for zeros
};
void add_copy(Copy copy);
void commit_copies();
std::vector<Copy> take_copies(size_t prior);  // which the running thread waits for
bool in_shared_memory(const void* memory);

// Dynamic shared memory of the calling thread. The file with the kernels defines it.
constexpr size_t MOST_SHARED_MEMORY = 227 << 10;  // of a block, in the devices with the most
unsigned char* dynamic_shared_memory();

cudaError_t set_shared_memory(const void* kernel, int bytes);
cudaError_t launch(
    const cudaLaunchConfig_t& config, const void* kernel, size_t parameter_bytes, const std::function<void()>& body);

template <typename To, typename From>
To bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

}  // namespace emulator

// --- Device code ---

inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  emulator::barrier({file, line});
}

template <typename V>
V __shfl_xor_sync(
    unsigned mask, V value, int offset, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  emulator::shuffle(&value, sizeof(V), mask, offset, {file, line});
  return value;
}

template <typename V>
V __ldg(const V* memory) {
  if (reinterpret_cast<uintptr_t>(memory) % sizeof(V) != 0) emulator::fail("__ldg of a misaligned address");
  if (emulator::in_shared_memory(memory)) emulator::fail("__ldg of shared memory");
  emulator::yield();
  return *memory;
}

// From the copy's start to the wait the destination holds NaNs.
inline void __pipeline_memcpy_async(void* to, const void* from, size_t size, size_t zeros = 0) {
  const uintptr_t both = reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from);
  if (size != 16 || (zeros != 0 && zeros != 16)) emulator::fail("an asynchronous copy of %zu - %zu bytes", size, zeros);
  if (both % size != 0) emulator::fail("an asynchronous copy at a misaligned address");
  if (!emulator::in_shared_memory(to)) emulator::fail("an asynchronous copy that is not to shared memory");
  auto* const slot = static_cast<uint4*>(to);
  *slot = uint4{~0u, ~0u, ~0u, ~0u};
  emulator::add_copy({slot, zeros == 0 ? static_cast<const uint4*>(from) : nullptr});
  emulator::yield();
}
inline void __pipeline_commit() { emulator::commit_copies(); }
inline void __pipeline_wait_prior(size_t prior) {
  for (const auto& [to, from] : emulator::take_copies(prior)) *to = from == nullptr ? uint4{} : *from;
  emulator::yield();
}

// The compiler may fuse products and sums, as CUDA's does, but not these.
inline float __fmul_rn(float x, float y) {
  float product = x * y;
  asm volatile("" : "+x"(product));
  return product;
}
inline double __dmul_rn(double x, double y) {
  double product = x * y;
  asm volatile("" : "+x"(product));
  return product;
}

inline float __uint_as_float(unsigned x) { return emulator::bits<float>(x); }
inline unsigned __float_as_uint(float x) { return emulator::bits<unsigned>(x); }
inline double __hiloint2double(int high, int low) {
  return emulator::bits<double>(static_cast<uint64_t>(static_cast<uint32_t>(high)) << 32 | static_cast<uint32_t>(low));
}
inline int __double2loint(double x) { return static_cast<int>(emulator::bits<uint64_t>(x)); }
inline int __double2hiint(double x) { return static_cast<int>(emulator::bits<uint64_t>(x) >> 32); }

template <typename V>
V min(V x, V y) {
  return y < x ? y : x;
}
template <typename V>
V max(V x, V y) {
  return x < y ? y : x;
}

// --- Host code ---

extern "C" {
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetLastError();
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
const char* cudaGetErrorString(cudaError_t error);
}

template <typename... Params>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, void (*)(Params...)) {
  *attributes = {};
  return cudaSuccess;
}

template <typename... Params>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Params...), cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  return emulator::set_shared_memory(reinterpret_cast<const void*>(kernel), value);
}

template <typename... Params, typename... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...), Args&&... args) {
  const std::tuple<Params...> params(static_cast<Params>(args)...);
  const auto body = [&] { std::apply(kernel, params); };
  return emulator::launch(*config, reinterpret_cast<const void*>(kernel), (sizeof(Params) + ... + 0), body);
}
