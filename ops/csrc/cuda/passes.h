// The forward and backward as sequences of kernels and matrix products. Positions are processed in
// chunks: the columns of a chunk are sampled and multiplied, and the next chunk reuses their
// memory. A chunk is small enough to stay in the L2 cache. The forward saves nothing for the
// backward, which samples again.
//
//     columns  (groups, rows, K, Cg)   the samples of a chunk of positions
//     weight   (O, K, Cg)              channels-last memory of (O, Cg, kernel_h, kernel_w)
//     output   (N P, O)                channels-last memory of (N, O, Ho, Wo)
//
// Columns and weights have the dtype of the features. Sums are in float32 (float64 for float64
// features), both within a product and for grad_input and grad_weight over the chunks. Every sum
// has a fixed order. In float16, gradients of columns overflow beyond 65504, as the grad_input of a
// convolution does; loss scaling serves both.
//
// The device is a parameter, so that the tests can run these passes without a GPU. It has
//     chunk_bytes                bytes of columns and index that stay in its cache
//     buffer<T>(count)           memory for the duration of the call
//     zero(data, count)
//     launch(threads, kernel, arguments...)
//     launch_blocks(blocks, bytes of shared memory, kernel, arguments...)
//     may_fuse()                 whether the forward in one kernel is wanted
//     num_multiprocessors()
//     multiply(a, b, out, bias)  out = a b + bias, the bias (one row) being optional
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "columns.cuh"
#include "fused_forward.cuh"
#include "matrix.h"
#include "pixels.cuh"

namespace deform_conv {

template <typename R>
struct Gradients {
  R *input, *offset, *weight, *mask;  // null if not wanted, except offset, which is never null
};

// Divides all positions of the batch into chunks of about equal size.
inline std::vector<Chunk> chunks_of(
    const Geometry& g, int64_t bytes_of_row, int64_t bytes_of_chunk) {
  const int64_t total = g.batch * g.positions();
  const int64_t most = std::max<int64_t>(1, bytes_of_chunk / bytes_of_row);
  const int64_t count = std::max<int64_t>(1, (total + most - 1) / most);
  const int64_t rows = (total + count - 1) / count;
  std::vector<Chunk> chunks;
  for (int64_t first = 0; first < total; first += rows)
    chunks.push_back({first, static_cast<int>(std::min(rows, total - first))});
  return chunks;
}

// Returns the number of positions of the longest chunk.
inline int64_t most_rows(const std::vector<Chunk>& chunks) {
  return chunks.empty() ? 0 : chunks[0].rows;
}

// How kernels access the channels of a sample: 16 bytes at a time if all accesses are aligned and
// none straddles two groups, else one channel at a time.
template <typename T>
struct Lanes {
  static constexpr int kWide = 16 / sizeof(T);  // channels

  bool wide;
  int count;  // threads that share a sample, a power of two

  explicit Lanes(const Source<T>& source) {
    const Geometry& g = source.g;
    const int64_t channels = g.channels / g.offset_groups;
    wide = g.group_channels() % kWide == 0 && channels % kWide == 0 &&
           reinterpret_cast<uintptr_t>(source.input) % 16 == 0;
    // Eight wide lanes read a cache line at once.
    const int most = wide ? 8 : 32, step = wide ? kWide : 1;
    count = 1;
    while (count < most && count * step < channels) count *= 2;
  }
};

// Launches a kernel in which `lanes` threads share a sample of the chunk.
template <typename T, typename Device, typename Kernel, typename... Arguments>
void launch_samples(
    Device& device, const Source<T>& source, const Chunk& chunk, const Lanes<T>& lanes,
    Kernel kernel, const Arguments&... given) {
  const int per_block = kThreads / lanes.count, samples = samples_of(source.g, chunk);
  device.launch_blocks(
      (samples + per_block - 1) / per_block, per_block * sizeof(Spot<Real<T>>), kernel, source,
      chunk, lanes.count, given...);
}

// ---- one group of the operands ---------------------------------------------------------------

// Returns the matrix (rows, K Cg) of columns.
template <typename T>
Matrix<T> columns_of(const Geometry& g, const Chunk& chunk, int64_t group, T* columns) {
  const int64_t depth = g.taps() * g.group_channels();
  return {columns + group * chunk.rows * depth, chunk.rows, depth, depth, 1};
}

// Returns the matrix (rows, O / groups) of output or grad_output.
template <typename T>
Matrix<T> outputs_of(const Geometry& g, const Chunk& chunk, int64_t group, T* output) {
  const int64_t outs = g.group_out_channels(), row = g.out_channels;
  return {output + chunk.first * row + group * outs, chunk.rows, outs, row, 1};
}

// Returns the matrix (O / groups, K Cg) of weight or grad_weight.
template <typename T>
Matrix<T> weights_of(const Geometry& g, int64_t group, T* weight) {
  const int64_t outs = g.group_out_channels(), depth = g.taps() * g.group_channels();
  return {weight + group * outs * depth, outs, depth, depth, 1};
}

// ---- the index of pixels ---------------------------------------------------------------------

template <typename R>
constexpr int64_t kIndexBytesOfSample = 4 * (sizeof(int) + sizeof(Entry<R>));

// Returns the number of images that a chunk touches.
inline int64_t images_of(const Geometry& g, const Chunk& chunk) {
  const int64_t last = chunk.first + chunk.rows - 1;
  return last / g.positions() - chunk.first / g.positions() + 1;
}

// Allocates an index that is large enough for each of the chunks.
template <typename R, typename Device>
Index<R> make_index(Device& device, const Geometry& g, const std::vector<Chunk>& chunks) {
  int64_t images = 0;
  for (const Chunk& chunk : chunks) images = std::max(images, images_of(g, chunk));
  const int64_t num_lists = images * g.height * g.width * g.offset_groups;
  const int64_t num_entries = 4 * most_rows(chunks) * g.offset_groups * g.taps();
  Index<R> index{};
  index.length = device.template buffer<int>(num_lists + 1);
  index.end = device.template buffer<int>(num_lists);
  index.corners = device.template buffer<int>(num_entries);
  index.entries = device.template buffer<Entry<R>>(num_entries);
  return index;
}

template <typename T, typename Device>
void build_index(
    Device& device, const Source<T>& source, const Chunk& chunk, Index<Real<T>>& index) {
  const Geometry& g = source.g;
  const int64_t pixels = g.height * g.width, samples = samples_of(g, chunk);
  index.first_pixel = chunk.first / g.positions() * pixels;
  index.num_lists = images_of(g, chunk) * pixels * g.offset_groups;
  index.num_corners = index.length + index.num_lists;
  device.zero(index.length, index.num_lists + 1);
  device.launch(samples, count_corners<T>, source, chunk, index);
  device.launch(index.num_lists, place_lists<Real<T>>, index);
  device.launch(samples, place_corners<T>, source, chunk, index);
  device.launch(4 * samples, order_corners<T>, source, chunk, index);
}

// ---- forward and backward --------------------------------------------------------------------

template <typename T, typename Device>
void forward_pass(
    Device& device, const Source<T>& source, const T* weight, const T* bias, T* output) {
  if constexpr (sizeof(T) == 2)
    if (device.may_fuse() && can_fuse(device, source, weight))
      return fused_forward_pass(device, source, weight, bias, output);
  const Geometry& g = source.g;
  const Lanes<T> lanes(source);
  const auto sample = lanes.wide ? sample_columns<T, lanes.kWide> : sample_columns<T, 1>;
  const int64_t row = g.taps() * g.channels, outs = g.group_out_channels();
  const std::vector<Chunk> chunks = chunks_of(g, row * sizeof(T), device.chunk_bytes);
  T* columns = device.template buffer<T>(most_rows(chunks) * row);
  for (const Chunk& chunk : chunks) {
    launch_samples(device, source, chunk, lanes, sample, columns);
    for (int64_t group = 0; group < g.groups; ++group)
      device.multiply(
          columns_of(g, chunk, group, columns), transposed(weights_of(g, group, weight)),
          outputs_of(g, chunk, group, output), bias ? bias + group * outs : nullptr);
  }
}

// Adds to grad_input and grad_weight, which the caller has set to zero.
template <typename T, typename Device>
void backward_pass(
    Device& device, const T* grad_output, const Source<T>& source, const T* weight,
    const Gradients<Real<T>>& grads) {
  using R = Real<T>;
  const Geometry& g = source.g;
  const Lanes<T> lanes(source);
  const int wide = lanes.wide ? lanes.kWide : 1;
  const auto differentiate =
      lanes.wide ? differentiate_columns<T, lanes.kWide> : differentiate_columns<T, 1>;
  const auto gather = lanes.wide ? gather_columns<T, lanes.kWide> : gather_columns<T, 1>;
  const int64_t row = g.taps() * g.channels, num_weights = row / g.groups * g.out_channels;
  const std::vector<Chunk> chunks = chunks_of(
      g, row * sizeof(T) + g.taps() * g.offset_groups * kIndexBytesOfSample<R>, device.chunk_bytes);
  T* columns = device.template buffer<T>(most_rows(chunks) * row);
  R* part = device.template buffer<R>(num_weights);
  Index<R> index = make_index<R>(device, g, chunks);
  for (const Chunk& chunk : chunks) {
    for (int64_t group = 0; group < g.groups; ++group)
      device.multiply(
          outputs_of(g, chunk, group, grad_output), weights_of(g, group, weight),
          columns_of(g, chunk, group, columns));
    if (grads.input) {
      build_index(device, source, chunk, index);
      device.launch(
          index.num_lists * (g.channels / g.offset_groups / wide), gather, g, chunk, index, columns,
          grads.input);
    }
    // From here on, columns hold samples instead of gradients.
    launch_samples(device, source, chunk, lanes, differentiate, columns, grads.offset, grads.mask);
    if (!grads.weight) continue;
    for (int64_t group = 0; group < g.groups; ++group)
      device.multiply(
          transposed(outputs_of(g, chunk, group, grad_output)),
          columns_of(g, chunk, group, columns), weights_of(g, group, part));
    device.launch(num_weights, add<R>, num_weights, part, grads.weight);
  }
}

}  // namespace deform_conv
