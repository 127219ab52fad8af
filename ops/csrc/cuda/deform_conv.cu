// Deformable convolution on CUDA: sample a chunk of columns, multiply it with the weight, and go
// on to the next chunk, which reuses the memory. A chunk is small enough to stay in the L2 cache.
// Nothing is saved for the backward, which samples again.
//
//     columns  (groups, rows, K, Cg)   the samples of a chunk of positions
//     weight   (O, K, Cg)              channels-last memory of (O, Cg, kernel_h, kernel_w)
//     output   (N P, O)                channels-last memory of (N, O, Ho, Wo)
//
// Features, columns and weights have the features' dtype; sums are in float32 (float64 for
// float64): those inside a product, by cuBLAS, and grad_input and grad_weight across the chunks.
// The order of summation is fixed, but for grad_input, which is summed by atomics.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cuda.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <array>
#include <tuple>

#include "../deform_conv.h"
#include "columns.cuh"

namespace deform_conv {
namespace {

using torch::stable::accelerator::DeviceGuard;

constexpr int64_t kChunkBytes = 16 << 20;  // of columns

// ---- products and launches ------------------------------------------------------------------

Tensor buffer(int64_t elements, ScalarType dtype, const Tensor& like) {
  return torch::stable::empty({elements}, dtype, std::nullopt, like.device());
}

// A view of a tensor's memory, from its element `first`.
Tensor view(
    const Tensor& memory, int64_t first, const std::vector<int64_t>& sizes,
    const std::vector<int64_t>& strides) {
  return torch::stable::from_blob(
      memory.data_ptr(), sizes, strides, memory.device(), memory.scalar_type(), first);
}

// out = a b
void multiply(const Tensor& a, const Tensor& b, const Tensor& out) {
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_mm_out(out.get(), a.get(), b.get()));
}

// out = bias + a b
void multiply(const Tensor& bias, const Tensor& a, const Tensor& b, const Tensor& out) {
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_cuda_addmm_out(out.get(), bias.get(), a.get(), b.get(), 1.0, 1.0));
}

// out = a b, the sum being kept as it is: in float32 for 16-bit factors
void multiply_unrounded(const Tensor& a, const Tensor& b, const Tensor& out) {
  if (a.scalar_type() == out.scalar_type()) return multiply(a, b, out);
  using torch::stable::detail::from;
  std::array<StableIValue, 4> stack{from(a), from(b), from(out.scalar_type()), from(out)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::mm", "dtype_out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // takes over the result, which is `out` again
}

template <typename... Parameters, typename... Arguments>
void launch(
    const Tensor& on, int64_t threads, void (*kernel)(Parameters...), const Arguments&... given) {
  if (threads == 0) return;
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(on.get_device_index(), &stream));
  const int64_t blocks = (threads + kThreads - 1) / kThreads;
  kernel<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(given...);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

// ---- columns --------------------------------------------------------------------------------

// All positions of the batch in chunks of about equal size.
std::vector<Chunk> chunks_of(const Geometry& g, int64_t element_size) {
  const int64_t total = g.batch * g.positions();
  const int64_t most = std::max<int64_t>(1, kChunkBytes / (g.taps() * g.channels * element_size));
  const int64_t count = std::max<int64_t>(1, (total + most - 1) / most);
  const int64_t rows = (total + count - 1) / count;
  std::vector<Chunk> chunks;
  for (int64_t first = 0; first < total; first += rows)
    chunks.push_back({first, std::min(rows, total - first)});
  return chunks;
}

// The column buffer and how the kernels go over it: `v` channels at a time, in 16-byte (or
// shorter) accesses, where all are aligned and none straddles two groups; else one at a time.
template <typename T>
struct Columns {
  const Geometry& g;
  Source<T> source;
  std::vector<Chunk> chunks;
  Tensor memory;
  int64_t depth;  // K Cg
  bool wide;
  int lanes;  // that share a sample: a power of two

  Columns(
      const Geometry& geometry, const Tensor& input, const Tensor& offset,
      const std::optional<Tensor>& mask, int64_t v)
      : g(geometry),
        source{
            g, static_cast<const T*>(input.data_ptr()),
            static_cast<const Real<T>*>(offset.data_ptr()),
            mask ? static_cast<const Real<T>*>(mask->data_ptr()) : nullptr},
        chunks(chunks_of(g, sizeof(T))),
        depth(g.taps() * g.group_channels()) {
    const int64_t rows = chunks.empty() ? 0 : chunks[0].rows;
    memory = buffer(rows * g.groups * depth, input.scalar_type(), input);
    const int64_t count = g.channels / g.offset_groups;
    wide = g.group_channels() % v == 0 && count % v == 0 &&
           reinterpret_cast<uintptr_t>(source.input) % (v * sizeof(T)) == 0;
    lanes = 1;
    while (lanes < 32 && lanes * (wide ? v : 1) < count) lanes *= 2;
  }

  T* data() const { return static_cast<T*>(memory.data_ptr()); }

  int64_t threads(const Chunk& chunk) const {
    return chunk.rows * g.offset_groups * g.taps() * lanes;
  }

  Tensor of_group(const Chunk& chunk, int64_t group) const {
    return view(memory, group * chunk.rows * depth, {chunk.rows, depth}, {depth, 1});
  }
};

// (rows, O / groups), or transposed: one group of a chunk in output or grad_output
Tensor outputs(
    const Geometry& g, const Tensor& output, const Chunk& chunk, int64_t group,
    bool transposed = false) {
  const int64_t outs = g.group_out_channels(), row = g.out_channels;
  const int64_t first = chunk.first * row + group * outs;
  return transposed ? view(output, first, {outs, chunk.rows}, {1, row})
                    : view(output, first, {chunk.rows, outs}, {row, 1});
}

// (O / groups, K Cg), or transposed: one group in weight or grad_weight
Tensor weights(const Geometry& g, const Tensor& weight, int64_t group, bool transposed = false) {
  const int64_t outs = g.group_out_channels(), depth = g.taps() * g.group_channels();
  return transposed ? view(weight, group * outs * depth, {depth, outs}, {1, depth})
                    : view(weight, group * outs * depth, {outs, depth}, {depth, 1});
}

// ---- forward and backward -------------------------------------------------------------------

template <typename T>
void forward_kernel(
    const Geometry& g, const Tensor& input, const Tensor& offset, const Tensor& weight,
    const std::optional<Tensor>& bias, const std::optional<Tensor>& mask, const Tensor& output) {
  constexpr int kWide = 16 / sizeof(T);
  const Columns<T> columns(g, input, offset, mask, kWide);
  const auto kernel = columns.wide ? sample_columns<T, kWide> : sample_columns<T, 1>;
  const int64_t outs = g.group_out_channels();
  for (const Chunk& chunk : columns.chunks) {
    launch(
        input, columns.threads(chunk), kernel, columns.source, chunk, columns.lanes,
        columns.data());
    for (int64_t group = 0; group < g.groups; ++group) {
      const Tensor sampled = columns.of_group(chunk, group);
      const Tensor factors = weights(g, weight, group, true);
      const Tensor out = outputs(g, output, chunk, group);
      if (bias)
        multiply(view(*bias, group * outs, {outs}, {1}), sampled, factors, out);
      else
        multiply(sampled, factors, out);
    }
  }
}

// grad_input and grad_weight are sums: they come zeroed, in float32 (float64).
template <typename T>
void backward_kernel(
    const Geometry& g, const Tensor& grad_output, const Tensor& input, const Tensor& offset,
    const Tensor& weight, const std::optional<Tensor>& mask, const Tensor& grad_input,
    const Tensor& grad_offset, const Tensor& grad_weight, const Tensor& grad_mask) {
  using R = Real<T>;
  constexpr int kWide = 16 / sizeof(R);  // by grad_input, which is most of the traffic
  const Columns<T> columns(g, input, offset, mask, kWide);
  const auto kernel = columns.wide ? spread_columns<T, kWide> : spread_columns<T, 1>;
  const int64_t num_weights = g.out_channels * columns.depth;
  const Tensor part = buffer(num_weights, grad_weight.scalar_type(), input);
  for (const Chunk& chunk : columns.chunks) {
    for (int64_t group = 0; group < g.groups; ++group)
      multiply(
          outputs(g, grad_output, chunk, group), weights(g, weight, group),
          columns.of_group(chunk, group));
    launch(
        input, columns.threads(chunk), kernel, columns.source, chunk, columns.lanes, columns.data(),
        static_cast<R*>(grad_input.data_ptr()), static_cast<R*>(grad_offset.data_ptr()),
        mask ? static_cast<R*>(grad_mask.data_ptr()) : nullptr);
    for (int64_t group = 0; group < g.groups; ++group)
      multiply_unrounded(
          outputs(g, grad_output, chunk, group, true), columns.of_group(chunk, group),
          weights(g, part, group));
    launch(
        input, num_weights, add<R>, num_weights, static_cast<const R*>(part.data_ptr()),
        static_cast<R*>(grad_weight.data_ptr()));
  }
}

// ---- operators ------------------------------------------------------------------------------

// Calls `function` with a value of the features' type.
template <typename Function>
void with_type(const Tensor& input, const Function& function) {
  switch (input.scalar_type()) {
    case ScalarType::Float:
      return function(float());
    case ScalarType::Double:
      return function(double());
    case ScalarType::Half:
      return function(torch::headeronly::Half());
    case ScalarType::BFloat16:
      return function(torch::headeronly::BFloat16());
    default:
      STD_TORCH_CHECK(false, "deform_conv2d: input must be a floating point tensor");
  }
}

std::optional<Tensor> channels_last_or_none(const std::optional<Tensor>& tensor, ScalarType dtype) {
  return tensor ? std::optional(channels_last(*tensor, dtype)) : std::nullopt;
}

Tensor forward(
    const Tensor& input, const Tensor& offset, const Tensor& weight,
    const std::optional<Tensor>& bias, const std::optional<Tensor>& mask, const IntPair& stride,
    const IntPair& padding, const IntPair& dilation) {
  const Geometry g = checked_geometry(input, offset, weight, mask, stride, padding, dilation);
  check_bias(bias, input, g);
  const DeviceGuard guard(input.get_device_index());
  const ScalarType dtype = input.scalar_type(), location = location_dtype(input);
  const Tensor output = torch::stable::empty(
      {g.batch, g.out_channels, g.out_height, g.out_width}, dtype, std::nullopt, input.device(),
      std::nullopt, MemoryFormat::ChannelsLast);
  with_type(input, [&](auto zero) {
    forward_kernel<decltype(zero)>(
        g, channels_last(input, dtype), channels_last(offset, location),
        channels_last(weight, dtype),
        bias ? std::optional(torch::stable::contiguous(*bias)) : std::nullopt,
        channels_last_or_none(mask, location), output);
  });
  return output;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& grad_output, const Tensor& input, const Tensor& offset, const Tensor& weight,
    const std::optional<Tensor>& mask, const IntPair& stride, const IntPair& padding,
    const IntPair& dilation) {
  const Geometry g = checked_geometry(input, offset, weight, mask, stride, padding, dilation);
  check_grad_output(grad_output, input, g);
  const DeviceGuard guard(input.get_device_index());
  const ScalarType dtype = input.scalar_type(), location = location_dtype(input);
  Tensor grad_input = empty_channels_last(input, location);
  Tensor grad_weight = empty_channels_last(weight, location);
  const Tensor grad_offset = empty_channels_last(offset, location);
  const Tensor grad_mask = mask ? empty_channels_last(*mask, location) : buffer(0, location, input);
  torch::stable::zero_(grad_input);
  torch::stable::zero_(grad_weight);
  with_type(input, [&](auto zero) {
    backward_kernel<decltype(zero)>(
        g, channels_last(grad_output, dtype), channels_last(input, dtype),
        channels_last(offset, location), channels_last(weight, dtype),
        channels_last_or_none(mask, location), grad_input, grad_offset, grad_weight, grad_mask);
  });
  return {
      torch::stable::to(grad_input, dtype), grad_offset, torch::stable::to(grad_weight, dtype),
      grad_mask};
}

}  // namespace
}  // namespace deform_conv

STABLE_TORCH_LIBRARY_IMPL(deform_conv, CUDA, m) {
  m.impl("forward", TORCH_BOX(&deform_conv::forward));
  m.impl("backward", TORCH_BOX(&deform_conv::backward));
}
