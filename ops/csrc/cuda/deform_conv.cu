// The CUDA operators: PyTorch's memory, streams and matrix products for the passes in passes.h.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cuda.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <array>
#include <atomic>
#include <tuple>
#include <type_traits>

#include "../deform_conv.h"
#include "passes.h"

#ifndef STABLE_TORCH_ERROR_CODE_CHECK  // torch 2.10 has another, whose message says less
#include <torch/headeronly/util/shim_utils.h>
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

namespace deform_conv {
namespace {

using torch::stable::accelerator::DeviceGuard;

// ---- the device -----------------------------------------------------------------------------

// out = a b
void multiply(const Tensor& a, const Tensor& b, const Tensor& out) {
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_mm_out(out.get(), a.get(), b.get()));
}

// out = bias + a b
void multiply(const Tensor& bias, const Tensor& a, const Tensor& b, const Tensor& out) {
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_cuda_addmm_out(out.get(), bias.get(), a.get(), b.get(), 1.0, 1.0));
}

// out = a b, the sum being kept as it is: in float32 for 16-bit factors
void multiply_unrounded(const Tensor& a, const Tensor& b, const Tensor& out) {
  using torch::stable::detail::from;
  std::array<StableIValue, 4> stack{from(a), from(b), from(out.scalar_type()), from(out)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::mm", "dtype_out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // takes over the result, which is `out` again
}

std::atomic<bool> fuses = false;

// Chooses between the forward in one kernel, where it can be, and the one in chunks; returns the
// choice before. The first has not been timed yet.
bool use_fused_cuda_forward(bool fused) { return fuses.exchange(fused); }

// The GPU of a tensor and PyTorch's current stream there.
class Gpu {
 public:
  static constexpr int64_t chunk_bytes = 16 << 20;  // of an L2 cache of 40 MB and more

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
    if (shared_bytes > 48 << 10)  // what a kernel has without asking
      STD_CUDA_CHECK(
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
    kernel<<<blocks, kThreads, shared_bytes, stream_>>>(given...);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

  bool may_fuse() const { return fuses; }

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

// ---- operators ------------------------------------------------------------------------------

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
      STD_TORCH_CHECK(false, "deform_conv2d: input must be a floating point tensor");
  }
}

std::optional<Tensor> channels_last_or_none(const std::optional<Tensor>& tensor, ScalarType dtype) {
  return tensor ? std::optional(channels_last(*tensor, dtype)) : std::nullopt;
}

template <typename T>
T* data_of(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

template <typename T>
T* data_of(const std::optional<Tensor>& tensor) {
  return tensor ? data_of<T>(*tensor) : nullptr;
}

// A row of columns is counted by int, four corners for each of its elements at most.
void check_row(const Geometry& g) {
  STD_TORCH_CHECK(
      g.channels * g.taps() < (1 << 29), "deform_conv2d: ", g.channels, " channels of ", g.taps(),
      " taps are too many for CUDA");
}

Tensor forward(
    const Tensor& input, const Tensor& offset, const Tensor& weight,
    const std::optional<Tensor>& bias, const std::optional<Tensor>& mask, const IntPair& stride,
    const IntPair& padding, const IntPair& dilation, bool /* cuBLAS has its own */) {
  const Geometry g = checked_geometry(input, offset, weight, mask, stride, padding, dilation);
  check_bias(bias, input, g);
  check_row(g);
  const DeviceGuard guard(input.get_device_index());
  const ScalarType dtype = input.scalar_type(), location = location_dtype(input);
  const Tensor output = torch::stable::empty(
      {g.batch, g.out_channels, g.out_height, g.out_width}, dtype, std::nullopt, input.device(),
      std::nullopt, MemoryFormat::ChannelsLast);
  const Tensor features = channels_last(input, dtype), offsets = channels_last(offset, location),
               weights = channels_last(weight, dtype);
  const auto masks = channels_last_or_none(mask, location);
  const auto biases = bias ? std::optional(torch::stable::contiguous(*bias)) : std::nullopt;
  Gpu gpu(input);
  with_type(input, [&](auto zero) {
    using T = decltype(zero);
    using R = Real<T>;
    const Source<T> source{g, data_of<T>(features), data_of<R>(offsets), data_of<R>(masks)};
    forward_pass(
        gpu, source, data_of<const T>(weights), data_of<const T>(biases), data_of<T>(output));
  });
  return output;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& grad_output, const Tensor& input, const Tensor& offset, const Tensor& weight,
    const std::optional<Tensor>& mask, const IntPair& stride, const IntPair& padding,
    const IntPair& dilation, bool needs_input, bool needs_weight) {
  const Geometry g = checked_geometry(input, offset, weight, mask, stride, padding, dilation);
  check_grad_output(grad_output, input, g);
  check_row(g);
  const DeviceGuard guard(input.get_device_index());
  const ScalarType dtype = input.scalar_type(), location = location_dtype(input);
  const Tensor nothing = torch::stable::empty({0}, location, std::nullopt, input.device());
  Tensor grad_input = needs_input ? empty_channels_last(input, location) : nothing;
  Tensor grad_weight = needs_weight ? empty_channels_last(weight, location) : nothing;
  const Tensor grad_offset = empty_channels_last(offset, location);
  const Tensor grad_mask = mask ? empty_channels_last(*mask, location) : nothing;
  torch::stable::zero_(grad_input);
  torch::stable::zero_(grad_weight);
  const Tensor grad_outputs = channels_last(grad_output, dtype),
               features = channels_last(input, dtype), offsets = channels_last(offset, location),
               weights = channels_last(weight, dtype);
  const auto masks = channels_last_or_none(mask, location);
  Gpu gpu(input);
  with_type(input, [&](auto zero) {
    using T = decltype(zero);
    using R = Real<T>;
    const Source<T> source{g, data_of<T>(features), data_of<R>(offsets), data_of<R>(masks)};
    const Gradients<R> gradients{
        needs_input ? data_of<R>(grad_input) : nullptr, data_of<R>(grad_offset),
        needs_weight ? data_of<R>(grad_weight) : nullptr, mask ? data_of<R>(grad_mask) : nullptr};
    backward_pass(
        gpu, data_of<const T>(grad_outputs), source, data_of<const T>(weights), gradients);
  });
  return {
      torch::stable::to(grad_input, dtype), grad_offset, torch::stable::to(grad_weight, dtype),
      grad_mask};
}

}  // namespace
}  // namespace deform_conv

STABLE_TORCH_LIBRARY_IMPL(deform_conv, CUDA, m) {
  m.impl("forward", TORCH_BOX(&deform_conv::forward));
  m.impl("backward", TORCH_BOX(&deform_conv::backward));
}

STABLE_TORCH_LIBRARY_IMPL(deform_conv, CompositeExplicitAutograd, m) {
  m.impl("use_fused_cuda_forward", TORCH_BOX(&deform_conv::use_fused_cuda_forward));
}
