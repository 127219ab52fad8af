// Helpers for the operators of both libraries: checks of tensors, whose messages begin with the
// operator's name, and conversions to the memory format of the kernels.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <sstream>
#include <string>
#include <vector>

namespace deform_conv {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string shape_of(const Tensor& tensor) {
  std::ostringstream text;
  text << "(";
  for (int64_t i = 0; i < tensor.dim(); ++i) text << (i ? ", " : "") << tensor.size(i);
  text << ")";
  return text.str();
}

inline void check_shape(
    const char* op, const char* name, const Tensor& tensor, const std::vector<int64_t>& expected) {
  bool equal = tensor.dim() == static_cast<int64_t>(expected.size());
  std::ostringstream text;
  for (size_t i = 0; i < expected.size(); ++i) {
    equal = equal && tensor.size(i) == expected[i];
    text << (i ? ", " : "") << expected[i];
  }
  STD_TORCH_CHECK(
      equal, op, ": ", name, " must have shape (", text.str(), "), got ", shape_of(tensor));
}

inline std::string device_of(const Tensor& tensor) {
  if (tensor.is_cuda()) return "cuda:" + std::to_string(tensor.get_device_index());
  return tensor.is_cpu() ? "cpu" : "other device";
}

inline void check_kind(
    const char* op, const char* name, const Tensor& tensor, ScalarType dtype, const Tensor& input) {
  STD_TORCH_CHECK(
      tensor.scalar_type() == dtype, op, ": ", name, " must be ", dtype, " beside an ",
      input.scalar_type(), " input, got ", tensor.scalar_type());
  STD_TORCH_CHECK(
      tensor.device() == input.device(), op, ": ", name, " must be on the input's ",
      device_of(input), ", got ", device_of(tensor));
}

// The dtype of offsets, masks and boxes: float64 beside float64 features, else float32.
inline ScalarType location_dtype(const Tensor& input) {
  return input.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Returns the tensor in channels-last memory and the given dtype, without a copy if possible.
inline Tensor channels_last(const Tensor& tensor, ScalarType dtype) {
  return torch::stable::contiguous(torch::stable::to(tensor, dtype), MemoryFormat::ChannelsLast);
}

inline Tensor empty_channels_last(const Tensor& like, ScalarType dtype) {
  return torch::stable::empty(
      like.sizes(), dtype, std::nullopt, like.device(), std::nullopt, MemoryFormat::ChannelsLast);
}

// Outputs take the memory format of the features, channels-last or NCHW, and gradients take that of
// their tensor. A convolution's gradient is slow if its factors differ in memory format.
inline bool is_channels_last(const Tensor& tensor) {
  return tensor.stride(1) == 1 && !tensor.is_contiguous();
}

inline std::optional<Tensor> channels_last_or_none(
    const std::optional<Tensor>& tensor, ScalarType dtype) {
  return tensor ? std::optional(channels_last(*tensor, dtype)) : std::nullopt;
}

}  // namespace deform_conv
