// Deformable RoI pooling on the CPU. The forward and the gradients of offsets and mask process RoIs
// in parallel. For the gradient of the features, to whose pixels several RoIs add, a task owns some
// channels of one image and adds its RoIs in order: every sum has one order for any number of
// threads.
//
// 16-bit features are computed in float.
#include <algorithm>
#include <numeric>
#include <tuple>
#include <utility>

#include "../deform_roi_pool.h"
#include "capability.h"
#include "layout.h"

namespace deform_conv {
namespace {

constexpr int64_t kLeastChannels = 32;  // fewest channels of a task: two cache lines
constexpr int64_t kTasksOfThread = 4;   // desired number of tasks per thread

template <typename R>
R* data(const Tensor& tensor) {
  return static_cast<R*>(tensor.data_ptr());
}
template <typename R>
R* data(const std::optional<Tensor>& tensor) {
  return tensor ? data<R>(*tensor) : nullptr;
}

// Returns the order in which RoIs are processed: by image and from top to bottom, so that a RoI
// finds in the cache what the previous one has read.
template <typename R>
std::vector<int64_t> order_of(const RoiGeometry& g, const R* boxes) {
  std::vector<int64_t> order(g.num_rois);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    const Roi<R> one = roi_of(g, boxes + 5 * a), other = roi_of(g, boxes + 5 * b);
    return std::pair(one.image, one.y.start) < std::pair(other.image, other.y.start);
  });
  return order;
}

// Throws if the image's index of a box is out of range. On CUDA, where this check would have to
// wait for the GPU, the output of such a box is NaN.
template <typename R>
void check_images(const RoiGeometry& g, const R* boxes) {
  for (int64_t roi = 0; roi < g.num_rois; ++roi)
    STD_TORCH_CHECK(
        roi_of(g, boxes + 5 * roi).image >= 0, kRoiPool, ": boxes[", roi, "] is of image ",
        boxes[5 * roi], ", and input has ", g.batch);
}

// Calls `function` with the kernels for features of this dtype and a zero of the type that they
// compute in.
template <typename Function>
void with_kernels(const Tensor& input, const Function& function) {
  const RoiTable& kernels = roi_kernels_in_use();
  if (input.scalar_type() == ScalarType::Double)
    function(*kernels.float64, double());
  else
    function(*kernels.float32, float());
}

Tensor forward(
    const Tensor& input, const Tensor& boxes, const std::optional<Tensor>& offset,
    const std::optional<Tensor>& mask, const std::vector<int64_t>& output_size,
    double spatial_scale, int64_t sampling_ratio, bool aligned, double gamma) {
  const RoiGeometry g = checked_roi_geometry(
      input, boxes, offset, mask, output_size, spatial_scale, sampling_ratio, aligned, gamma);
  const ScalarType dtype = location_dtype(input);
  const Tensor features = fast_channels_last(input, dtype), rois = torch::stable::contiguous(boxes);
  const auto offsets = contiguous_or_none(offset), masks = contiguous_or_none(mask);
  const Tensor output = torch::stable::empty(
      {g.num_rois, g.channels, g.out_height, g.out_width}, dtype, std::nullopt, input.device());
  with_kernels(input, [&](const auto& kernels, auto zero) {
    using R = decltype(zero);
    check_images(g, data<R>(rois));
    const std::vector<int64_t> order = order_of(g, data<const R>(rois));
    const RoiSamples<R> samples{
        g, data<R>(features), data<R>(rois), data<R>(offsets), data<R>(masks), order.data()};
    torch::stable::parallel_for(0, g.num_rois, 1, [&](int64_t first, int64_t last) {
      kernels.forward(samples, data<R>(output), first, last);
    });
  });
  return torch::stable::to(output, input.scalar_type());
}

// Returns the number of channels of a task; the last task of each image may have fewer.
int64_t task_channels(const RoiGeometry& g) {
  const int64_t tasks = kTasksOfThread * torch::stable::get_num_threads();
  const int64_t wanted = g.channels * g.batch / tasks / kLeastChannels * kLeastChannels;
  return std::clamp(wanted, kLeastChannels, std::max(kLeastChannels, g.channels));
}

template <typename R>
void backward_input(
    const RoiKernels<R>& kernels, const RoiSamples<R>& samples, const R* grad_output,
    R* grad_input) {
  const RoiGeometry& g = samples.g;
  const int64_t channels = task_channels(g);
  const int64_t per_image = (g.channels + channels - 1) / channels;
  torch::stable::parallel_for(0, g.batch * per_image, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % per_image * channels;
      kernels.backward_input(
          samples, grad_output, grad_input, task / per_image, first,
          std::min(first + channels, g.channels));
    }
  });
}

std::tuple<Tensor, Tensor, Tensor> backward(
    const Tensor& grad_output, const Tensor& input, const Tensor& boxes,
    const std::optional<Tensor>& offset, const std::optional<Tensor>& mask,
    const std::vector<int64_t>& output_size, double spatial_scale, int64_t sampling_ratio,
    bool aligned, double gamma, bool needs_input, bool needs_offset, bool needs_mask) {
  const RoiGeometry g = checked_roi_geometry(
      input, boxes, offset, mask, output_size, spatial_scale, sampling_ratio, aligned, gamma);
  check_roi_gradient(grad_output, input, g);
  const ScalarType dtype = location_dtype(input);
  const Tensor upstream = torch::stable::contiguous(torch::stable::to(grad_output, dtype)),
               rois = torch::stable::contiguous(boxes);
  const auto offsets = contiguous_or_none(offset), masks = contiguous_or_none(mask);
  const bool needs_bins = needs_offset || needs_mask;
  const auto nothing = [&] {
    return torch::stable::empty({0}, dtype, std::nullopt, input.device());
  };
  const Tensor features = needs_bins ? fast_channels_last(input, dtype) : input;
  Tensor grad_input = needs_input ? empty_channels_last(input, dtype) : nothing();
  torch::stable::zero_(grad_input);
  const Tensor grad_offset = needs_offset ? torch::stable::empty_like(*offsets) : nothing(),
               grad_mask = needs_mask ? torch::stable::empty_like(*masks) : nothing();
  with_kernels(input, [&](const auto& kernels, auto zero) {
    using R = decltype(zero);
    check_images(g, data<R>(rois));
    const std::vector<int64_t> order = order_of(g, data<const R>(rois));
    const RoiSamples<R> samples{
        g, data<R>(features), data<R>(rois), data<R>(offsets), data<R>(masks), order.data()};
    if (needs_input) backward_input(kernels, samples, data<const R>(upstream), data<R>(grad_input));
    if (!needs_bins) return;
    torch::stable::parallel_for(0, g.num_rois, 1, [&](int64_t first, int64_t last) {
      kernels.backward_bins(
          samples, data<const R>(upstream), needs_offset ? data<R>(grad_offset) : nullptr,
          needs_mask ? data<R>(grad_mask) : nullptr, first, last);
    });
  });
  return {needs_input ? formatted_as(input, grad_input) : nothing(), grad_offset, grad_mask};
}

}  // namespace
}  // namespace deform_conv

STABLE_TORCH_LIBRARY_IMPL(deform_roi_pool, CPU, m) {
  m.impl("forward", TORCH_BOX(&deform_conv::forward));
  m.impl("backward", TORCH_BOX(&deform_conv::backward));
}
