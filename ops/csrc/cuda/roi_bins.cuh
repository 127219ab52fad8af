// Device code of deformable RoI pooling; roi.h defines the samples of a bin.
//
//     input   (N, H, W, C)     features, 16, 32 or 64 bit
//     boxes   (R, 5)           float32 (float64 beside float64), like offset and mask
//     offset  (R, 2, bins)     along x first; null: bins do not move
//     mask    (R, bins)        null: no factor
//     output  (R, bins, C)     of the features' dtype
//
// Bins are numbered through all RoIs. The lanes of a warp process the channels of a bin in
// parallel, V at a time. For the gradient of the features, a block owns a tile of pixels and adds
// the bins that reach it in order: nothing is added atomically, and every sum has one order.
#pragma once

#include <math.h>

#include "../roi.h"
#include "threads.cuh"

namespace deform_conv {

template <typename T>
struct RoiSource {
  RoiGeometry g;
  const T* input;
  const Real<T>* boxes;
  const Real<T>* offset;
  const Real<T>* mask;
};

// The position of a bin, and the weights of its samples.
template <typename R>
struct RoiBin {
  int64_t image;  // -1 if the index is out of range
  RoiAxis<R> axis_y, axis_x;
  R start_y, start_x;
  R share, factor;  // a sample's share in the average, and the share times the mask
};

template <typename T>
__device__ __forceinline__ RoiBin<Real<T>> bin_of(const RoiSource<T>& from, int64_t number) {
  using R = Real<T>;
  const RoiGeometry& g = from.g;
  const int64_t roi_number = number / g.bins(), bin = number - roi_number * g.bins();
  const int64_t y = bin / g.out_width, x = bin - y * g.out_width;
  const Roi<R> roi = roi_of(g, from.boxes + 5 * roi_number);
  const R* offset = from.offset ? from.offset + 2 * roi_number * g.bins() + bin : nullptr;
  RoiBin<R> found{roi.image, roi.y, roi.x};
  found.start_y = bin_start(g, roi.y, y, offset ? offset[g.bins()] : R(0));
  found.start_x = bin_start(g, roi.x, x, offset ? offset[0] : R(0));
  found.share = roi.share();
  found.factor = from.mask ? found.share * from.mask[number] : found.share;
  return found;
}

// Sums weight * pixel over the samples of a bin, for V channels; `image` is the first channel of
// pixel 0. Computes the value and, if kSlopes, its derivatives along y and x.
template <int V, bool kSlopes, typename T>
__device__ __forceinline__ void sum_samples(
    const RoiGeometry& g, const RoiBin<Real<T>>& bin, const T* image,
    Pack<Real<T>, V> (&sums)[kSlopes ? 3 : 1]) {
  using R = Real<T>;
  const SampleRange rows = samples_near(bin.axis_y, bin.start_y, g.height);
  const SampleRange columns = samples_near(bin.axis_x, bin.start_x, g.width);
  for (int i = rows.first; i < rows.last; ++i) {
    const AxisSample<R> y = sample_axis(sample_place(bin.axis_y, bin.start_y, i), g.height);
    if (!y.inside) continue;
    for (int j = columns.first; j < columns.last; ++j) {
      const AxisSample<R> x = sample_axis(sample_place(bin.axis_x, bin.start_x, j), g.width);
      if (!x.inside) continue;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        // If there is no next pixel, the same one is read again with weight zero.
        const bool down = k >> 1, right = k & 1;
        const int64_t row = y.low + (down && y.moves), column = x.low + (right && x.moves);
        const Pack<R, V> pixel = load<V>(image + (row * g.width + column) * g.channels);
        const R weight_y = down ? y.fraction : 1 - y.fraction;
        const R weight_x = right ? x.fraction : 1 - x.fraction;
        const R slope_y = y.moves ? (down ? R(1) : R(-1)) : R(0);
        const R slope_x = x.moves ? (right ? R(1) : R(-1)) : R(0);
#pragma unroll
        for (int c = 0; c < V; ++c) {
          sums[0].at[c] += weight_y * weight_x * pixel.at[c];
          if constexpr (kSlopes) {
            sums[1].at[c] += slope_y * weight_x * pixel.at[c];
            sums[2].at[c] += weight_y * slope_x * pixel.at[c];
          }
        }
      }
    }
  }
}

// output[c] = factor * the sum over the samples; NaN if the image's index is out of range.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads) average_bins(RoiSource<T> from, T* output) {
  using R = Real<T>;
  const RoiGeometry& g = from.g;
  const int64_t number = thread_number() / 32;
  if (number >= g.num_rois * g.bins()) return;
  const RoiBin<R> bin = bin_of(from, number);
  for (int64_t c = threadIdx.x % 32 * V; c < g.channels; c += 32 * V) {
    Pack<R, V> sums[1]{};
    R factor = bin.factor;
    if (bin.image >= 0)
      sum_samples<V, false>(
          g, bin, from.input + bin.image * g.height * g.width * g.channels + c, sums);
    else
      factor = static_cast<R>(NAN);
#pragma unroll
    for (int k = 0; k < V; ++k) sums[0].at[k] *= factor;
    store<V>(output + number * g.channels + c, sums[0]);
  }
}

// Computes the gradients of offset and mask, which are null if not wanted.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads) differentiate_bins(
    RoiSource<T> from, const T* grad_output, Real<T>* grad_offset, Real<T>* grad_mask) {
  using R = Real<T>;
  const RoiGeometry& g = from.g;
  const int64_t number = thread_number() / 32;
  if (number >= g.num_rois * g.bins()) return;  // all lanes return, or none
  const RoiBin<R> bin = bin_of(from, number);
  R dots[3] = {};
  for (int64_t c = threadIdx.x % 32 * V; c < g.channels && bin.image >= 0; c += 32 * V) {
    Pack<R, V> sums[3]{};
    sum_samples<V, true>(
        g, bin, from.input + bin.image * g.height * g.width * g.channels + c, sums);
    const Pack<R, V> upstream = load<V>(grad_output + number * g.channels + c);
#pragma unroll
    for (int d = 0; d < 3; ++d)
#pragma unroll
      for (int k = 0; k < V; ++k) dots[d] += upstream.at[k] * sums[d].at[k];
  }
#pragma unroll
  for (int d = 0; d < 3; ++d) dots[d] = sum_over_lanes(dots[d], 32);
  if (threadIdx.x % 32) return;
  if (grad_mask) grad_mask[number] = bin.share * dots[0];
  if (!grad_offset) return;
  const R gamma = static_cast<R>(g.gamma);
  R* const grad = grad_offset + number + number / g.bins() * g.bins();  // a RoI has two planes
  grad[0] = bin.factor * gamma * bin.axis_x.size * dots[2];
  grad[g.bins()] = bin.factor * gamma * bin.axis_y.size * dots[1];
}

// ---- the gradient of the features -----------------------------------------------------------

constexpr int kTileHeight = 4, kTileWidth = 8;  // pixels that a block owns

template <typename R>
constexpr int kTileBytes = kTileHeight * kTileWidth * kThreads * sizeof(R) + kThreads / 8;

// Returns whether samples of a bin can read pixels [first, first + count) along an axis of `size`
// pixels.
template <typename R>
__device__ __forceinline__ bool reaches(
    const RoiAxis<R>& axis, R start, int64_t first, int count, int64_t size) {
  if (axis.grid == 0) return false;
  const R one = sample_place(axis, start, 0), other = sample_place(axis, start, axis.grid - 1);
  const R low = one < other ? one : other, high = one < other ? other : one;
  if (!(high >= -1 && low <= static_cast<R>(size))) return false;  // also for NaN
  const R next_pixel = high < 0 ? R(0) : high + 1;
  const R low_pixel = low < static_cast<R>(size - 1) ? low : static_cast<R>(size - 1);
  return low_pixel < static_cast<R>(first + count) && next_pixel >= static_cast<R>(first);
}

// Returns the weight of one pixel along an axis, summed over the samples of a bin.
template <typename R>
__device__ __forceinline__ R
weight_along(const RoiAxis<R>& axis, R start, int64_t pixel, int64_t size) {
  const SampleRange range = samples_near(axis, start, size);
  R weight = 0;
  for (int i = range.first; i < range.last; ++i) {
    const AxisSample<R> sample = sample_axis(sample_place(axis, start, i), size);
    if (!sample.inside) continue;
    if (sample.low == pixel) weight += 1 - sample.fraction;
    if (sample.moves && sample.low + 1 == pixel) weight += sample.fraction;
  }
  return weight;
}

// Computes grad_input (N, H, W, C) for a tile and kThreads channels, one channel per thread. The
// threads test in parallel which of kThreads bins reach the tile, and then add these bins in the
// order of their numbers.
template <typename T>
__global__ void __launch_bounds__(kThreads) gather_bins(
    RoiSource<T> from, int tiles_y, int tiles_x, const T* grad_output, Real<T>* grad_input) {
  using R = Real<T>;
  const RoiGeometry& g = from.g;
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  int64_t block = blockIdx.x;
  const int64_t tile_x = block % tiles_x * kTileWidth;
  block /= tiles_x;
  const int64_t tile_y = block % tiles_y * kTileHeight;
  block /= tiles_y;
  const int64_t image = block % g.batch, channel = block / g.batch * kThreads + thread;

  auto* const sums = static_cast<R*>(shared_memory());
  auto* const found = reinterpret_cast<unsigned*>(sums + kTileHeight * kTileWidth * kThreads);
  for (int pixel = 0; pixel < kTileHeight * kTileWidth; ++pixel)
    sums[pixel * kThreads + thread] = 0;

  const int64_t num_bins = g.num_rois * g.bins();
  for (int64_t first = 0; first < num_bins; first += kThreads) {
    bool is_reached = false;
    if (first + thread < num_bins) {
      const RoiBin<R> bin = bin_of(from, first + thread);
      is_reached = bin.image == image &&
                   reaches(bin.axis_y, bin.start_y, tile_y, kTileHeight, g.height) &&
                   reaches(bin.axis_x, bin.start_x, tile_x, kTileWidth, g.width);
    }
    const unsigned of_warp = __ballot_sync(0xffffffffu, is_reached);
    __syncthreads();  // the previous results have been read
    if (lane == 0) found[warp] = of_warp;
    __syncthreads();
    for (int w = 0; w < kThreads / 32; ++w)
      for (unsigned left = found[w]; left; left &= left - 1) {
        const int64_t number = first + 32 * w + __ffs(left) - 1;
        const RoiBin<R> bin = bin_of(from, number);
        R weight = 0;  // first lanes: of the tile's columns; next lanes: of its rows
        if (lane < kTileWidth)
          weight = weight_along(bin.axis_x, bin.start_x, tile_x + lane, g.width);
        else if (lane < kTileWidth + kTileHeight)
          weight = weight_along(bin.axis_y, bin.start_y, tile_y + lane - kTileWidth, g.height);
        const R upstream =
            channel < g.channels
                ? bin.factor * static_cast<R>(grad_output[number * g.channels + channel])
                : R(0);
        for (int y = 0; y < kTileHeight; ++y) {
          const R weight_y = __shfl_sync(0xffffffffu, weight, kTileWidth + y);
          if (weight_y == 0) continue;  // all lanes continue, or none
          for (int x = 0; x < kTileWidth; ++x) {
            const R weight_x = __shfl_sync(0xffffffffu, weight, x);
            if (weight_x != 0)
              sums[(y * kTileWidth + x) * kThreads + thread] += weight_y * weight_x * upstream;
          }
        }
      }
  }

  if (channel >= g.channels) return;
  for (int y = 0; y < kTileHeight && tile_y + y < g.height; ++y)
    for (int x = 0; x < kTileWidth && tile_x + x < g.width; ++x)
      grad_input[((image * g.height + tile_y + y) * g.width + tile_x + x) * g.channels + channel] =
          sums[(y * kTileWidth + x) * kThreads + thread];
}

}  // namespace deform_conv
