// Kernels with faults that the emulator must report; tests/head/test_emulator.py runs them.
#include <cuda_runtime.h>

namespace {

constexpr int THREADS = 64;
alignas(16) thread_local unsigned char dynamic_shared[emulator::MOST_SHARED_MEMORY];

enum Fault {
  NONE,
  BARRIER_IN_A_BRANCH,
  TWO_BARRIERS,
  NO_BARRIER,
  SHUFFLE_IN_A_BRANCH,
  TWO_SHUFFLES,
  NO_WAIT,
  NO_COMMIT,
  READ_BEFORE_WAIT,
  COPY_MISALIGNED,
  COPY_TO_GLOBAL,
  LDG_OF_SHARED,
  LDG_MISALIGNED,
  SHARED_NOT_WRITTEN,
  TOO_MUCH_SHARED,
  TOO_MANY_PARAMETERS,
};

struct Parameters {
  char bytes[5000];
};

// out[i] = in[THREADS - 1 - i] + 1, by way of a copy, a shuffle and a barrier.
void reverse_kernel(Fault fault, float* out, const float4* in) {
  __shared__ float values[THREADS];
  auto* const copies = reinterpret_cast<float4*>(dynamic_shared);
  const int thread = threadIdx.x, lane = thread % 32;
  if (fault == LDG_OF_SHARED) __ldg(values);
  if (fault == LDG_MISALIGNED) __ldg(reinterpret_cast<const float*>(reinterpret_cast<const char*>(in) + 1));
  if (fault == COPY_TO_GLOBAL) __pipeline_memcpy_async(out, in, 16);
  if (fault == COPY_MISALIGNED) __pipeline_memcpy_async(reinterpret_cast<float*>(copies) + 1, in, 16);
  __pipeline_memcpy_async(&copies[thread], &in[thread], 16);
  const float early = copies[thread].x;
  if (fault != NO_COMMIT) __pipeline_commit();
  if (fault != NO_WAIT) __pipeline_wait_prior(0);
  float x = fault == READ_BEFORE_WAIT ? early : copies[thread].x;
  if (fault == SHUFFLE_IN_A_BRANCH) {
    if (lane < 16) x = __shfl_xor_sync(~0u, x, 1);
  } else if (fault == TWO_SHUFFLES && lane < 16) {
    x = __shfl_xor_sync(~0u, x, 1);
  } else {
    x = __shfl_xor_sync(~0u, x, 1);
  }
  if (fault != SHARED_NOT_WRITTEN || thread != 5) values[thread ^ 1] = x;
  if (fault == BARRIER_IN_A_BRANCH) {
    if (thread < 32) __syncthreads();
  } else if (fault == TWO_BARRIERS && thread < 32) {
    __syncthreads();
  } else if (fault != NO_BARRIER) {
    __syncthreads();
  }
  out[thread] = values[THREADS - 1 - thread] + 1;
}

void parameters_kernel(Parameters) {}

}  // namespace

unsigned char* emulator::dynamic_shared_memory() { return dynamic_shared; }

// Runs the kernel with a fault; returns the error, or null. `out` has 64 floats and `in` 64 times 4.
extern "C" const char* run_with_fault(int fault, float* out, const float* in) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(1);
  config.blockDim = dim3(THREADS);
  config.dynamicSmemBytes = fault == TOO_MUCH_SHARED ? 64 << 10 : THREADS * 16;
  const cudaError_t error = fault == TOO_MANY_PARAMETERS
                                ? cudaLaunchKernelEx(&config, parameters_kernel, Parameters{})
                                : cudaLaunchKernelEx(&config, reverse_kernel, static_cast<Fault>(fault), out,
                                                     reinterpret_cast<const float4*>(in));
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}
