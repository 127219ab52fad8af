// Checks that the tensors of a deformable convolution fit together, on the CPU and on CUDA.
//
// Shapes of the operators' tensors (with any strides; kernels work on channels-last copies):
//
//     input   (N, C, H, W)            weight  (O, C / groups, kernel_h, kernel_w)
//     offset  (N, 2 G K, Ho, Wo)      (dy, dx) of each tap, taps row-major, offset groups outermost
//     mask    (N, G K, Ho, Wo)        optional; the operator is v1 without a mask, v2 with one
//     bias    (O)                     optional
//     output  (N, O, Ho, Wo)          in the memory format of the input
//
// There are K = kernel_h kernel_w taps, G offset groups and P = Ho Wo positions.
#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "checks.h"
#include "geometry.h"

namespace deform_conv {

constexpr const char* kOp = "deform_conv2d";

using IntPair = std::vector<int64_t>;  // (vertical, horizontal)

// Checks for two numbers of at least `least` that are small enough for locations to fit an int.
inline void check_pair(const char* name, const IntPair& pair, int64_t least) {
  STD_TORCH_CHECK(
      pair.size() == 2, "deform_conv2d: ", name, " must be a pair, got ", pair.size(), " numbers");
  STD_TORCH_CHECK(
      std::min(pair[0], pair[1]) >= least && std::max(pair[0], pair[1]) < (1 << 27),
      "deform_conv2d: ", name, " must be from ", least, " to 2^27 - 1, got (", pair[0], ", ",
      pair[1], ")");
}

inline int64_t output_size(
    int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  return (size + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1;
}

// Checks that the tensors fit together and returns the sizes.
inline Geometry checked_geometry(
    const Tensor& input, const Tensor& offset, const Tensor& weight,
    const std::optional<Tensor>& mask, const IntPair& stride, const IntPair& padding,
    const IntPair& dilation) {
  STD_TORCH_CHECK(
      input.dim() == 4, "deform_conv2d: input must be (N, C, H, W), got ", shape_of(input));
  STD_TORCH_CHECK(
      weight.dim() == 4, "deform_conv2d: weight must be (O, C / groups, kernel_h, kernel_w), got ",
      shape_of(weight));
  check_pair("stride", stride, 1);
  check_pair("padding", padding, 0);
  check_pair("dilation", dilation, 1);
  check_pair("kernel", {weight.size(2), weight.size(3)}, 1);
  check_pair("image", {input.size(2), input.size(3)}, 1);

  Geometry g;
  g.batch = input.size(0), g.channels = input.size(1);
  g.height = input.size(2), g.width = input.size(3);
  g.out_channels = weight.size(0), g.kernel_h = weight.size(2), g.kernel_w = weight.size(3);
  g.stride_h = stride[0], g.stride_w = stride[1];
  g.padding_h = padding[0], g.padding_w = padding[1];
  g.dilation_h = dilation[0], g.dilation_w = dilation[1];
  STD_TORCH_CHECK(
      g.channels > 0 && g.out_channels > 0 && weight.size(1) > 0 &&
          g.channels % weight.size(1) == 0,
      "deform_conv2d: weight ", shape_of(weight), " does not fit input ", shape_of(input));
  g.groups = g.channels / weight.size(1);
  STD_TORCH_CHECK(
      g.out_channels % g.groups == 0, "deform_conv2d: ", g.out_channels,
      " output channels cannot be divided into ", g.groups, " groups");
  g.out_height = output_size(g.height, g.kernel_h, g.stride_h, g.padding_h, g.dilation_h);
  g.out_width = output_size(g.width, g.kernel_w, g.stride_w, g.padding_w, g.dilation_w);
  STD_TORCH_CHECK(
      g.height + 2 * g.padding_h > g.dilation_h * (g.kernel_h - 1) &&
          g.width + 2 * g.padding_w > g.dilation_w * (g.kernel_w - 1),
      "deform_conv2d: input ", shape_of(input), " is too small for the kernel");
  STD_TORCH_CHECK(
      g.channels < (1 << 29), "deform_conv2d: input ", shape_of(input), " is too large");

  STD_TORCH_CHECK(
      offset.dim() == 4 && offset.size(1) > 0 && offset.size(1) % (2 * g.taps()) == 0,
      "deform_conv2d: offset must be (N, 2 * offset_groups * ", g.taps(), ", Ho, Wo), got ",
      shape_of(offset));
  g.offset_groups = offset.size(1) / (2 * g.taps());
  STD_TORCH_CHECK(
      g.channels % g.offset_groups == 0, "deform_conv2d: ", g.channels,
      " input channels cannot be divided into ", g.offset_groups, " offset groups");
  check_shape(kOp, "offset", offset, {g.batch, offset.size(1), g.out_height, g.out_width});
  check_kind(kOp, "weight", weight, input.scalar_type(), input);
  check_kind(kOp, "offset", offset, location_dtype(input), input);
  if (mask) {
    check_shape(
        kOp, "mask", *mask, {g.batch, g.offset_groups * g.taps(), g.out_height, g.out_width});
    check_kind(kOp, "mask", *mask, location_dtype(input), input);
  }
  return g;
}

inline void check_bias(const std::optional<Tensor>& bias, const Tensor& input, const Geometry& g) {
  if (!bias) return;
  check_shape(kOp, "bias", *bias, {g.out_channels});
  check_kind(kOp, "bias", *bias, input.scalar_type(), input);
}

inline void check_grad_output(const Tensor& grad_output, const Tensor& input, const Geometry& g) {
  check_shape(
      kOp, "grad_output", grad_output, {g.batch, g.out_channels, g.out_height, g.out_width});
  check_kind(kOp, "grad_output", grad_output, input.scalar_type(), input);
}

}  // namespace deform_conv
