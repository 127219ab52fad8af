// Checks that the tensors of a deformable RoI pooling fit together, on the CPU and on CUDA.
//
// Shapes of the operators' tensors (with any strides):
//
//     input   (N, C, H, W)     boxes   (R, 5): image, x1, y1, x2, y2
//     offset  (R, 2, Ho, Wo)   optional: offsets of the bins, first along x, then along y
//     mask    (R, Ho, Wo)      optional
//     output  (R, C, Ho, Wo)   contiguous
#pragma once

#include <optional>
#include <vector>

#include "checks.h"
#include "roi.h"

namespace deform_conv {

constexpr const char* kRoiPool = "deform_roi_pool";

inline RoiGeometry checked_roi_geometry(
    const Tensor& input, const Tensor& boxes, const std::optional<Tensor>& offset,
    const std::optional<Tensor>& mask, const std::vector<int64_t>& output_size,
    double spatial_scale, int64_t sampling_ratio, bool aligned, double gamma) {
  STD_TORCH_CHECK(
      input.dim() == 4, kRoiPool, ": input must be (N, C, H, W), got ", shape_of(input));
  STD_TORCH_CHECK(
      boxes.dim() == 2 && boxes.size(1) == 5, kRoiPool, ": boxes must be (R, 5), got ",
      shape_of(boxes));
  STD_TORCH_CHECK(
      output_size.size() == 2 && output_size[0] > 0 && output_size[1] > 0 &&
          output_size[0] < (1 << 15) && output_size[1] < (1 << 15),
      kRoiPool, ": output_size must be two numbers from 1 to 32767");
  STD_TORCH_CHECK(
      sampling_ratio < (1 << 15), kRoiPool, ": sampling_ratio must be below 32768, got ",
      sampling_ratio);
  STD_TORCH_CHECK(
      input.size(1) > 0 && input.size(2) > 0 && input.size(3) > 0 && input.size(1) < (1 << 29) &&
          input.size(2) < (1 << 27) && input.size(3) < (1 << 27),
      kRoiPool, ": input ", shape_of(input), " is empty or too large");
  RoiGeometry g;
  g.batch = input.size(0), g.channels = input.size(1);
  g.height = input.size(2), g.width = input.size(3);
  g.num_rois = boxes.size(0), g.out_height = output_size[0], g.out_width = output_size[1];
  g.sampling_ratio = sampling_ratio > 0 ? sampling_ratio : 0, g.aligned = aligned;
  g.spatial_scale = spatial_scale, g.gamma = gamma;
  const ScalarType location = location_dtype(input);
  check_kind(kRoiPool, "boxes", boxes, location, input);
  if (offset) {
    check_shape(kRoiPool, "offset", *offset, {g.num_rois, 2, g.out_height, g.out_width});
    check_kind(kRoiPool, "offset", *offset, location, input);
  }
  if (mask) {
    check_shape(kRoiPool, "mask", *mask, {g.num_rois, g.out_height, g.out_width});
    check_kind(kRoiPool, "mask", *mask, location, input);
  }
  return g;
}

inline void check_roi_gradient(
    const Tensor& grad_output, const Tensor& input, const RoiGeometry& g) {
  check_shape(
      kRoiPool, "grad_output", grad_output, {g.num_rois, g.channels, g.out_height, g.out_width});
  check_kind(kRoiPool, "grad_output", grad_output, input.scalar_type(), input);
}

inline std::optional<Tensor> contiguous_or_none(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional(torch::stable::contiguous(*tensor)) : std::nullopt;
}

}  // namespace deform_conv
