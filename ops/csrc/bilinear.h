// The sampling rule of a deformable convolution, shared by CPU and CUDA: the location that a tap
// samples, the bilinear value there, its derivatives with respect to the location, and the weights
// that spread a gradient to the pixels.
//
// A location lies in a cell of four pixels, its corners 00 01 10 11 (row, column):
//
//     (y, x) ---- fx ---> (y, x + 1)
//        |                             value = (1 - fy) (1 - fx) v00 + (1 - fy) fx v01
//       fy    * sample                       +      fy  (1 - fx) v10 +      fy  fx v11
//        v
//     (y + 1, x)
//
// Pixels outside the image are zero. The value is zero on and beyond row -1 and row H (and column
// -1 and column W). Exactly on -1 the derivative is the one-sided one towards the image, as in
// torchvision. A NaN, infinite or absurdly large offset samples nothing and has a zero derivative.
//
// T is float or double: locations never have the features' 16-bit precision.
#pragma once

#include <math.h>  // the C header, because its functions are not inline

#include <cstdint>

#if defined(__CUDACC__)
#define DEFORM_CONV_HOST_DEVICE __host__ __device__ __forceinline__
#else  // always inlined, or files compiled for different processors would share the function
#define DEFORM_CONV_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace deform_conv {

template <typename T>
struct Location {
  int y, x;     // the cell's upper left pixel, y in [-1, H - 1], x in [-1, W - 1]
  T fy, fx;     // the position within the cell, each in [0, 1]
  bool inside;  // whether the cell touches the image; if not, the other members mean nothing
};

DEFORM_CONV_HOST_DEVICE float floor_of(float value) { return floorf(value); }
DEFORM_CONV_HOST_DEVICE double floor_of(double value) { return floor(value); }

// Computes base + offset along one axis of `size` pixels, as a whole pixel `low` and a fraction.
// Returns whether the cell touches the image. Only the offset is split into whole and fraction, and
// the base is added as an integer, so that no bit of the fraction is lost far from the origin
// (base + offset in float32 has a resolution of 1/64 pixel at 100 000).
template <typename T>
DEFORM_CONV_HOST_DEVICE bool split(int base, T offset, int size, int& low, T& fraction) {
  const T farthest = T(1 << 30);
  if (!(offset > -farthest && offset < farthest)) return false;  // NaN fails here as well
  const T whole = floor_of(offset);
  low = base + static_cast<int>(whole);
  fraction = offset - whole;
  return low >= -1 && low < size;
}

template <typename T>
DEFORM_CONV_HOST_DEVICE Location<T> locate(
    int base_y, int base_x, T dy, T dx, int height, int width) {
  Location<T> at{};
  at.inside = split(base_y, dy, height, at.y, at.fy) && split(base_x, dx, width, at.x, at.fx);
  return at;
}

// Returns whether corner 00, 01, 10 or 11 (0 to 3) of the cell is a pixel of the image.
template <typename T>
DEFORM_CONV_HOST_DEVICE bool has_corner(const Location<T>& at, int corner, int height, int width) {
  const int y = at.y + (corner >> 1), x = at.x + (corner & 1);
  return at.inside && y >= 0 && y < height && x >= 0 && x < width;
}

// Returns the index of a corner's pixel, counted row by row from the image's first pixel.
template <typename T>
DEFORM_CONV_HOST_DEVICE int64_t corner_pixel(const Location<T>& at, int corner, int width) {
  return int64_t(at.y + (corner >> 1)) * width + at.x + (corner & 1);
}

// Returns the weight of a corner in the value, which is also d value / d v[corner]: the backward
// spreads the gradient to the corners with the same weights.
template <typename T>
DEFORM_CONV_HOST_DEVICE T corner_weight(const Location<T>& at, int corner) {
  return (corner >> 1 ? at.fy : 1 - at.fy) * (corner & 1 ? at.fx : 1 - at.fx);
}

// Returns the value, given the values of the four corners (zero outside the image).
template <typename T>
DEFORM_CONV_HOST_DEVICE T value(const Location<T>& at, const T (&v)[4]) {
  return (1 - at.fy) * ((1 - at.fx) * v[0] + at.fx * v[1]) +
         at.fy * ((1 - at.fx) * v[2] + at.fx * v[3]);
}

// d value / d y
template <typename T>
DEFORM_CONV_HOST_DEVICE T derivative_y(const Location<T>& at, const T (&v)[4]) {
  return (1 - at.fx) * (v[2] - v[0]) + at.fx * (v[3] - v[1]);
}

// d value / d x
template <typename T>
DEFORM_CONV_HOST_DEVICE T derivative_x(const Location<T>& at, const T (&v)[4]) {
  return (1 - at.fy) * (v[1] - v[0]) + at.fy * (v[3] - v[2]);
}

}  // namespace deform_conv
