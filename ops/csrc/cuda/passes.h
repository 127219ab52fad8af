// The forward and backward as sequences of kernels and matrix products. All positions of the batch
// are processed at once if the memory for it is at most `most_bytes`, otherwise in chunks: the
// columns of a chunk are sampled and multiplied, and the next chunk reuses their memory.
//
//     columns  (groups, rows, K, Cg)   the samples of a chunk of positions
//     weight   (O, K, Cg)              channels-last memory of (O, Cg, kernel_h, kernel_w)
//     output   (N P, O)                channels-last memory of (N, O, Ho, Wo)
//
// The forward saves nothing for the backward, which samples again: for grad_offset it must read all
// pixels of the samples anyway, so that columns kept from the forward would only save writing them,
// and would occupy N P K C elements for each layer until its backward.
//
// Columns and weights have the dtype of the features. Sums are in float32 (float64 for float64
// features), both within a product and for grad_input and grad_weight over the chunks. Every sum
// has a fixed order. In float16, gradients of columns overflow beyond 65504, as the grad_input of a
// convolution does; loss scaling serves both.
//
// The device is a parameter, so that the tests can run these passes without a GPU. It has
//     most_bytes                 limit for the columns and index of a chunk
//     buffer<T>(count)           memory for the duration of the call
//     zero(data, count)
//     launch(threads, kernel, arguments...)
//     launch_blocks(blocks, bytes of shared memory, kernel, arguments...)
//     may_fuse()                 whether the forward in one kernel is wanted
//     num_multiprocessors()
//     multiply(count, a, b, out, adds)   out = a b, or out += a b, for `count` matrices of each
#pragma once

#include <algorithm>
#include <climits>
#include <cstdint>
#include <vector>

#include "columns.cuh"
#include "fused_forward.cuh"
#include "matrices.h"
#include "pixels.cuh"

namespace deform_conv {

// The gradients to compute. Those of input and weight are sums: float32 or float64 (Real) if they
// are added over several chunks, otherwise in the dtype of the features, rounded once.
template <typename R, typename Grad>
struct Gradients {
  Grad* input;  // null if not wanted
  R* offset;
  Grad* weight;  // null if not wanted
  R* mask;       // null without a mask
};

// Divides all positions of the batch into as few chunks as possible, of about equal size. The
// corners of a chunk, four to a sample, are counted by int.
inline std::vector<Chunk> chunks_of(const Geometry& g, int64_t bytes_of_row, int64_t most_bytes) {
  const int64_t total = g.batch * g.positions();
  const int64_t most = std::max<int64_t>(
      1, std::min(most_bytes / bytes_of_row, INT_MAX / (4 * g.offset_groups * g.taps())));
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

// ---- the operands of the products, a matrix for each weight group ---------------------------

// Returns the matrices (rows, K Cg) of columns.
template <typename T>
Matrices<T> columns_of(const Geometry& g, const Chunk& chunk, T* columns) {
  const int64_t depth = g.taps() * g.group_channels();
  return {columns, chunk.rows, depth, depth, 1, chunk.rows * depth};
}

// Returns the matrices (rows, O / groups) of output or grad_output.
template <typename T>
Matrices<T> outputs_of(const Geometry& g, const Chunk& chunk, T* output) {
  const int64_t outs = g.group_out_channels(), row = g.out_channels;
  return {output + chunk.first * row, chunk.rows, outs, row, 1, outs};
}

// Returns the matrices (O / groups, K Cg) of weight or grad_weight.
template <typename T>
Matrices<T> weights_of(const Geometry& g, T* weight) {
  const int64_t outs = g.group_out_channels(), depth = g.taps() * g.group_channels();
  return {weight, outs, depth, depth, 1, outs * depth};
}

// ---- the index of pixels ---------------------------------------------------------------------

template <typename R>
constexpr int64_t kIndexBytesOfSample = 4 * (sizeof(int) + sizeof(Entry<R>));
constexpr int64_t kIndexBytesOfList = 2 * sizeof(int);

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
  index.num_begun = chunk.first % g.positions() ? pixels : 0;
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
  const int64_t row = g.taps() * g.channels, positions = g.batch * g.positions();
  const std::vector<Chunk> chunks = chunks_of(g, row * sizeof(T), device.most_bytes);
  T* columns = device.template buffer<T>(most_rows(chunks) * row);
  if (bias)
    device.launch(
        positions * g.out_channels, repeat_bias<T>, positions, static_cast<int>(g.out_channels),
        bias, output);
  for (const Chunk& chunk : chunks) {
    launch_samples(device, source, chunk, lanes, sample, columns);
    device.multiply(
        g.groups, columns_of<const T>(g, chunk, columns), transposed(weights_of(g, weight)),
        outputs_of(g, chunk, output), /*adds=*/bias != nullptr);
  }
}

// Returns the chunks of a backward. If there are several, Grad of its gradients must be Real.
template <typename T>
std::vector<Chunk> backward_chunks(const Geometry& g, int64_t most_bytes) {
  const int64_t columns = g.taps() * g.channels * sizeof(T);  // bytes of a row
  const int64_t samples = g.taps() * g.offset_groups * kIndexBytesOfSample<Real<T>>;
  const int64_t lists = kIndexBytesOfList * g.offset_groups * g.height * g.width / g.positions();
  return chunks_of(g, columns + samples + lists, most_bytes);
}

template <typename T, typename Grad, typename Device>
void backward_pass(
    Device& device, const T* grad_output, const Source<T>& source, const T* weight,
    const Gradients<Real<T>, Grad>& grads) {
  const Geometry& g = source.g;
  const Lanes<T> lanes(source);
  const int wide = lanes.wide ? lanes.kWide : 1;
  const auto differentiate =
      lanes.wide ? differentiate_columns<T, lanes.kWide> : differentiate_columns<T, 1>;
  const auto gather =
      lanes.wide ? gather_columns<T, Grad, lanes.kWide> : gather_columns<T, Grad, 1>;
  const int64_t row = g.taps() * g.channels;
  const std::vector<Chunk> chunks = backward_chunks<T>(g, device.most_bytes);
  T* columns = device.template buffer<T>(most_rows(chunks) * row);
  Index<Real<T>> index{};
  if (grads.input) index = make_index<Real<T>>(device, g, chunks);
  if (chunks.empty() && grads.weight) device.zero(grads.weight, row / g.groups * g.out_channels);
  for (const Chunk& chunk : chunks) {
    const auto grad_outputs = outputs_of(g, chunk, grad_output);
    device.multiply(
        g.groups, grad_outputs, weights_of(g, weight), columns_of(g, chunk, columns),
        /*adds=*/false);
    if (grads.input) {
      build_index(device, source, chunk, index);
      device.launch(
          index.num_lists * (g.channels / g.offset_groups / wide), gather, g, chunk, index, columns,
          grads.input);
    }
    // From here on, columns hold samples instead of gradients.
    launch_samples(device, source, chunk, lanes, differentiate, columns, grads.offset, grads.mask);
    if (grads.weight)
      device.multiply(
          g.groups, transposed(grad_outputs), columns_of<const T>(g, chunk, columns),
          weights_of(g, grads.weight), /*adds=*/chunk.first > 0);
  }
}

}  // namespace deform_conv
