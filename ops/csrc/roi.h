// The sampling rule of RoIAlign with bins that may move, shared by CPU and CUDA: the samples that a
// bin averages, and the pixels that a sample reads, with their weights.
//
// A RoI is divided into bins, and a bin into a grid of samples. Without offsets this is
// torchvision's RoIAlign. With offsets, every bin moves by gamma * offset * the RoI's size (Dai et
// al. 2017, equation 6), as in mmcv's DeformRoIPool. With a mask, the average of a bin is
// multiplied by a factor (Zhu et al. 2018, equation 2).
//
// The samples of a bin form a grid of rows and columns, and the bilinear weight of a pixel is the
// product of a weight along y and a weight along x. The sum of a bin's samples is therefore
//
//     sum over its pixel rows y of  weight_y  sum over its pixel columns x of  weight_x pixel(y, x)
//
// where the weights along an axis are summed over the samples along that axis. In a derivative with
// respect to the bin's position, the slopes of the weights replace the weights of one axis.
//
// Along an axis, a sample up to one pixel outside the image has the value of the border; a sample
// farther outside has no value. The slope is zero outside the border and on the last pixel. A NaN,
// infinite or absurdly large box or offset samples nothing.
//
// R is float or double: positions never have the features' 16-bit precision.
#pragma once

#include "bilinear.h"

namespace deform_conv {

struct RoiGeometry {
  int64_t batch, channels, height, width;
  int64_t num_rois, out_height, out_width;
  int64_t
      sampling_ratio;  // samples of a bin along an axis; 0: as many as it has pixels, rounded up
  int64_t aligned;     // whether boxes are shifted by half a pixel of the features
  double spatial_scale, gamma;

  DEFORM_CONV_HOST_DEVICE int64_t bins() const { return out_height * out_width; }
};

// One axis of a RoI, in pixels of the features; all zeros for a NaN, infinite or absurd RoI.
template <typename R>
struct RoiAxis {
  R start, size, bin;
  int grid;  // samples of a bin along this axis; 0: nothing is sampled
};

template <typename R>
struct Roi {
  int64_t image;  // -1 if the index is out of range
  RoiAxis<R> y, x;

  // Returns the share of a sample in the average of a bin: one over the number of samples.
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
                       axis.size < most;  // false for NaN
  if (!is_sane) return {};
  axis.grid = static_cast<int>(g.sampling_ratio > 0 ? R(g.sampling_ratio) : ceil_of(axis.bin));
  if (axis.grid < 0) axis.grid = 0;
  return axis;
}

// box: (image, x1, y1, x2, y2) in pixels of the image
template <typename R>
DEFORM_CONV_HOST_DEVICE Roi<R> roi_of(const RoiGeometry& g, const R* box) {
  const bool has_image = box[0] > R(-1) && box[0] < static_cast<R>(g.batch);  // false for NaN
  return {
      has_image ? static_cast<int64_t>(box[0]) : -1, axis_of(g, box[2], box[4], g.out_height),
      axis_of(g, box[1], box[3], g.out_width)};
}

// Returns the position along an axis at which a bin starts after it has moved by its offset.
template <typename R>
DEFORM_CONV_HOST_DEVICE R
bin_start(const RoiGeometry& g, const RoiAxis<R>& axis, int64_t bin, R offset) {
  const R start = axis.start + static_cast<R>(g.gamma) * axis.size * offset;
  return start + static_cast<R>(bin) * axis.bin;
}

// Returns the position along an axis of a sample of the bin that starts at `start`.
template <typename R>
DEFORM_CONV_HOST_DEVICE R sample_place(const RoiAxis<R>& axis, R start, int sample) {
  return start + (static_cast<R>(sample) + R(0.5)) * axis.bin / static_cast<R>(axis.grid);
}

// Samples [first, last) of a bin along an axis; all others are outside the image.
struct SampleRange {
  int first, last;
};

// Returns all samples of a bin along an axis or, if they outnumber the `size` pixels of the image,
// only those near the image, so that the cost is bounded.
template <typename R>
DEFORM_CONV_HOST_DEVICE SampleRange samples_near(const RoiAxis<R>& axis, R start, int64_t size) {
  if (axis.grid <= size || !(axis.bin > 0)) return {0, axis.grid};
  const double per_pixel = axis.grid / double(axis.bin);
  const double slack = 2 + 1e-6 * per_pixel * (fabs(double(start)) + double(axis.bin));
  const double first = (-1 - double(start)) * per_pixel - slack;
  const double last = (double(size) - double(start)) * per_pixel + slack;
  if (!(first < axis.grid && last > 0)) return {0, 0};  // also for NaN
  return {first > 0 ? int(first) : 0, last < axis.grid ? int(last) : axis.grid};
}

// A sample along an axis: its value is (1 - fraction) * pixel `low` + fraction * the next pixel.
template <typename R>
struct AxisSample {
  int low;
  R fraction;
  bool inside;  // whether the sample has a value; if not, the other members mean nothing
  bool moves;   // whether the value depends on the position; false where it is the border's value
};

template <typename R>
DEFORM_CONV_HOST_DEVICE AxisSample<R> sample_axis(R place, int64_t size) {
  AxisSample<R> sample{};
  sample.inside = place >= -1 && place <= static_cast<R>(size);  // false for NaN
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
