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

std::atomic<bool> fuses = false;

// Chooses the forward in one kernel (fused_forward.cuh), where it applies, or the forward in
// chunks. Returns the previous choice. The forward in one kernel has not been timed yet.
bool use_fused_cuda_forward(bool fused) { return fuses.exchange(fused); }

class ConvolutionGpu : public Gpu {
 public:
  using Gpu::Gpu;

  bool may_fuse() const { return fuses; }
};

// ---- operators ------------------------------------------------------------------------------

// Elements of a row of columns, with up to four corners each, are counted by int.
void check_row(const Geometry& g) {
  STD_TORCH_CHECK(
      g.channels * g.taps() < (1 << 29), "deform_conv2d: ", g.channels, " channels of ", g.taps(),
      " taps are too many for CUDA");
}

Tensor forward(
    const Tensor& input, const Tensor& offset, const Tensor& weight,
    const std::optional<Tensor>& bias, const std::optional<Tensor>& mask, const IntPair& stride,
    const IntPair& padding, const IntPair& dilation, bool /* cuBLAS has its own setting */) {
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
  ConvolutionGpu gpu(input);
  with_type(input, [&](auto zero) {
    using T = decltype(zero);
    using R = Real<T>;
    const Source<T> source{g, data_of<T>(features), data_of<R>(offsets), data_of<R>(masks)};
    forward_pass(
        gpu, source, data_of<const T>(weights), data_of<const T>(biases), data_of<T>(output));
  });
  return formatted_as(input, output);
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
  ConvolutionGpu gpu(input);
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
      needs_input ? formatted_as(input, grad_input) : nothing, formatted_as(offset, grad_offset),
      needs_weight ? formatted_as(weight, grad_weight) : nothing,
      mask ? formatted_as(*mask, grad_mask) : nothing};
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
