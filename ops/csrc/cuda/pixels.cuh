// Device code for grad_input: an index from every pixel to the samples that read it, and the sum
// over these samples. Samples share pixels, so they could only add to grad_input in parallel with
// atomics, whose order changes from run to run. A pixel that gathers its samples adds them in a
// fixed order.
//
// There is a list per pixel and offset group, with one entry for each sample corner on the pixel.
// It serves all channels of the offset group. The lists are built in a few passes over the samples
// of a chunk:
//
//     count_corners   counts the entries of each list
//     place_lists     places the lists one after another, in any order
//     place_corners   writes the corners' numbers into their lists, in any order
//     order_corners   writes the entries, each at the rank of its corner's number within the list
//
// The first three use integer atomics. The place of a list, and the order in which it is first
// filled, depend on the order of the threads; its final order does not.
#pragma once

#include "columns.cuh"

namespace deform_conv {

// A sample corner on a pixel.
template <typename R>
struct Entry {
  int line;  // the sample's line of columns
  R weight;
};

// The number of a list is (pixel - first_pixel) * G + offset group, that of a corner 4 * sample + k
// with k from 0 to 3.
template <typename R>
struct Index {
  int64_t first_pixel;  // of the chunk's first image
  int64_t num_begun;    // pixels of the first image, if an earlier chunk has begun it; else 0
  int64_t num_lists;
  int* length;        // of each list
  int* end;           // of each list, in the arrays below; its start until the list is filled
  int* num_corners;   // the sum of the lengths
  int* corners;       // numbers of the corners, by list
  Entry<R>* entries;  // by list, in the order of the corners' numbers
};

template <typename R>
__device__ __forceinline__ int64_t
list_of(const Geometry& g, const Index<R>& index, const Sample<R>& sample, int64_t pixel) {
  return (pixel - index.first_pixel) * g.offset_groups + sample.offset_group;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    count_corners(Source<T> from, Chunk chunk, Index<Real<T>> index) {
  const Geometry& g = from.g;
  const int local = thread_number();
  if (local >= samples_of(g, chunk)) return;
  const Sample<Real<T>> sample = sample_of(from, chunk, local);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const int64_t pixel = corner_of(g, sample, k).pixel;
    if (pixel >= 0) atomicAdd(index.length + list_of(g, index, sample, pixel), 1);
  }
}

// Places the lists of one warp in order, those of different warps in any order.
template <typename R>
__global__ void __launch_bounds__(kThreads) place_lists(Index<R> index) {
  const int64_t list = thread_number();
  const int lane = threadIdx.x % 32, length = list < index.num_lists ? index.length[list] : 0;
  int end = length;
  for (int step = 1; step < 32; step *= 2) {
    const int before = __shfl_up_sync(0xffffffffu, end, step);
    if (lane >= step) end += before;
  }
  int first = lane == 31 ? atomicAdd(index.num_corners, end) : 0;
  first = __shfl_sync(0xffffffffu, first, 31);
  if (list < index.num_lists) index.end[list] = first + end - length;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    place_corners(Source<T> from, Chunk chunk, Index<Real<T>> index) {
  const Geometry& g = from.g;
  const int local = thread_number();
  if (local >= samples_of(g, chunk)) return;
  const Sample<Real<T>> sample = sample_of(from, chunk, local);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const int64_t pixel = corner_of(g, sample, k).pixel;
    if (pixel < 0) continue;
    index.corners[atomicAdd(index.end + list_of(g, index, sample, pixel), 1)] = 4 * local + k;
  }
}

// Uses one thread per entry, so that a list of a hundred thousand entries keeps the whole device
// busy. The time grows with the square of the longest list, which is long if many samples of a
// chunk read one pixel.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    order_corners(Source<T> from, Chunk chunk, Index<Real<T>> index) {
  const int64_t i = thread_number();
  if (i >= *index.num_corners) return;
  const int number = index.corners[i];
  const Sample<Real<T>> sample = sample_of(from, chunk, number / 4);
  const Corner<Real<T>> corner = corner_of(from.g, sample, number % 4);
  const int64_t list = list_of(from.g, index, sample, corner.pixel);
  const int end = index.end[list], start = end - index.length[list];
  int rank = 0;
  for (int j = start; j < end; ++j) rank += index.corners[j] < number;
  index.entries[start + rank] = {sample.line, corner.weight};
}

// grad_pixel[c] = sum over the pixel's list of weight * grad_column[c], to which the sum of earlier
// chunks is added. A thread owns V channels of a pixel.
template <typename T, typename Grad, int V>
__global__ void __launch_bounds__(kThreads) gather_columns(
    Geometry g, Chunk chunk, Index<Real<T>> index, const T* columns, Grad* grad_input) {
  const int count = g.channels / g.offset_groups, threads = count / V;  // per list
  const int64_t thread = thread_number(), list = thread / threads;
  if (list >= index.num_lists) return;
  const int end = index.end[list], start = end - index.length[list];
  const int64_t pixel = list / g.offset_groups;
  const int channel =
      (list - pixel * g.offset_groups) * count + static_cast<int>(thread - list * threads) * V;
  const T* column = columns + Line(g, chunk, 0).at(channel);
  const int64_t line_size = g.group_channels();
  Pack<Real<T>, V> sum{};
#pragma unroll 4
  for (int i = start; i < end; ++i) {
    const Entry<Real<T>> entry = index.entries[i];
    const Pack<Real<T>, V> grads = load<V>(column + entry.line * line_size);
#pragma unroll
    for (int j = 0; j < V; ++j) sum.at[j] += entry.weight * grads.at[j];
  }
  Grad* grad_pixel = grad_input + (index.first_pixel + pixel) * g.channels + channel;
  if (pixel < index.num_begun) {
    const Pack<Real<T>, V> before = load<V>(grad_pixel);
#pragma unroll
    for (int j = 0; j < V; ++j) sum.at[j] += before.at[j];
  }
  store<V>(grad_pixel, sum);
}

}  // namespace deform_conv
