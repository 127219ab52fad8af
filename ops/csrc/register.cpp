// The schemas of the operators. The library of each device registers its kernels (cpu/, cuda/).
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(deform_conv, m) {
  m.def(
      "forward(Tensor input, Tensor offset, Tensor weight, Tensor? bias, Tensor? mask, "
      "int[] stride, int[] padding, int[] dilation, bool fast_float32=False) -> Tensor");
  m.def(
      "backward(Tensor grad_output, Tensor input, Tensor offset, Tensor weight, Tensor? mask, "
      "int[] stride, int[] padding, int[] dilation, bool needs_input=True, bool needs_weight=True, "
      "bool fast_float32=False) -> (Tensor grad_input, Tensor grad_offset, Tensor grad_weight, "
      "Tensor grad_mask)");
  m.def("cpu_capabilities() -> str");
  m.def("use_cpu_capability(str name) -> str");
  m.def("use_fused_cuda_forward(bool fused) -> bool");
}

STABLE_TORCH_LIBRARY(deform_roi_pool, m) {
  m.def(
      "forward(Tensor input, Tensor boxes, Tensor? offset, Tensor? mask, int[] output_size, "
      "float spatial_scale, int sampling_ratio, bool aligned, float gamma) -> Tensor");
  m.def(
      "backward(Tensor grad_output, Tensor input, Tensor boxes, Tensor? offset, Tensor? mask, "
      "int[] output_size, float spatial_scale, int sampling_ratio, bool aligned, float gamma, "
      "bool needs_input, bool needs_offset, bool needs_mask) "
      "-> (Tensor grad_input, Tensor grad_offset, Tensor grad_mask)");
}
