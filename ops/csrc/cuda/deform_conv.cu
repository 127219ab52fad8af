// The deformable convolution of the CUDA library: the passes of passes.h on PyTorch's tensors.
#include <torch/csrc/stable/library.h>

#include <atomic>
#include <tuple>

#include "../deform_conv.h"
#include "gpu.cuh"
#include "passes.h"

namespace deform_conv {
namespace {

// ---- the device -----------------------------------------------------------------------------

std::atomic<bool> fuses = true;

// Chooses the forward in one kernel (fused_forward.cuh), where it applies, or the forward in
// chunks. Returns the previous choice.
bool use_fused_cuda_forward(bool fused) { return fuses.exchange(fused); }

class ConvolutionGpu : public Gpu {
 public:
  using Gpu::Gpu;

  bool may_fuse() const { return fuses; }
};

// ---- operators ------------------------------------------------------------------------------

// A tensor (N, C, H, W) whose channels are contiguous, and the elements between two positions.
struct Rows {
  Tensor tensor;
  int64_t stride;
};

// Returns the tensor itself if its positions are evenly spaced, as in channels-last memory or in a
// slice of its channels, and a copy otherwise.
Rows rows_of(const Tensor& tensor) {
  const int64_t channels = tensor.size(1), height = tensor.size(2), width = tensor.size(3);
  int64_t stride = channels;  // if there is a single position
  if (tensor.size(0) > 1) stride = tensor.stride(0) / (height * width);
  if (height > 1) stride = tensor.stride(2) / width;
  if (width > 1) stride = tensor.stride(3);
  const auto is_at = [&](int64_t axis, int64_t expected) {
    return tensor.size(axis) == 1 || tensor.stride(axis) == expected;
  };
  if (is_at(0, height * width * stride) && is_at(1, 1) && is_at(2, width * stride) &&
      is_at(3, stride))
    return {tensor, stride};
  return {torch::stable::contiguous(tensor, MemoryFormat::ChannelsLast), channels};
}

std::optional<Rows> rows_of(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional(rows_of(*tensor)) : std::nullopt;
}

template <typename T>
Source<T> source_of(
    const Geometry& g, const Tensor& features, const Rows& offset,
    const std::optional<Rows>& mask) {
  using R = Real<T>;
  return {
      g,
      data_of<T>(features),
      data_of<R>(offset.tensor),
      mask ? data_of<R>(mask->tensor) : nullptr,
      offset.stride,
      mask ? mask->stride : 0};
}

// Elements of a row of columns, with up to four corners each, and output channels are counted by
// int.
void check_row(const Geometry& g) {
  STD_TORCH_CHECK(
      g.channels * g.taps() < (1 << 29), "deform_conv2d: ", g.channels, " channels of ", g.taps(),
      " taps are too many for CUDA");
  STD_TORCH_CHECK(
      g.out_channels < (1 << 29), "deform_conv2d: ", g.out_channels,
      " output channels are too many for CUDA");
}

Tensor forward(
    const Tensor& input, const Tensor& offset, const Tensor& weight,
    const std::optional<Tensor>& bias, const std::optional<Tensor>& mask, const IntPair& stride,
    const IntPair& padding, const IntPair& dilation, bool allow_tf32) {
  const Geometry g = checked_geometry(input, offset, weight, mask, stride, padding, dilation);
  check_bias(bias, input, g);
  check_row(g);
  const DeviceGuard guard(input.get_device_index());
  const ScalarType dtype = input.scalar_type();
  const Tensor output = torch::stable::empty(
      {g.batch, g.out_channels, g.out_height, g.out_width}, dtype, std::nullopt, input.device(),
      std::nullopt, MemoryFormat::ChannelsLast);
  const Tensor features = channels_last(input, dtype), weights = channels_last(weight, dtype);
  const Rows offsets = rows_of(offset);
  const auto masks = rows_of(mask);
  const auto biases = bias ? std::optional(torch::stable::contiguous(*bias)) : std::nullopt;
  ConvolutionGpu gpu(input, allow_tf32);
  with_type(input, [&](auto zero) {
    using T = decltype(zero);
    forward_pass(
        gpu, source_of<T>(g, features, offsets, masks), data_of<const T>(weights),
        data_of<const T>(biases), data_of<T>(output));
  });
  return formatted_as(input, output);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& grad_output, const Tensor& input, const Tensor& offset, const Tensor& weight,
    const std::optional<Tensor>& mask, const IntPair& stride, const IntPair& padding,
    const IntPair& dilation, bool needs_input, bool needs_weight, bool allow_tf32) {
  const Geometry g = checked_geometry(input, offset, weight, mask, stride, padding, dilation);
  check_grad_output(grad_output, input, g);
  check_row(g);
  const DeviceGuard guard(input.get_device_index());
  const ScalarType dtype = input.scalar_type(), location = location_dtype(input);
  const auto nothing = [&] {
    return torch::stable::empty({0}, location, std::nullopt, input.device());
  };
  const Tensor grad_offset = empty_channels_last(offset, location);
  const Tensor grad_mask = mask ? empty_channels_last(*mask, location) : nothing();
  Tensor grad_input = nothing(), grad_weight = nothing();
  const Tensor grad_outputs = channels_last(grad_output, dtype),
               features = channels_last(input, dtype), weights = channels_last(weight, dtype);
  const Rows offsets = rows_of(offset);
  const auto masks = rows_of(mask);
  ConvolutionGpu gpu(input, allow_tf32);
  with_type(input, [&](auto zero) {
    using T = decltype(zero);
    using R = Real<T>;
    const auto run = [&](auto sum) {
      using Grad = decltype(sum);
      const ScalarType sums = std::is_same_v<Grad, T> ? dtype : location;
      if (needs_input) grad_input = empty_channels_last(input, sums);
      if (needs_weight) grad_weight = empty_channels_last(weight, sums);
      const Gradients<R, Grad> gradients{
          needs_input ? data_of<Grad>(grad_input) : nullptr, data_of<R>(grad_offset),
          needs_weight ? data_of<Grad>(grad_weight) : nullptr,
          mask ? data_of<R>(grad_mask) : nullptr};
      backward_pass(
          gpu, data_of<const T>(grad_outputs), source_of<T>(g, features, offsets, masks),
          data_of<const T>(weights), gradients);
    };
    if (backward_chunks<T>(g, gpu.most_bytes).size() > 1)
      run(R());
    else
      run(T());
  });
  return {
      needs_input ? formatted_as(input, grad_input) : grad_input, formatted_as(offset, grad_offset),
      needs_weight ? formatted_as(weight, grad_weight) : grad_weight,
      mask ? formatted_as(*mask, grad_mask) : grad_mask};
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
