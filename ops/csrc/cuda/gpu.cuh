// The device of the passes (passes.h): PyTorch's memory, streams and matrix products.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cuda.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <array>
#include <optional>
#include <type_traits>
#include <vector>

#include "../checks.h"
#include "matrix.h"
#include "threads.cuh"

#ifndef STABLE_TORCH_ERROR_CODE_CHECK  // torch 2.10 has another macro, whose message says less
#include <torch/headeronly/util/shim_utils.h>
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

namespace deform_conv {
namespace {

using torch::stable::accelerator::DeviceGuard;

// out = a b
void multiply(const Tensor& a, const Tensor& b, const Tensor& out) {
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_mm_out(out.get(), a.get(), b.get()));
}

// out = bias + a b
void multiply(const Tensor& bias, const Tensor& a, const Tensor& b, const Tensor& out) {
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_cuda_addmm_out(out.get(), bias.get(), a.get(), b.get(), 1.0, 1.0));
}

// out = a b, without rounding of the sums: they are float32 for 16-bit factors
void multiply_unrounded(const Tensor& a, const Tensor& b, const Tensor& out) {
  using torch::stable::detail::from;
  std::array<StableIValue, 4> stack{from(a), from(b), from(out.scalar_type()), from(out)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::mm", "dtype_out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // takes ownership of the result, which is `out`
}

// The GPU of a tensor, with PyTorch's current stream.
class Gpu {
 public:
  static constexpr int64_t chunk_bytes = 16 << 20;  // of the L2 cache, which has 40 MB or more

  explicit Gpu(const Tensor& tensor) : device_(tensor.device()) {
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

  template <typename A, typename B, typename Out>
  void multiply(
      const Matrix<A>& a, const Matrix<B>& b, const Matrix<Out>& out, const Out* bias = nullptr) {
    if constexpr (!std::is_same_v<std::remove_const_t<A>, Out>)
      multiply_unrounded(tensor(a), tensor(b), tensor(out));
    else if (bias)
      deform_conv::multiply(tensor(bias, {b.columns}, {1}), tensor(a), tensor(b), tensor(out));
    else
      deform_conv::multiply(tensor(a), tensor(b), tensor(out));
  }

 private:
  template <typename T>
  Tensor tensor(
      T* data, const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides) const {
    using Value = std::remove_const_t<T>;
    return torch::stable::from_blob(
        const_cast<Value*>(data), sizes, strides, device_,
        torch::headeronly::CppTypeToScalarType<Value>::value);
  }

  template <typename T>
  Tensor tensor(const Matrix<T>& m) const {
    return tensor(m.data, {m.rows, m.columns}, {m.row_stride, m.column_stride});
  }

  torch::stable::Device device_;
  cudaStream_t stream_;
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
