// Sampling of runs of channels at one location, and its backward. Channels are contiguous in memory
// (channels-last): a location is computed once for all of them, and the loops use vectors.
#pragma once

#include "vector.h"

namespace deform_conv {
namespace {

// The four corner pixels of a location: pointers to their first channels, and their weights times
// the mask. Corners outside the image point to zeros, so that the loops have no branches.
template <typename T>
struct Corners {
  const T* pixel[4];
  Real<T> weight[4];
};

template <typename T>
DEFORM_CONV_INLINE Corners<T> corners_of(
    const Location<Real<T>>& at, const T* image, int height, int width, int64_t channels,
    Real<T> modulation, const T* zeros) {
  Corners<T> corners;
  for (int k = 0; k < 4; ++k) {
    const bool exists = has_corner(at, k, height, width);
    corners.pixel[k] = exists ? image + corner_pixel(at, k, width) * channels : zeros;
    corners.weight[k] = exists ? modulation * corner_weight(at, k) : Real<T>(0);
  }
  return corners;
}

// column[c] = sum over the corners of weight * pixel[c]
template <typename T>
DEFORM_CONV_INLINE void blend(const Corners<T>& from, int64_t channels, T* column) {
  using R = Real<T>;
  int64_t c = 0;
  for (; c + kLanes<R> <= channels; c += kLanes<R>)
    store(
        column + c,
        from.weight[0] * load(from.pixel[0] + c) + from.weight[1] * load(from.pixel[1] + c) +
            from.weight[2] * load(from.pixel[2] + c) + from.weight[3] * load(from.pixel[3] + c));
  for (; c < channels; ++c) {
    R value = 0;
    for (int k = 0; k < 4; ++k) value += from.weight[k] * real(from.pixel[k][c]);
    column[c] = rounded<T>(value);
  }
}

// Computes the backward for the four corners of a location, in one pass:
//     column[c]         = as in blend
//     grad_pixel[k][c] += weight[k] * grad_column[c]
//     dots[k]           = sum over c of grad_column[c] * pixel[k][c]
template <typename T>
DEFORM_CONV_INLINE void spread(
    const Corners<T>& from, Real<T>* const (&grad_pixel)[4], const Real<T>* grad_column,
    int64_t channels, Real<T>* column, Real<T> (&dots)[4]) {
  using R = Real<T>;
  Vector<R> sums[4] = {};
  int64_t c = 0;
  for (; c + kLanes<R> <= channels; c += kLanes<R>) {
    const Vector<R> grad = load(grad_column + c);
    Vector<R> value = {};
    for (int k = 0; k < 4; ++k) {
      const Vector<R> pixel = load(from.pixel[k] + c);
      value += from.weight[k] * pixel;
      sums[k] += grad * pixel;
      store(grad_pixel[k] + c, load(grad_pixel[k] + c) + from.weight[k] * grad);
    }
    store(column + c, value);
  }
  sum_lanes<R>(sums, dots);
  for (; c < channels; ++c) {
    R value = 0;
    for (int k = 0; k < 4; ++k) {
      const R pixel = real(from.pixel[k][c]);
      value += from.weight[k] * pixel;
      dots[k] += grad_column[c] * pixel;
      grad_pixel[k][c] += from.weight[k] * grad_column[c];
    }
    column[c] = value;
  }
}

}  // namespace
}  // namespace deform_conv
