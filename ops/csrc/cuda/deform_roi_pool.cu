// The deformable RoI pooling of the CUDA library: the passes of roi_passes.h on PyTorch's tensors.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../deform_roi_pool.h"
#include "gpu.cuh"
#include "roi_passes.h"

namespace deform_conv {
namespace {

Tensor forward(
    const Tensor& input, const Tensor& boxes, const std::optional<Tensor>& offset,
    const std::optional<Tensor>& mask, const std::vector<int64_t>& output_size,
    double spatial_scale, int64_t sampling_ratio, bool aligned, double gamma) {
  const RoiGeometry g = checked_roi_geometry(
      input, boxes, offset, mask, output_size, spatial_scale, sampling_ratio, aligned, gamma);
  const DeviceGuard guard(input.get_device_index());
  const ScalarType dtype = input.scalar_type();
  const Tensor output = torch::stable::empty(
      {g.num_rois, g.channels, g.out_height, g.out_width}, dtype, std::nullopt, input.device(),
      std::nullopt, MemoryFormat::ChannelsLast);
  const Tensor features = channels_last(input, dtype), rois = torch::stable::contiguous(boxes);
  const auto offsets = contiguous_or_none(offset), masks = contiguous_or_none(mask);
  Gpu gpu(input);
  with_type(input, [&](auto zero) {
    using T = decltype(zero);
    using R = Real<T>;
    const RoiSource<T> source{
        g, data_of<T>(features), data_of<R>(rois), data_of<R>(offsets), data_of<R>(masks)};
    roi_forward_pass(gpu, source, data_of<T>(output));
  });
  return torch::stable::contiguous(output);
}

std::tuple<Tensor, Tensor, Tensor> backward(
    const Tensor& grad_output, const Tensor& input, const Tensor& boxes,
    const std::optional<Tensor>& offset, const std::optional<Tensor>& mask,
    const std::vector<int64_t>& output_size, double spatial_scale, int64_t sampling_ratio,
    bool aligned, double gamma, bool needs_input, bool needs_offset, bool needs_mask) {
  const RoiGeometry g = checked_roi_geometry(
      input, boxes, offset, mask, output_size, spatial_scale, sampling_ratio, aligned, gamma);
  check_roi_gradient(grad_output, input, g);
  const DeviceGuard guard(input.get_device_index());
  const ScalarType dtype = input.scalar_type(), location = location_dtype(input);
  const auto nothing = [&] {
    return torch::stable::empty({0}, location, std::nullopt, input.device());
  };
  const Tensor upstream = channels_last(grad_output, dtype), features = channels_last(input, dtype),
               rois = torch::stable::contiguous(boxes);
  const auto offsets = contiguous_or_none(offset), masks = contiguous_or_none(mask);
  const Tensor grad_input = needs_input ? empty_channels_last(input, location) : nothing(),
               grad_offset = needs_offset ? torch::stable::empty_like(*offsets) : nothing(),
               grad_mask = needs_mask ? torch::stable::empty_like(*masks) : nothing();
  Gpu gpu(input);
  with_type(input, [&](auto zero) {
    using T = decltype(zero);
    using R = Real<T>;
    const RoiSource<T> source{
        g, data_of<T>(features), data_of<R>(rois), data_of<R>(offsets), data_of<R>(masks)};
    roi_backward_pass(
        gpu, source, data_of<const T>(upstream), needs_input ? data_of<R>(grad_input) : nullptr,
        needs_offset ? data_of<R>(grad_offset) : nullptr,
        needs_mask ? data_of<R>(grad_mask) : nullptr);
  });
  return {needs_input ? formatted_as(input, grad_input) : nothing(), grad_offset, grad_mask};
}

}  // namespace
}  // namespace deform_conv

STABLE_TORCH_LIBRARY_IMPL(deform_roi_pool, CUDA, m) {
  m.impl("forward", TORCH_BOX(&deform_conv::forward));
  m.impl("backward", TORCH_BOX(&deform_conv::backward));
}
