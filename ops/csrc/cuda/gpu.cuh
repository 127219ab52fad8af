// The device of the passes (passes.h): PyTorch's memory and stream, and cuBLAS.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <optional>
#include <type_traits>
#include <vector>

#include "../checks.h"
#include "cublas.cuh"
#include "matrices.h"
#include "threads.cuh"

#ifndef STABLE_TORCH_ERROR_CODE_CHECK  // torch 2.10 has another macro, whose message says less
#include <torch/headeronly/util/shim_utils.h>
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

namespace deform_conv {
namespace {

using torch::stable::accelerator::DeviceGuard;

// The GPU of a tensor, with PyTorch's current stream.
class Gpu {
 public:
  // Columns of most layers fit, and larger ones are divided into products that fill any GPU. Other
  // limits have not been timed.
  static constexpr int64_t most_bytes = 256 << 20;

  // Products of float32 may be computed in TF32 if `allow_tf32`.
  explicit Gpu(const Tensor& tensor, bool allow_tf32 = false)
      : device_(tensor.device()), allow_tf32_(allow_tf32) {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(
        aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  template <typename T>
  T* buffer(int64_t count) {
    const int64_t bytes = count * sizeof(T);
    buffers_.push_back(torch::stable::empty({bytes}, ScalarType::Byte, std::nullopt, device_));
    return static_cast<T*>(buffers_.back().data_ptr());
  }

  template <typename T>
  void zero(T* data, int64_t count) {
    STD_CUDA_CHECK(cudaMemsetAsync(data, 0, count * sizeof(T), stream_));
  }

  template <typename... Parameters, typename... Arguments>
  void launch(int64_t threads, void (*kernel)(Parameters...), const Arguments&... given) {
    launch_blocks((threads + kThreads - 1) / kThreads, 0, kernel, given...);
  }

  template <typename... Parameters, typename... Arguments>
  void launch_blocks(
      int64_t blocks, int shared_bytes, void (*kernel)(Parameters...), const Arguments&... given) {
    if (blocks == 0) return;
    if (shared_bytes > 48 << 10)  // the limit without this attribute
      STD_CUDA_CHECK(
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
    kernel<<<blocks, kThreads, shared_bytes, stream_>>>(given...);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

  int num_multiprocessors() const {
    int count = 0;
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device_.index()));
    return count;
  }

  template <typename T, typename Out>
  void multiply(
      int64_t count, const Matrices<const T>& a, const Matrices<const T>& b,
      const Matrices<Out>& out, bool adds) {
    if (!blas_) STABLE_TORCH_ERROR_CODE_CHECK(torch_get_current_cuda_blas_handle(&blas_));
    multiply_matrices(blas_, count, a, b, out, adds, allow_tf32_);
  }

 private:
  torch::stable::Device device_;
  bool allow_tf32_;
  cudaStream_t stream_;
  void* blas_ = nullptr;  // PyTorch's handle for its current stream
  std::vector<Tensor> buffers_;
};

// Converts a channels-last result to the dtype and the memory format of another tensor.
Tensor formatted_as(const Tensor& like, const Tensor& result) {
  const Tensor given = torch::stable::to(result, like.scalar_type());
  return is_channels_last(like) ? given : torch::stable::contiguous(given);
}

// Calls `function` with a value of the features' type.
template <typename Function>
void with_type(const Tensor& input, const Function& function) {
  switch (input.scalar_type()) {
    case ScalarType::Float:
      return function(float());
    case ScalarType::Double:
      return function(double());
    case ScalarType::Half:
      return function(torch::headeronly::Half());
    case ScalarType::BFloat16:
      return function(torch::headeronly::BFloat16());
    default:
      STD_TORCH_CHECK(false, "input must be a floating point tensor");
  }
}

template <typename T>
T* data_of(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

template <typename T>
T* data_of(const std::optional<Tensor>& tensor) {
  return tensor ? data_of<T>(*tensor) : nullptr;
}

}  // namespace
}  // namespace deform_conv
