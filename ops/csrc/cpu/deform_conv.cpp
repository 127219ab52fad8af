// Deformable convolution on the CPU: sample a tile of columns, multiply it with the weight, and
// go on to the next tile. No full column buffer exists; nothing is saved for the backward, which
// samples again.
//
//     columns (rows, K, Cg)     the samples of a tile of rows, Cg channels of a weight group
//     weight  (O, K, Cg)        channels-last memory of (O, Cg, kernel_h, kernel_w)
//
// Work is divided among threads by sizes that do not depend on the number of threads, and every
// sum has a fixed order: results are the same bits for any number of threads.
//
// Kernels exist for float and double. bfloat16 and float16 features are computed in float.
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <tuple>

#include "../deform_conv.h"
#include "sample.h"

namespace deform_conv {
namespace {

constexpr int64_t kTileBytes = 1 << 20;  // of columns: with its GEMM operands, an L2 cache
constexpr int64_t kBlockChannels = 32;   // of the input, whose gradients one backward task owns
constexpr int64_t kTasks = 16;           // backward tasks to aim for, by dividing the batch

template <typename T>
constexpr ScalarType kScalarType = sizeof(T) == 4 ? ScalarType::Float : ScalarType::Double;

int64_t tile_rows(int64_t row_bytes, int64_t all_rows) {
  const int64_t rows = std::clamp<int64_t>(kTileBytes / row_bytes, 16, 256);
  return std::max<int64_t>(1, std::min(rows, all_rows));
}

// A matrix view (rows, columns) of memory that somebody else owns.
template <typename T>
Tensor matrix(const T* elements, int64_t rows, int64_t columns, int64_t row, int64_t column = 1) {
  return torch::stable::from_blob(
      const_cast<T*>(elements), {rows, columns}, {row, column},
      torch::stable::Device(torch::headeronly::DeviceType::CPU), kScalarType<T>);
}

// out = a b
void multiply(const Tensor& a, const Tensor& b, Tensor&& out) {
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(out.get(), a.get(), b.get()));
}

// out += a b
void multiply_add(const Tensor& a, const Tensor& b, Tensor&& out) {
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_cpu_addmm_out(out.get(), out.get(), a.get(), b.get(), 1.0, 1.0));
}

// Channels-last tensors, and where their taps sample. A row is a position of an image: n P + p.
template <typename T>
struct Samples {
  const Geometry& g;
  const T* input;   // (N, H, W, C)
  const T* offset;  // (N P, G, K, 2)
  const T* mask;    // (N P, G, K) or null

  // The elements before an image's first pixel.
  int64_t image(int64_t row) const { return row / g.positions() * g.height * g.width * g.channels; }

  Location<T> locate(int64_t row, int64_t offset_group, int64_t tap) const {
    const T* dydx = offset + ((row * g.offset_groups + offset_group) * g.taps() + tap) * 2;
    return locate_tap(g, row % g.positions(), tap, dydx[0], dydx[1]);
  }

  T modulation(int64_t row, int64_t offset_group, int64_t tap) const {
    return mask ? mask[(row * g.offset_groups + offset_group) * g.taps() + tap] : T(1);
  }
};

template <typename T>
Samples<T> samples_of(
    const Geometry& g, const Tensor& input, const Tensor& offset,
    const std::optional<Tensor>& mask) {
  return {
      g, static_cast<const T*>(input.data_ptr()), static_cast<const T*>(offset.data_ptr()),
      mask ? static_cast<const T*>(mask->data_ptr()) : nullptr};
}

// ---- forward ------------------------------------------------------------------------------

// columns (groups, rows, K, Cg) of the rows from `first` on
template <typename T>
void sample_tile(
    const Samples<T>& samples, const std::vector<Channels>& runs, int64_t first, int64_t rows,
    const T* zeros, T* columns) {
  const Geometry& g = samples.g;
  const int64_t per_group = g.group_channels();
  for (int64_t row = 0; row < rows; ++row) {
    const T* image = samples.input + samples.image(first + row);
    for (int64_t tap = 0; tap < g.taps(); ++tap) {
      for (const Channels& run : runs) {
        Corners<T> corners = corners_of(
            samples.locate(first + row, run.offset_group, tap), image + run.first, g.height,
            g.width, g.channels, zeros);
        const T modulation = samples.modulation(first + row, run.offset_group, tap);
        for (T& weight : corners.weight) weight *= modulation;
        blend(
            corners, run.count,
            columns + ((run.group * rows + row) * g.taps() + tap) * per_group +
                (run.first - run.group * per_group));
      }
    }
  }
}

template <typename T>
void forward_kernel(
    const Geometry& g, const Tensor& input, const Tensor& offset, const Tensor& weight,
    const std::optional<Tensor>& bias, const std::optional<Tensor>& mask, Tensor& output) {
  const int64_t row_length = g.taps() * g.channels, depth = g.taps() * g.group_channels();
  const int64_t outs = g.group_out_channels(), all_rows = g.batch * g.positions();
  const int64_t tile = tile_rows(row_length * sizeof(T), all_rows);
  const std::vector<Channels> runs = channel_runs(g, g.channels);
  const Samples<T> samples = samples_of<T>(g, input, offset, mask);
  const std::vector<T> zeros(g.channels);
  const T* weights = static_cast<const T*>(weight.data_ptr());
  const T* biases = bias ? static_cast<const T*>(bias->data_ptr()) : nullptr;
  T* outputs = static_cast<T*>(output.data_ptr());

  const int64_t tiles = (all_rows + tile - 1) / tile;
  torch::stable::parallel_for(0, tiles, 1, [&](int64_t begin, int64_t end) {
    std::vector<T> columns(tile * row_length);
    for (int64_t first = begin * tile; first < std::min(end * tile, all_rows); first += tile) {
      const int64_t rows = std::min(tile, all_rows - first);
      sample_tile(samples, runs, first, rows, zeros.data(), columns.data());
      T* out = outputs + first * g.out_channels;
      for (int64_t group = 0; group < g.groups; ++group)
        multiply(
            matrix(columns.data() + group * rows * depth, rows, depth, depth),
            matrix(weights + group * outs * depth, depth, outs, 1, depth),
            matrix(out + group * outs, rows, outs, g.out_channels));
      if (!biases) continue;
      for (int64_t row = 0; row < rows; ++row)
        for (int64_t o = 0; o < g.out_channels; ++o) out[row * g.out_channels + o] += biases[o];
    }
  });
}

// ---- backward -----------------------------------------------------------------------------
//
// A task owns a block of input channels in some of the images: their grad_input, their part of
// grad_weight, and their share of the offsets' and mask's gradients. Nobody else writes there.

template <typename T>
struct Gradients {
  T* input;    // (N, H, W, C)
  T* weight;   // (splits, O, K, Cg): a partial sum for every part of the batch
  T* partial;  // (blocks, N, P, K, 3): (dy, dx, mask), a partial sum for every block of channels
};

// (groups' outs, K, count): the weights of one block of input channels, side by side
template <typename T>
std::vector<T> block_weights(const Geometry& g, const Channels& block, const T* weights) {
  const int64_t per_group = g.group_channels(), outs = g.group_out_channels();
  std::vector<T> packed(outs * g.taps() * block.count);
  const T* from =
      weights + block.group * outs * g.taps() * per_group + block.first - block.group * per_group;
  for (int64_t row = 0; row < outs * g.taps(); ++row)
    std::memcpy(&packed[row * block.count], from + row * per_group, block.count * sizeof(T));
  return packed;
}

// Takes grad_columns (rows, K, count) through the sampling: into grad_input, the partial sums of
// the offsets and the mask, and back to `columns`, which grad_weight needs.
template <typename T>
void spread_tile(
    const Samples<T>& samples, const Channels& block, int64_t first, int64_t rows, const T* zeros,
    const T* grad_columns, T* grad_input, T* partial, T* nowhere, T* columns) {
  const Geometry& g = samples.g;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t image = samples.image(first + row);
    for (int64_t tap = 0; tap < g.taps(); ++tap) {
      const int64_t at_row = row * g.taps() + tap;
      const Location<T> at = samples.locate(first + row, block.offset_group, tap);
      T* grads = partial + ((first + row) * g.taps() + tap) * 3;
      T* column = columns + at_row * block.count;
      if (!at.inside) {
        std::fill_n(grads, 3, T(0));
        std::fill_n(column, block.count, T(0));
        continue;
      }
      const T modulation = samples.modulation(first + row, block.offset_group, tap);
      Corners<T> corners =
          corners_of(at, samples.input + image + block.first, g.height, g.width, g.channels, zeros);
      T* grad_pixel[4];
      for (int k = 0; k < 4; ++k) {
        const bool exists = has_corner(at, k, g.height, g.width);
        corners.weight[k] *= modulation;
        grad_pixel[k] =
            exists ? grad_input + image + corner_pixel(at, k, g.width) * g.channels + block.first
                   : nowhere + k * block.count;
      }
      T dots[4];
      spread(corners, grad_pixel, grad_columns + at_row * block.count, block.count, column, dots);
      grads[0] = modulation * derivative_y(at, dots);
      grads[1] = modulation * derivative_x(at, dots);
      grads[2] = value(at, dots);
    }
  }
}

template <typename T>
void backward_block(
    const Samples<T>& samples, const Channels& block, int64_t first_row, int64_t last_row,
    const T* grad_output, const T* weights, T* grad_input, T* grad_weight, T* partial) {
  const Geometry& g = samples.g;
  const int64_t outs = g.group_out_channels(), depth = g.taps() * block.count;
  const int64_t tile = tile_rows(2 * depth * sizeof(T), last_row - first_row);
  const std::vector<T> packed = block_weights(g, block, weights), zeros(block.count);
  std::vector<T> grad_columns(tile * depth), columns(tile * depth), nowhere(4 * block.count);
  std::vector<T> grad_packed(outs * depth);
  for (int64_t first = first_row; first < last_row; first += tile) {
    const int64_t rows = std::min(tile, last_row - first);
    const T* grads = grad_output + first * g.out_channels + block.group * outs;
    multiply(
        matrix(grads, rows, outs, g.out_channels), matrix(packed.data(), outs, depth, depth),
        matrix(grad_columns.data(), rows, depth, depth));
    spread_tile(
        samples, block, first, rows, zeros.data(), grad_columns.data(), grad_input, partial,
        nowhere.data(), columns.data());
    multiply_add(
        matrix(grads, outs, rows, 1, g.out_channels), matrix(columns.data(), rows, depth, depth),
        matrix(grad_packed.data(), outs, depth, depth));
  }
  const int64_t per_group = g.group_channels();
  T* to = grad_weight + block.group * outs * g.taps() * per_group + block.first -
          block.group * per_group;
  for (int64_t row = 0; row < outs * g.taps(); ++row)
    std::memcpy(to + row * per_group, &grad_packed[row * block.count], block.count * sizeof(T));
}

// Sums the blocks' shares, in order: partial (blocks, N P, K, 3) -> grad_offset, grad_mask.
template <typename T>
void gather_partials(
    const Geometry& g, const std::vector<Channels>& blocks, const T* partial, T* grad_offset,
    T* grad_mask) {
  const int64_t rows = g.batch * g.positions(), taps = g.taps();
  torch::stable::parallel_for(0, rows, 256, [&](int64_t begin, int64_t end) {
    for (size_t b = 0; b < blocks.size(); ++b) {
      const int64_t group = blocks[b].offset_group;
      for (int64_t row = begin; row < end; ++row) {
        const T* from = partial + (b * rows + row) * taps * 3;
        const int64_t to = (row * g.offset_groups + group) * taps;
        for (int64_t tap = 0; tap < taps; ++tap) {
          grad_offset[(to + tap) * 2] += from[tap * 3];
          grad_offset[(to + tap) * 2 + 1] += from[tap * 3 + 1];
          if (grad_mask) grad_mask[to + tap] += from[tap * 3 + 2];
        }
      }
    }
  });
}

template <typename T>
void backward_kernel(
    const Geometry& g, const Tensor& grad_output, const Tensor& input, const Tensor& offset,
    const Tensor& weight, const std::optional<Tensor>& mask, Tensor& grad_input,
    Tensor& grad_offset, Tensor& grad_weight, Tensor* grad_mask) {
  const std::vector<Channels> blocks = channel_runs(g, kBlockChannels);
  const int64_t num_blocks = blocks.size();
  const int64_t splits =
      std::max<int64_t>(1, std::min(g.batch, (kTasks + num_blocks - 1) / num_blocks));
  const int64_t num_weights = g.out_channels * g.taps() * g.group_channels();
  const int64_t partials = g.batch * g.positions() * g.taps() * 3;
  std::vector<T> weight_parts(splits * num_weights);
  const std::unique_ptr<T[]> partial(new T[num_blocks * partials]);  // every element is written

  const Samples<T> samples = samples_of<T>(g, input, offset, mask);
  torch::stable::parallel_for(0, splits * num_blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t split = task / num_blocks, b = task % num_blocks;
      backward_block(
          samples, blocks[b], split * g.batch / splits * g.positions(),
          (split + 1) * g.batch / splits * g.positions(),
          static_cast<const T*>(grad_output.data_ptr()), static_cast<const T*>(weight.data_ptr()),
          static_cast<T*>(grad_input.data_ptr()), &weight_parts[split * num_weights],
          &partial[b * partials]);
    }
  });

  T* grad_weights = static_cast<T*>(grad_weight.data_ptr());
  for (int64_t split = 0; split < splits; ++split)
    for (int64_t i = 0; i < num_weights; ++i)
      grad_weights[i] += weight_parts[split * num_weights + i];
  gather_partials(
      g, blocks, partial.get(), static_cast<T*>(grad_offset.data_ptr()),
      grad_mask ? static_cast<T*>(grad_mask->data_ptr()) : nullptr);
}

// ---- operators ----------------------------------------------------------------------------

Tensor zeros_channels_last(const Tensor& like, ScalarType dtype) {
  Tensor tensor = empty_channels_last(like, dtype);
  return torch::stable::zero_(tensor);
}

Tensor forward(
    const Tensor& input, const Tensor& offset, const Tensor& weight,
    const std::optional<Tensor>& bias, const std::optional<Tensor>& mask, const IntPair& stride,
    const IntPair& padding, const IntPair& dilation) {
  const Geometry g = checked_geometry(input, offset, weight, mask, stride, padding, dilation);
  check_bias(bias, input, g);
  const ScalarType dtype = location_dtype(input);
  Tensor output = torch::stable::empty(
      {g.batch, g.out_channels, g.out_height, g.out_width}, dtype, std::nullopt, input.device(),
      std::nullopt, MemoryFormat::ChannelsLast);
  const auto kernel = dtype == ScalarType::Double ? forward_kernel<double> : forward_kernel<float>;
  kernel(
      g, channels_last(input, dtype), channels_last(offset, dtype), channels_last(weight, dtype),
      bias ? std::optional(torch::stable::contiguous(torch::stable::to(*bias, dtype)))
           : std::nullopt,
      mask ? std::optional(channels_last(*mask, dtype)) : std::nullopt, output);
  return torch::stable::to(output, input.scalar_type());
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& grad_output, const Tensor& input, const Tensor& offset, const Tensor& weight,
    const std::optional<Tensor>& mask, const IntPair& stride, const IntPair& padding,
    const IntPair& dilation) {
  const Geometry g = checked_geometry(input, offset, weight, mask, stride, padding, dilation);
  check_grad_output(grad_output, input, g);
  const ScalarType dtype = location_dtype(input);
  Tensor grad_input = zeros_channels_last(input, dtype);
  Tensor grad_offset = zeros_channels_last(offset, dtype);
  Tensor grad_weight = zeros_channels_last(weight, dtype);
  Tensor grad_mask = mask ? zeros_channels_last(*mask, dtype)
                          : torch::stable::empty({0}, dtype, std::nullopt, input.device());
  const auto kernel =
      dtype == ScalarType::Double ? backward_kernel<double> : backward_kernel<float>;
  kernel(
      g, channels_last(grad_output, dtype), channels_last(input, dtype),
      channels_last(offset, dtype), channels_last(weight, dtype),
      mask ? std::optional(channels_last(*mask, dtype)) : std::nullopt, grad_input, grad_offset,
      grad_weight, mask ? &grad_mask : nullptr);
  return {
      torch::stable::to(grad_input, input.scalar_type()), grad_offset,
      torch::stable::to(grad_weight, input.scalar_type()), grad_mask};
}

}  // namespace
}  // namespace deform_conv

STABLE_TORCH_LIBRARY_IMPL(deform_conv, CPU, m) {
  m.impl("forward", TORCH_BOX(&deform_conv::forward));
  m.impl("backward", TORCH_BOX(&deform_conv::backward));
}
