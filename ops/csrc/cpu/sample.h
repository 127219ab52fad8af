// The inner loops over channels: sampling a run of channels at one location, and its transpose.
// Channels lie side by side in memory (channels-last), so every loop is a plain vector loop. Each
// is compiled for the baseline processor, AVX2 and AVX512 and chosen when the library loads.
#pragma once

#include "../bilinear.h"

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#if __GNUC__ >= 12
#define DEFORM_CONV_VECTORISED \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else  // the levels are not known yet
#define DEFORM_CONV_VECTORISED __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#else
#define DEFORM_CONV_VECTORISED
#endif

namespace deform_conv {

// The four corner pixels of a location: where their channels start, and their weights. Corners
// outside the image read zeros, so the loops have no branches.
template <typename T>
struct Corners {
  const T* pixel[4];
  T weight[4];
};

template <typename T>
inline Corners<T> corners_of(
    const Location<T>& at, const T* image, int height, int width, int64_t channels,
    const T* zeros) {
  Corners<T> corners;
  for (int k = 0; k < 4; ++k) {
    const bool exists = has_corner(at, k, height, width);
    corners.pixel[k] = exists ? image + corner_pixel(at, k, width) * channels : zeros;
    corners.weight[k] = exists ? corner_weight(at, k) : T(0);
  }
  return corners;
}

// column[c] = sum over the corners of weight * pixel[c]
template <typename T>
inline __attribute__((always_inline)) void blend_loop(
    const Corners<T>& from, int64_t channels, T* __restrict__ column) {
  const T *p0 = from.pixel[0], *p1 = from.pixel[1], *p2 = from.pixel[2], *p3 = from.pixel[3];
  const T w0 = from.weight[0], w1 = from.weight[1], w2 = from.weight[2], w3 = from.weight[3];
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c)
    column[c] = w0 * p0[c] + w1 * p1[c] + w2 * p2[c] + w3 * p3[c];
}

// The transpose of blend_loop, fused with what else the backward needs of the same pixels:
//     grad_pixel[k][c] += weight[k] * grad_column[c]
//     column[c]         = as in blend_loop
//     dots[k]           = sum over c of grad_column[c] * pixel[k][c]
template <typename T>
inline __attribute__((always_inline)) void spread_loop(
    const Corners<T>& from, T* const (&grad_pixel)[4], const T* __restrict__ grad_column,
    int64_t channels, T* __restrict__ column, T (&dots)[4]) {
  const T *p0 = from.pixel[0], *p1 = from.pixel[1], *p2 = from.pixel[2], *p3 = from.pixel[3];
  const T w0 = from.weight[0], w1 = from.weight[1], w2 = from.weight[2], w3 = from.weight[3];
  T* __restrict__ g0 = grad_pixel[0];
  T* __restrict__ g1 = grad_pixel[1];
  T* __restrict__ g2 = grad_pixel[2];
  T* __restrict__ g3 = grad_pixel[3];
  T d0 = 0, d1 = 0, d2 = 0, d3 = 0;
#pragma omp simd reduction(+ : d0, d1, d2, d3)
  for (int64_t c = 0; c < channels; ++c) {
    const T g = grad_column[c];
    column[c] = w0 * p0[c] + w1 * p1[c] + w2 * p2[c] + w3 * p3[c];
    g0[c] += w0 * g, g1[c] += w1 * g, g2[c] += w2 * g, g3[c] += w3 * g;
    d0 += g * p0[c], d1 += g * p1[c], d2 += g * p2[c], d3 += g * p3[c];
  }
  dots[0] = d0, dots[1] = d1, dots[2] = d2, dots[3] = d3;
}

DEFORM_CONV_VECTORISED void blend(const Corners<float>& from, int64_t channels, float* column) {
  blend_loop(from, channels, column);
}
DEFORM_CONV_VECTORISED void blend(const Corners<double>& from, int64_t channels, double* column) {
  blend_loop(from, channels, column);
}
DEFORM_CONV_VECTORISED void spread(
    const Corners<float>& from, float* const (&grad_pixel)[4], const float* grad_column,
    int64_t channels, float* column, float (&dots)[4]) {
  spread_loop(from, grad_pixel, grad_column, channels, column, dots);
}
DEFORM_CONV_VECTORISED void spread(
    const Corners<double>& from, double* const (&grad_pixel)[4], const double* grad_column,
    int64_t channels, double* column, double (&dots)[4]) {
  spread_loop(from, grad_pixel, grad_column, channels, column, dots);
}

}  // namespace deform_conv
