// Deformable convolution on the CPU. A tile of columns is sampled for one tap and multiplied with
// the tap's weights before the next tap is sampled, so that the full matrix of columns never
// exists. The forward saves nothing for the backward, which samples again.
//
// Work is divided among threads in such a way that every sum has one order: results are the same
// bits for any number of threads.
//
// float16 is computed in float, and so is bfloat16 on processors that cannot multiply it.
#include <algorithm>
#include <memory>
#include <tuple>

#include "../deform_conv.h"
#include "capability.h"
#include "layout.h"

namespace deform_conv {
namespace {

constexpr int64_t kMostRows = 96;        // largest number of rows of a tile
constexpr int64_t kMostBytes = 3 << 19;  // largest size of a forward tile's columns and sums
constexpr int64_t kBackwardTasks = 16;   // the batch is divided to get this many tasks

// Divides all channels into runs of at most `longest`, each within one offset group.
std::vector<Channels> channel_runs(const Geometry& g, int64_t longest) {
  const int64_t per_offset = g.channels / g.offset_groups;
  std::vector<Channels> runs;
  for (int64_t first = 0; first < g.channels;) {
    const int64_t offset_group = first / per_offset;
    const int64_t last = std::min((offset_group + 1) * per_offset, first + longest);
    runs.push_back({first, last - first, offset_group});
    first = last;
  }
  return runs;
}

// Divides an image into tiles of at most `most_rows` rows and of about equal size. The number of
// tiles of a large image is about a multiple of `multiple`.
Tiles tiles_of(const Geometry& g, int64_t most_rows, int64_t multiple) {
  const int64_t positions = g.positions(), together = most_rows * multiple;
  const int64_t count = (positions + together - 1) / together * multiple;
  const int64_t rows = std::min(((positions + count - 1) / count + 11) / 12 * 12, most_rows);
  return {rows, (positions + rows - 1) / rows};
}

// Returns the number of rows of a tile that keeps the workspace of a forward task small. The
// columns of a group are padded as its weights are.
template <typename T>
int64_t most_forward_rows(const ForwardKernels<T>& kernels, const Geometry& g) {
  const int64_t depth = kernels.packed_size(g) / (num_panels(g) * g.taps() * kPanel);
  const int64_t columns = g.groups * depth * sizeof(T) + 64;
  const int64_t sums = num_panels(g) * kPanel * sizeof(Real<T>);
  return std::clamp<int64_t>(kMostBytes / (columns + sums), 1, kMostRows);
}

template <typename T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.data_ptr());
}
template <typename T>
T* mutable_data(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}
template <typename T>
const T* data(const std::optional<Tensor>& tensor) {
  return tensor ? data<T>(*tensor) : nullptr;
}

template <typename T>
void forward_kernel(
    const ForwardKernels<T>& kernels, const Geometry& g, const Tensor& input, const Tensor& offset,
    const Tensor& weight, const std::optional<Tensor>& bias, const std::optional<Tensor>& mask,
    const Tensor& output) {
  using R = Real<T>;
  const Samples<T> samples{g, data<T>(input), data<R>(offset), data<R>(mask)};
  const std::vector<Channels> runs = channel_runs(g, g.channels);
  const std::unique_ptr<T[]> packed(new T[kernels.packed_size(g)]);
  torch::stable::parallel_for(0, num_panels(g), 1, [&](int64_t first, int64_t last) {
    for (int64_t panel = first; panel < last; ++panel)
      kernels.pack(g, data<T>(weight), panel, packed.get());
  });
  const Tiles tiles = tiles_of(g, most_forward_rows(kernels, g), torch::stable::get_num_threads());
  torch::stable::parallel_for(0, g.batch * tiles.per_image, 1, [&](int64_t first, int64_t last) {
    kernels.forward(
        samples, runs.data(), runs.size(), packed.get(), data<R>(bias), mutable_data<T>(output),
        tiles, first, last);
  });
}

// Adds the blocks' shares, partial (blocks, N P, K, 3), to grad_offset and grad_mask in order.
template <typename R>
void gather_partials(
    const Geometry& g, const std::vector<Channels>& blocks, const R* partial, R* grad_offset,
    R* grad_mask) {
  const int64_t rows = g.batch * g.positions(), taps = g.taps();
  torch::stable::parallel_for(0, rows, 256, [&](int64_t begin, int64_t end) {
    for (size_t b = 0; b < blocks.size(); ++b)
      for (int64_t row = begin; row < end; ++row) {
        const R* from = partial + (b * rows + row) * taps * 3;
        const int64_t to = (row * g.offset_groups + blocks[b].offset_group) * taps;
        for (int64_t tap = 0; tap < taps; ++tap) {
          grad_offset[(to + tap) * 2] += from[tap * 3];
          grad_offset[(to + tap) * 2 + 1] += from[tap * 3 + 1];
          if (grad_mask) grad_mask[to + tap] += from[tap * 3 + 2];
        }
      }
  });
}

// grad_input and grad_weight are null if they are not wanted, grad_mask if there is no mask.
template <typename T>
void backward_kernel(
    const Kernels<T>& kernels, const Geometry& g, const Tensor& grad_output, const Tensor& input,
    const Tensor& offset, const Tensor& weight, const std::optional<Tensor>& mask,
    Real<T>* grad_input, Real<T>* grad_offset, Real<T>* grad_weight, Real<T>* grad_mask) {
  using R = Real<T>;
  const Samples<T> samples{g, data<T>(input), data<R>(offset), data<R>(mask)};
  const std::vector<Channels> blocks = channel_runs(g, kPanel);
  const int64_t num_blocks = blocks.size();
  const int64_t splits = std::clamp<int64_t>(  // parts of the batch
      (kBackwardTasks + num_blocks - 1) / num_blocks, 1, std::max<int64_t>(1, g.batch));
  const Tiles tiles = tiles_of(g, kMostRows, 1);

  const int64_t transposed_size = grad_weight ? kernels.transposed_size(g, tiles) : 0;
  const std::unique_ptr<T[]> transposed(new T[transposed_size]);
  if (transposed_size > 0)
    torch::stable::parallel_for(0, g.batch * tiles.per_image, 1, [&](int64_t first, int64_t last) {
      for (int64_t tile = first; tile < last; ++tile)
        kernels.transpose(g, data<T>(grad_output), tiles, tile, transposed.get());
    });

  const int64_t num_weights = grad_weight ? g.out_channels * g.taps() * g.group_channels() : 0;
  const int64_t num_partials = g.batch * g.positions() * g.taps() * 3;
  const std::unique_ptr<R[]> weight_parts(new R[(splits - 1) * num_weights]);
  const std::unique_ptr<R[]> partial(new R[num_blocks * num_partials]);  // every element is written
  torch::stable::parallel_for(0, splits * num_blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t split = task / num_blocks, b = task % num_blocks;
      R* const grad_weight_part =
          split == 0 || !grad_weight ? grad_weight : &weight_parts[(split - 1) * num_weights];
      const Gradients<T> gradients{
          data<T>(grad_output), transposed.get(), grad_input, grad_weight_part,
          &partial[b * num_partials]};
      kernels.backward(
          samples, blocks[b], data<T>(weight), gradients, tiles, split * g.batch / splits,
          (split + 1) * g.batch / splits);
    }
  });

  torch::stable::parallel_for(0, num_weights, 1 << 14, [&](int64_t first, int64_t last) {
    for (int64_t split = 1; split < splits; ++split)
      for (int64_t i = first; i < last; ++i)
        grad_weight[i] += weight_parts[(split - 1) * num_weights + i];
  });
  gather_partials(g, blocks, partial.get(), grad_offset, grad_mask);
}

// ---- operators ----------------------------------------------------------------------------

// Calls `function` with the kernels for features of this dtype and the dtype that they compute in.
template <typename Function>
void with_kernels(ScalarType dtype, const Function& function) {
  const Table& kernels = kernels_in_use();
  if (dtype == ScalarType::Double)
    function(*kernels.float64, dtype);
  else if (dtype == ScalarType::BFloat16 && kernels.bfloat16)
    function(*kernels.bfloat16, dtype);
  else
    function(*kernels.float32, ScalarType::Float);
}

Tensor zeros_channels_last(const Tensor& like, ScalarType dtype) {
  Tensor tensor = empty_channels_last(like, dtype);
  return torch::stable::zero_(tensor);
}

Tensor forward(
    const Tensor& input, const Tensor& offset, const Tensor& weight,
    const std::optional<Tensor>& bias, const std::optional<Tensor>& mask, const IntPair& stride,
    const IntPair& padding, const IntPair& dilation, bool fast_float32) {
  const Geometry g = checked_geometry(input, offset, weight, mask, stride, padding, dilation);
  check_bias(bias, input, g);
  const ScalarType location = location_dtype(input);
  Tensor output;
  const auto compute = [&](const auto& kernels, ScalarType dtype) {
    output = torch::stable::empty(
        {g.batch, g.out_channels, g.out_height, g.out_width}, dtype, std::nullopt, input.device(),
        std::nullopt, MemoryFormat::ChannelsLast);
    forward_kernel(
        kernels, g, fast_channels_last(input, dtype), fast_channels_last(offset, location),
        fast_channels_last(weight, dtype),
        bias ? std::optional(torch::stable::contiguous(torch::stable::to(*bias, location)))
             : std::nullopt,
        channels_last_or_none(mask, location), output);
  };
  const auto* split = kernels_in_use().float32_split;
  if (fast_float32 && split && input.scalar_type() == ScalarType::Float)
    compute(*split, ScalarType::Float);
  else
    with_kernels(input.scalar_type(), [&](const auto& kernels, ScalarType dtype) {
      compute(kernels.forward, dtype);
    });
  return formatted_as(input, output);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& grad_output, const Tensor& input, const Tensor& offset, const Tensor& weight,
    const std::optional<Tensor>& mask, const IntPair& stride, const IntPair& padding,
    const IntPair& dilation, bool needs_input, bool needs_weight, bool /* always exact */) {
  const Geometry g = checked_geometry(input, offset, weight, mask, stride, padding, dilation);
  check_grad_output(grad_output, input, g);
  const ScalarType location = location_dtype(input);
  const Tensor nothing = torch::stable::empty({0}, location, std::nullopt, input.device());
  const Tensor grad_input = needs_input ? zeros_channels_last(input, location) : nothing;
  const Tensor grad_offset = zeros_channels_last(offset, location);
  const Tensor grad_weight = needs_weight ? empty_channels_last(weight, location) : nothing;
  const Tensor grad_mask = mask ? zeros_channels_last(*mask, location) : nothing;
  with_kernels(input.scalar_type(), [&](const auto& kernels, ScalarType dtype) {
    const auto memory = [&](const Tensor& gradient, bool wanted) {
      using R = std::conditional_t<
          std::is_same_v<decltype(kernels), const Kernels<double>&>, double, float>;
      return wanted ? mutable_data<R>(gradient) : nullptr;
    };
    backward_kernel(
        kernels, g, fast_channels_last(grad_output, dtype), fast_channels_last(input, dtype),
        fast_channels_last(offset, location), fast_channels_last(weight, dtype),
        channels_last_or_none(mask, location), memory(grad_input, needs_input),
        memory(grad_offset, true), memory(grad_weight, needs_weight),
        memory(grad_mask, mask.has_value()));
  });
  return {
      needs_input ? formatted_as(input, grad_input) : nothing, formatted_as(offset, grad_offset),
      needs_weight ? formatted_as(weight, grad_weight) : nothing,
      mask ? formatted_as(*mask, grad_mask) : nothing};
}

}  // namespace
}  // namespace deform_conv

STABLE_TORCH_LIBRARY_IMPL(deform_conv, CPU, m) {
  m.impl("forward", TORCH_BOX(&deform_conv::forward));
  m.impl("backward", TORCH_BOX(&deform_conv::backward));
}

STABLE_TORCH_LIBRARY_IMPL(deform_conv, CompositeExplicitAutograd, m) {
  m.impl("cpu_capabilities", TORCH_BOX(&deform_conv::capabilities));
  m.impl("use_cpu_capability", TORCH_BOX(&deform_conv::use_capability));
}
