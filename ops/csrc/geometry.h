// The sizes of a deformable convolution, and the locations that its taps sample. This file includes
// nothing of torch: the files of kernels, each compiled for one processor, must not share inline
// functions with any other file.
#pragma once

#include "bilinear.h"

namespace deform_conv {

struct Geometry {
  int64_t batch, channels, height, width;
  int64_t out_channels, out_height, out_width;
  int64_t kernel_h, kernel_w;
  int64_t stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
  int64_t groups, offset_groups;

  DEFORM_CONV_HOST_DEVICE int64_t taps() const { return kernel_h * kernel_w; }
  DEFORM_CONV_HOST_DEVICE int64_t positions() const { return out_height * out_width; }
  DEFORM_CONV_HOST_DEVICE int64_t group_channels() const { return channels / groups; }
  DEFORM_CONV_HOST_DEVICE int64_t group_out_channels() const { return out_channels / groups; }
};

// Returns the location in the image that tap (ky, kx) of output position (y, x) samples.
template <typename T>
DEFORM_CONV_HOST_DEVICE Location<T> locate_tap(
    const Geometry& g, int64_t y, int64_t x, int64_t ky, int64_t kx, T dy, T dx) {
  return locate<T>(
      y * g.stride_h - g.padding_h + ky * g.dilation_h,
      x * g.stride_w - g.padding_w + kx * g.dilation_w, dy, dx, g.height, g.width);
}

// As above, for a position and a tap that are counted row by row.
template <typename T>
DEFORM_CONV_HOST_DEVICE Location<T> locate_tap(
    const Geometry& g, int64_t position, int64_t tap, T dy, T dx) {
  const int64_t y = position / g.out_width, ky = tap / g.kernel_w;
  return locate_tap(g, y, position - y * g.out_width, ky, tap - ky * g.kernel_w, dy, dx);
}

// The `count` consecutive channels from `first` on, which belong to one offset group.
struct Channels {
  int64_t first, count;
  int64_t offset_group;
};

}  // namespace deform_conv
