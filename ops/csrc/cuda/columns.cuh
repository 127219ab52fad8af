// The device code of the CUDA operators: sampling columns, and the way back through the sampling.
//
//     input    (N, H, W, C)             features, 16, 32 or 64 bit
//     offset   (N, P, G, K, 2)          (dy, dx), float32 (float64 beside float64)
//     mask     (N, P, G, K)             likewise; null for v1
//     columns  (groups, rows, K, Cg)    samples of a chunk of positions, in the features' dtype
//
// A sample is one tap of one position for one offset group. A few lanes of one warp share it:
// they find its location together and then go through its channels side by side, V at a time.
// Arithmetic is in float32, or float64 for float64 features.
#pragma once

#include <type_traits>

#include "../bilinear.h"
#include "../deform_conv.h"

namespace deform_conv {

template <typename T>
using Real = std::conditional_t<std::is_same_v<T, double>, double, float>;

constexpr int kThreads = 256;  // of a block

// The features and where they are sampled.
template <typename T>
struct Source {
  Geometry g;
  const T* input;
  const Real<T>* offset;
  const Real<T>* mask;
};

// The positions [first, first + rows), counted through the whole batch.
struct Chunk {
  int64_t first, rows;
};

// V neighbouring channels, moved by one instruction.
template <typename T, int V>
struct alignas(sizeof(T) * V) Pack {
  T at[V];
};

template <int V, typename T>
__device__ __forceinline__ Pack<Real<T>, V> load(const T* from) {
  const Pack<T, V> pack = *reinterpret_cast<const Pack<T, V>*>(from);
  Pack<Real<T>, V> values;
#pragma unroll
  for (int j = 0; j < V; ++j) values.at[j] = static_cast<Real<T>>(pack.at[j]);
  return values;
}

template <int V, typename T>
__device__ __forceinline__ void store(T* to, const Pack<Real<T>, V>& values) {
  Pack<T, V> pack;
#pragma unroll
  for (int j = 0; j < V; ++j) pack.at[j] = static_cast<T>(values.at[j]);
  if constexpr (sizeof(pack) == 16) {
    __stcg(reinterpret_cast<uint4*>(to), *reinterpret_cast<const uint4*>(&pack));
  } else {
    *reinterpret_cast<Pack<T, V>*>(to) = pack;
  }
}

// to[j] += values[j], each element atomically; on Hopper four floats by one instruction
template <int V, typename R>
__device__ __forceinline__ void add_atomically(R* to, const Pack<R, V>& values) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  constexpr bool kAtOnce = V == 4 && std::is_same_v<R, float>;
#else
  constexpr bool kAtOnce = false;
#endif
  if constexpr (kAtOnce) {
    const auto& v = values.at;
    atomicAdd(reinterpret_cast<float4*>(to), make_float4(v[0], v[1], v[2], v[3]));
  } else {
#pragma unroll
    for (int j = 0; j < V; ++j) atomicAdd(to + j, values.at[j]);
  }
}

// The sum over the lanes of a sample, in a fixed order; every lane gets it.
template <typename R>
__device__ __forceinline__ R sum_over_lanes(R value, int lanes) {
  const unsigned first = threadIdx.x % 32 / lanes * lanes;
  const unsigned members = (0xffffffffu >> (32 - lanes)) << first;
  for (int step = lanes / 2; step > 0; step /= 2) value += __shfl_xor_sync(members, value, step);
  return value;
}

template <typename R>
struct Sample {
  int64_t index;     // in mask, and of the pair in offset
  int64_t row, tap;  // in columns
  int64_t channel;   // the first of its offset group
  Location<R> at;
  R modulation;
  int64_t pixel[4];  // where in the input the corners' channels start; -1 outside the image
  R weight[4];       // modulated; 0 outside
};

// The sample of number `local` in a chunk; the numbering is that of mask and offset.
template <typename T>
__device__ __forceinline__ Sample<Real<T>> sample_of(
    const Source<T>& from, const Chunk& chunk, int64_t local) {
  const Geometry& g = from.g;
  const int64_t taps = g.taps(), pair = local / taps;  // (row, offset group)
  Sample<Real<T>> sample;
  sample.tap = local - pair * taps;
  sample.row = pair / g.offset_groups;
  sample.channel = (pair - sample.row * g.offset_groups) * (g.channels / g.offset_groups);
  sample.index = chunk.first * g.offset_groups * taps + local;

  const int64_t position = chunk.first + sample.row, image = position / g.positions();
  const Real<T>* dydx = from.offset + 2 * sample.index;
  sample.at = locate_tap(g, position - image * g.positions(), sample.tap, dydx[0], dydx[1]);
  sample.modulation = from.mask ? from.mask[sample.index] : Real<T>(1);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const bool exists = has_corner(sample.at, k, g.height, g.width);
    const int64_t pixel = image * g.height * g.width + corner_pixel(sample.at, k, g.width);
    sample.pixel[k] = exists ? pixel * g.channels + sample.channel : -1;
    sample.weight[k] = exists ? sample.modulation * corner_weight(sample.at, k) : Real<T>(0);
  }
  return sample;
}

// V channels of the four corners, from the c-th of the offset group; zeros outside the image.
template <int V, typename T>
__device__ __forceinline__ void load_corners(
    const T* input, const Sample<Real<T>>& sample, int c, Pack<Real<T>, V> (&corners)[4]) {
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    corners[k] = Pack<Real<T>, V>{};
    if (sample.pixel[k] >= 0) corners[k] = load<V>(input + sample.pixel[k] + c);
  }
}

// Where columns hold the c-th channel of the sample's offset group.
template <typename R>
__device__ __forceinline__ int64_t
column_of(const Geometry& g, const Chunk& chunk, const Sample<R>& sample, int c) {
  const int per_group = g.group_channels();
  const int channel = sample.channel + c, group = channel / per_group;
  return ((group * chunk.rows + sample.row) * g.taps() + sample.tap) * per_group +
         (channel - group * per_group);
}

// column[c] = sum over the corners of weight * pixel[c]
template <typename T, int V>
__global__ void __launch_bounds__(kThreads)
    sample_columns(Source<T> from, Chunk chunk, int lanes, T* columns) {
  const Geometry& g = from.g;
  const int64_t thread = int64_t(blockIdx.x) * kThreads + threadIdx.x, local = thread / lanes;
  if (local >= chunk.rows * g.offset_groups * g.taps()) return;
  const Sample<Real<T>> sample = sample_of(from, chunk, local);
  const int count = g.channels / g.offset_groups;
  for (int c = thread % lanes * V; c < count; c += lanes * V) {
    Pack<Real<T>, V> pixels[4], values{};
    load_corners<V>(from.input, sample, c, pixels);
#pragma unroll
    for (int k = 0; k < 4; ++k)
#pragma unroll
      for (int j = 0; j < V; ++j) values.at[j] += sample.weight[k] * pixels[k].at[j];
    store<V>(columns + column_of(g, chunk, sample, c), values);
  }
}

// The transpose of sample_columns, fused with what else the backward needs of the same pixels:
//     grad_pixel[k][c] += weight[k] * grad_column[c]      atomically: samples share pixels
//     dots[k]           = sum over c of grad_column[c] * pixel[k][c]
//     grad_offset, grad_mask                              from the dots, each written once
//     column[c]         = as in sample_columns            in the place of grad_column[c]
template <typename T, int V>
__global__ void __launch_bounds__(kThreads) spread_columns(
    Source<T> from, Chunk chunk, int lanes, T* columns, Real<T>* grad_input, Real<T>* grad_offset,
    Real<T>* grad_mask) {
  const Geometry& g = from.g;
  const int64_t thread = int64_t(blockIdx.x) * kThreads + threadIdx.x, local = thread / lanes;
  if (local >= chunk.rows * g.offset_groups * g.taps()) return;  // all lanes of a sample, or none
  const Sample<Real<T>> sample = sample_of(from, chunk, local);
  const int count = g.channels / g.offset_groups;
  Real<T> dots[4] = {};
  for (int c = thread % lanes * V; c < count; c += lanes * V) {
    T* column = columns + column_of(g, chunk, sample, c);
    const Pack<Real<T>, V> grads = load<V>(column);
    Pack<Real<T>, V> pixels[4], values{};
    load_corners<V>(from.input, sample, c, pixels);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      Pack<Real<T>, V> grad_pixel;
#pragma unroll
      for (int j = 0; j < V; ++j) {
        values.at[j] += sample.weight[k] * pixels[k].at[j];
        dots[k] += grads.at[j] * pixels[k].at[j];
        grad_pixel.at[j] = sample.weight[k] * grads.at[j];
      }
      if (sample.pixel[k] >= 0) add_atomically(grad_input + sample.pixel[k] + c, grad_pixel);
    }
    store<V>(column, values);
  }
#pragma unroll
  for (int k = 0; k < 4; ++k) dots[k] = sum_over_lanes(dots[k], lanes);
  if (thread % lanes) return;
  const bool inside = sample.at.inside;
  const Real<T> modulation = sample.modulation;
  grad_offset[2 * sample.index] = inside ? modulation * derivative_y(sample.at, dots) : 0;
  grad_offset[2 * sample.index + 1] = inside ? modulation * derivative_x(sample.at, dots) : 0;
  if (grad_mask) grad_mask[sample.index] = inside ? value(sample.at, dots) : 0;
}

// sum[i] += part[i]
template <typename R>
__global__ void __launch_bounds__(kThreads) add(int64_t count, const R* part, R* sum) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) sum[i] += part[i];
}

}  // namespace deform_conv
