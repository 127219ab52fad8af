// Device code for sampling: the columns for the product with the weight and, in the backward, the
// gradients of offset and mask.
//
//     input    (N, H, W, C)             features, 16, 32 or 64 bit
//     offset   (N, P, G, K, 2)          (dy, dx), float32 (float64 beside float64)
//     mask     (N, P, G, K)             likewise; null for v1
//                                       Positions of both may lie further apart than their G K
//                                       samples need, as in slices of one tensor.
//     columns  (groups, rows, K, Cg)    samples of a chunk of positions, in the features' dtype
//
// A sample is one tap of one position for one offset group. A few lanes of one warp share a sample:
// one thread of the block computes its location, and the lanes process its channels in parallel, V
// at a time.
// Arithmetic is in float32, or float64 for float64 features. An index within a chunk is an int, an
// index through a whole tensor an int64_t.
#pragma once

#include "../geometry.h"
#include "threads.cuh"

namespace deform_conv {

// The features and where they are sampled.
template <typename T>
struct Source {
  Geometry g;
  const T* input;
  const Real<T>* offset;
  const Real<T>* mask;
  int64_t offset_stride, mask_stride;  // elements between two positions
};

// The positions [first, first + rows), counted through the whole batch.
struct Chunk {
  int64_t first;
  int rows;
};

DEFORM_CONV_HOST_DEVICE int samples_of(const Geometry& g, const Chunk& chunk) {
  return static_cast<int>(chunk.rows * g.offset_groups * g.taps());
}

template <typename R>
struct Sample {
  int64_t index;  // in grad_mask, and of the (dy, dx) pair in grad_offset
  int line;       // its line of columns, row * K + tap
  int offset_group;
  int64_t image;
  Location<R> at;
  R modulation;
};

// Returns sample number `local` of a chunk, in the order of mask and offset.
template <typename T>
__device__ __forceinline__ Sample<Real<T>> sample_of(
    const Source<T>& from, const Chunk& chunk, int local) {
  const Geometry& g = from.g;
  const int taps = g.taps(), offset_groups = g.offset_groups;
  const int pair = local / taps, row = pair / offset_groups, tap = local - pair * taps;
  const int64_t position = chunk.first + row;
  Sample<Real<T>> sample;
  sample.index = chunk.first * offset_groups * taps + local;
  sample.line = row * taps + tap;
  sample.offset_group = pair - row * offset_groups;
  sample.image = position / g.positions();
  const int of_position = sample.offset_group * taps + tap;
  const Real<T>* dydx = from.offset + position * from.offset_stride + 2 * of_position;
  sample.at = locate_tap(g, position - sample.image * g.positions(), tap, dydx[0], dydx[1]);
  sample.modulation = from.mask ? from.mask[position * from.mask_stride + of_position] : Real<T>(1);
  return sample;
}

// One of the four pixels that a sample reads.
template <typename R>
struct Corner {
  int64_t pixel;  // counted through the whole batch; -1 outside the image
  R weight;       // the bilinear weight times the mask; 0 outside the image
};

template <typename R>
__device__ __forceinline__ Corner<R> corner_of(const Geometry& g, const Sample<R>& sample, int k) {
  if (!has_corner(sample.at, k, g.height, g.width)) return {-1, 0};
  return {
      sample.image * g.height * g.width + corner_pixel(sample.at, k, g.width),
      sample.modulation * corner_weight(sample.at, k)};
}

// The indices of a line's channels in columns, which hold a run of Cg for each weight group.
struct Line {
  int64_t first, gap;  // the index of the first channel, and the elements between two runs
  int run;
  bool one_run;

  __device__ __forceinline__ Line(const Geometry& g, const Chunk& chunk, int line)
      : run(g.group_channels()), one_run(g.groups == 1) {
    first = int64_t(line) * run;
    gap = (chunk.rows * g.taps() - 1) * run;
  }

  __device__ __forceinline__ int64_t at(int channel) const {
    return first + channel + (one_run ? 0 : channel / run * gap);  // division is slow
  }
};

// The data that the lanes of a sample share, in shared memory.
template <typename R>
struct Spot {
  Sample<R> sample;
  int64_t starts[4];  // indices of the corners' first channels; negative outside the image
  R weights[4];
};

// Computes the spots of a block's samples, the `count` samples of the chunk from `first` on.
template <typename T>
__device__ __forceinline__ const Spot<Real<T>>* find_spots(
    const Source<T>& from, const Chunk& chunk, int first, int count) {
  auto* spots = static_cast<Spot<Real<T>>*>(shared_memory());
  const int thread = threadIdx.x;
  if (thread < count) {
    Spot<Real<T>> spot;
    spot.sample = sample_of(from, chunk, first + thread);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const Corner<Real<T>> corner = corner_of(from.g, spot.sample, k);
      spot.starts[k] = corner.pixel * from.g.channels, spot.weights[k] = corner.weight;
    }
    spots[thread] = spot;
  }
  __syncthreads();
  return spots;
}

// column[c] = sum over the corners of weight * pixel[c]
template <typename T, int V>
__global__ void __launch_bounds__(kThreads)
    sample_columns(Source<T> from, Chunk chunk, int lanes, T* columns) {
  const Geometry& g = from.g;
  const int group = threadIdx.x / lanes, lane = threadIdx.x % lanes;
  const int first_sample = blockIdx.x * (kThreads / lanes);
  const int samples = min(kThreads / lanes, samples_of(g, chunk) - first_sample);
  const Spot<Real<T>>* spots = find_spots(from, chunk, first_sample, samples);
  if (group >= samples) return;
  const Spot<Real<T>> spot = spots[group];
  const Line line(g, chunk, spot.sample.line);
  const int count = g.channels / g.offset_groups, first = spot.sample.offset_group * count;
  for (int c = first + lane * V; c < first + count; c += lanes * V) {
    Pack<Real<T>, V> pixels[4]{}, values{};
#pragma unroll
    for (int k = 0; k < 4; ++k)
      if (spot.starts[k] >= 0) pixels[k] = load<V>(from.input + spot.starts[k] + c);
#pragma unroll
    for (int k = 0; k < 4; ++k)
#pragma unroll
      for (int j = 0; j < V; ++j) values.at[j] += spot.weights[k] * pixels[k].at[j];
    store<V>(columns + line.at(c), values);
  }
}

// Computes grad_offset and grad_mask and, in the same pass over the pixels, the columns again,
// which replace their gradients:
//     dots[k]   = sum over c of grad_column[c] * pixel[k][c]     for grad_offset and grad_mask
//     column[c] = as in sample_columns
template <typename T, int V>
__global__ void __launch_bounds__(kThreads) differentiate_columns(
    Source<T> from, Chunk chunk, int lanes, T* columns, Real<T>* grad_offset, Real<T>* grad_mask) {
  const Geometry& g = from.g;
  const int group = threadIdx.x / lanes, lane = threadIdx.x % lanes;
  const int first_sample = blockIdx.x * (kThreads / lanes);
  const int samples = min(kThreads / lanes, samples_of(g, chunk) - first_sample);
  const Spot<Real<T>>* spots = find_spots(from, chunk, first_sample, samples);
  if (group >= samples) return;  // all lanes of a sample return, or none
  const Spot<Real<T>> spot = spots[group];
  const Sample<Real<T>>& sample = spot.sample;
  const Line line(g, chunk, sample.line);
  const int count = g.channels / g.offset_groups, first = sample.offset_group * count;
  Real<T> dots[4] = {};
  for (int c = first + lane * V; c < first + count; c += lanes * V) {
    T* column = columns + line.at(c);
    const Pack<Real<T>, V> grads = load<V>(column);
    Pack<Real<T>, V> pixels[4]{}, values{};
#pragma unroll
    for (int k = 0; k < 4; ++k)
      if (spot.starts[k] >= 0) pixels[k] = load<V>(from.input + spot.starts[k] + c);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
#pragma unroll
      for (int j = 0; j < V; ++j) {
        values.at[j] += spot.weights[k] * pixels[k].at[j];
        dots[k] += grads.at[j] * pixels[k].at[j];
      }
    }
    store<V>(column, values);
  }
#pragma unroll
  for (int k = 0; k < 4; ++k) dots[k] = sum_over_lanes(dots[k], lanes);
  if (lane) return;
  const bool inside = sample.at.inside;
  const Real<T> modulation = sample.modulation;
  grad_offset[2 * sample.index] = inside ? modulation * derivative_y(sample.at, dots) : 0;
  grad_offset[2 * sample.index + 1] = inside ? modulation * derivative_x(sample.at, dots) : 0;
  if (grad_mask) grad_mask[sample.index] = inside ? value(sample.at, dots) : 0;
}

// row[c] = bias[c] for each of `rows` rows
template <typename T>
__global__ void __launch_bounds__(kThreads)
    repeat_bias(int64_t rows, int channels, const T* bias, T* row) {
  const int64_t i = thread_number();
  if (i < rows * channels) row[i] = bias[i % channels];
}

}  // namespace deform_conv
