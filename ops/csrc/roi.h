// RoIAlign with bins that may move, written once for CPU and CUDA: which samples a bin averages,
// and which pixels these read with which weights.
//
// A RoI is cut into bins, and a bin into a grid of samples. Without offsets this is torchvision's
// RoIAlign. With them, every bin moves by gamma * offset * the RoI's size (Dai et al. 2017,
// equation 6), as in mmcv's DeformRoIPool; with a mask, its average is multiplied by a factor (Zhu
// et al. 2018, equation 2).
//
// The samples of a bin are the product of some rows and some columns, and so are their bilinear
// weights. What a bin averages is therefore
//
//     sum over its pixel rows y of  weight_y  sum over its pixel columns x of  weight_x pixel(y, x)
//
// with the weights of an axis summed over its samples. A derivative with respect to the bin's place
// replaces the weights of one axis by their slopes.
//
// Along an axis, a sample up to a pixel outside the image has the value of the border, and further
// out none; beyond the border, and on the last pixel, the slope is zero. A NaN, infinite or
// absurdly large box or offset samples nothing.
//
// R is float or double: places never have the features' reduced precision.
#pragma once

#include "bilinear.h"

namespace deform_conv {

struct RoiGeometry {
  int64_t batch, channels, height, width;
  int64_t num_rois, out_height, out_width;
  int64_t
      sampling_ratio;  // samples of a bin along an axis; 0: as many as it has pixels, rounded up
  int64_t aligned;     // whether pixels are centred on half coordinates
  double spatial_scale, gamma;

  DEFORM_CONV_HOST_DEVICE int64_t bins() const { return out_height * out_width; }
};

// One axis of a RoI, in pixels of the features; all zeros if the RoI is no place.
template <typename R>
struct RoiAxis {
  R start, size, bin;
  int grid;  // samples of a bin; 0: nothing is sampled
};

template <typename R>
struct Roi {
  int64_t image;  // -1: of no image
  RoiAxis<R> y, x;

  // One over the number of samples of a bin.
  DEFORM_CONV_HOST_DEVICE R share() const {
    return y.grid && x.grid ? 1 / (R(y.grid) * x.grid) : 0;
  }
};

DEFORM_CONV_HOST_DEVICE float ceil_of(float value) { return ceilf(value); }
DEFORM_CONV_HOST_DEVICE double ceil_of(double value) { return ceil(value); }

template <typename R>
DEFORM_CONV_HOST_DEVICE RoiAxis<R> axis_of(
    const RoiGeometry& g, R first, R last, int64_t num_bins) {
  const R shift = g.aligned ? R(0.5) : R(0), scale = static_cast<R>(g.spatial_scale);
  RoiAxis<R> axis{};
  axis.start = first * scale - shift;
  axis.size = last * scale - shift - axis.start;
  if (!g.aligned && axis.size < 1) axis.size = 1;
  axis.bin = axis.size / static_cast<R>(num_bins);
  const R most = R(1 << 30);
  const bool is_sane = -most < axis.start && axis.start < most && -most < axis.size &&
                       axis.size < most;  // not if NaN
  if (!is_sane) return {};
  axis.grid = static_cast<int>(g.sampling_ratio > 0 ? R(g.sampling_ratio) : ceil_of(axis.bin));
  if (axis.grid < 0) axis.grid = 0;
  return axis;
}

// box: (image, x1, y1, x2, y2) in pixels of the image
template <typename R>
DEFORM_CONV_HOST_DEVICE Roi<R> roi_of(const RoiGeometry& g, const R* box) {
  const bool has_image = box[0] > R(-1) && box[0] < static_cast<R>(g.batch);  // not if NaN
  return {
      has_image ? static_cast<int64_t>(box[0]) : -1, axis_of(g, box[2], box[4], g.out_height),
      axis_of(g, box[1], box[3], g.out_width)};
}

// Where a bin starts along an axis, moved by an offset.
template <typename R>
DEFORM_CONV_HOST_DEVICE R
bin_start(const RoiGeometry& g, const RoiAxis<R>& axis, int64_t bin, R offset) {
  const R start = axis.start + static_cast<R>(g.gamma) * axis.size * offset;
  return start + static_cast<R>(bin) * axis.bin;
}

// The place of a sample of a bin along an axis.
template <typename R>
DEFORM_CONV_HOST_DEVICE R sample_place(const RoiAxis<R>& axis, R start, int sample) {
  return start + (static_cast<R>(sample) + R(0.5)) * axis.bin / static_cast<R>(axis.grid);
}

// Samples [first, last) of a bin, before and behind which all are outside the image.
struct SampleRange {
  int first, last;
};

// All samples of a usual bin. One far larger than the image has samples without number.
template <typename R>
DEFORM_CONV_HOST_DEVICE SampleRange samples_near(const RoiAxis<R>& axis, R start, int64_t size) {
  if (axis.grid <= size || !(axis.bin > 0)) return {0, axis.grid};
  const double per_pixel = axis.grid / double(axis.bin);
  const double slack = 2 + 1e-6 * per_pixel * (fabs(double(start)) + double(axis.bin));
  const double first = (-1 - double(start)) * per_pixel - slack;
  const double last = (double(size) - double(start)) * per_pixel + slack;
  if (!(first < axis.grid && last > 0)) return {0, 0};  // so with NaN
  return {first > 0 ? int(first) : 0, last < axis.grid ? int(last) : axis.grid};
}

// A sample along an axis of `size` pixels: its value is (1 - fraction) of the pixel `low` and
// `fraction` of the next one.
template <typename R>
struct AxisSample {
  int low;
  R fraction;
  bool inside;  // whether there is a value; if not, nothing else holds
  bool moves;   // whether the value changes with the place: not outside, where it is the border's
};

template <typename R>
DEFORM_CONV_HOST_DEVICE AxisSample<R> sample_axis(R place, int64_t size) {
  AxisSample<R> sample{};
  sample.inside = place >= -1 && place <= static_cast<R>(size);  // not if NaN
  if (!sample.inside || place < 0) return sample;
  sample.low = static_cast<int>(place);
  sample.moves = sample.low < size - 1;
  if (sample.moves)
    sample.fraction = place - static_cast<R>(sample.low);
  else
    sample.low = static_cast<int>(size - 1);
  return sample;
}

}  // namespace deform_conv
