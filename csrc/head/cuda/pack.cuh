// Sixteen bytes of features.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_pipeline_primitives.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "head/math.h"

namespace lpips_fast {

__device__ __forceinline__ float multiply(float x, float y) { return __fmul_rn(x, y); }
__device__ __forceinline__ double multiply(double x, double y) { return __dmul_rn(x, y); }

template <typename T>
struct alignas(16) Pack {
  static constexpr int SIZE = 16 / sizeof(T);
  uint32_t words[4];

  __device__ __forceinline__ Acc<T> get(int i) const {
    if constexpr (sizeof(T) == 8) {
      return __hiloint2double(words[2 * i + 1], words[2 * i]);
    } else if constexpr (sizeof(T) == 4) {
      return __uint_as_float(words[i]);
    } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
      return __uint_as_float(i % 2 ? words[i / 2] & 0xffff0000u : words[i / 2] << 16);
    } else {
      return __half2float(__ushort_as_half(half_word(i)));
    }
  }

  // Sets elements i and i + 1, for even i. Two elements of two bytes take one conversion.
  __device__ __forceinline__ void set_pair(int i, Acc<T> x, Acc<T> y) {
    if constexpr (std::is_same_v<T, __half>) {
      const __half2 pair = __floats2half2_rn(x, y);
      words[i / 2] =
          __half_as_ushort(__low2half(pair)) | static_cast<uint32_t>(__half_as_ushort(__high2half(pair))) << 16;
    } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(x, y);
      words[i / 2] = __bfloat16_as_ushort(pair.x) | static_cast<uint32_t>(__bfloat16_as_ushort(pair.y)) << 16;
    } else {
      set_element(i, x);
      set_element(i + 1, y);
    }
  }

  __device__ __forceinline__ T element(int i) const {
    if constexpr (std::is_same_v<T, __half>) {
      return __ushort_as_half(half_word(i));
    } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
      return __ushort_as_bfloat16(half_word(i));
    } else {
      return get(i);
    }
  }

  __device__ __forceinline__ void set_element(int i, T x) {
    if constexpr (sizeof(T) == 8) {
      words[2 * i] = __double2loint(x);
      words[2 * i + 1] = __double2hiint(x);
    } else if constexpr (sizeof(T) == 4) {
      words[i] = __float_as_uint(x);
    } else if constexpr (std::is_same_v<T, __half>) {
      set_half_word(i, __half_as_ushort(x));
    } else {
      set_half_word(i, __bfloat16_as_ushort(x));
    }
  }

 private:
  __device__ __forceinline__ unsigned short half_word(int i) const {
    return static_cast<unsigned short>(i % 2 ? words[i / 2] >> 16 : words[i / 2]);
  }
  __device__ __forceinline__ void set_half_word(int i, uint32_t bits) {
    words[i / 2] = i % 2 ? (words[i / 2] & 0x0000ffffu) | bits << 16 : (words[i / 2] & 0xffff0000u) | bits;
  }
};

// Copies 16 aligned bytes to shared memory without registers, or zeros if not `valid`. The calling thread sees them
// after wait_for_copies().
template <typename T>
__device__ __forceinline__ void copy_async(Pack<T>& shared, const T* ptr, bool valid) {
  __pipeline_memcpy_async(&shared, ptr, 16, valid ? 0 : 16);
}

// CUDA's function that waits does not tell the compiler that memory changes: the compiler might move reads of the
// copies up before it. (Earlier reads stay above a copy, which does tell.)
__device__ __forceinline__ void wait_for_copies() {
  __pipeline_commit();
  __pipeline_wait_prior(0);
  asm volatile("" ::: "memory");
}

template <typename T>
__device__ __forceinline__ Pack<T> load(const T* ptr) {
  const uint4 raw = __ldg(reinterpret_cast<const uint4*>(ptr));
  return {{raw.x, raw.y, raw.z, raw.w}};
}

template <typename T>
__device__ __forceinline__ void store(T* ptr, const Pack<T>& pack) {
  *reinterpret_cast<uint4*>(ptr) = make_uint4(pack.words[0], pack.words[1], pack.words[2], pack.words[3]);
}

}  // namespace lpips_fast
