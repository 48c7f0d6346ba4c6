// The head's CUDA operators for tensors on the CPU: csrc/head/cuda as it is, and what it asks of torch and its streams.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define CUDA CPU  // the dispatch key in csrc/head/cuda/operators.cu
#include "head/cuda/operators.cu"
#undef CUDA

namespace lpips_fast {
namespace {
alignas(16) thread_local unsigned char dynamic_shared[emulator::MOST_SHARED_MEMORY];
}  // namespace
}  // namespace lpips_fast

unsigned char* emulator::dynamic_shared_memory() { return lpips_fast::dynamic_shared; }

// The library is linked so that these come before torch's, which know no device.
extern "C" {
AOTITorchError aoti_torch_create_device_guard(int32_t, DeviceGuardHandle* guard) {
  *guard = nullptr;
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle) { return AOTI_TORCH_SUCCESS; }
AOTITorchError aoti_torch_get_current_stream(int32_t, StreamHandle* stream) {
  *stream = nullptr;
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError aoti_torch_delete_stream(StreamHandle) { return AOTI_TORCH_SUCCESS; }
AOTITorchError torch_stream_native_handle(StreamHandle, void** handle) {
  *handle = nullptr;
  return AOTI_TORCH_SUCCESS;
}
}
