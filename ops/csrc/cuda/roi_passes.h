// The forward and backward of deformable RoI pooling as launches of kernels. The device is a
// parameter, as in passes.h.
#pragma once

#include <cstdint>

#include "roi_bins.cuh"

namespace deform_conv {

// Returns whether kernels can access the channels 16 bytes at a time.
template <typename T>
bool is_wide(const RoiSource<T>& source, const T* bins) {
  const auto is_aligned = [](const T* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; };
  return source.g.channels % (16 / sizeof(T)) == 0 && is_aligned(source.input) && is_aligned(bins);
}

template <typename T, typename Device>
void roi_forward_pass(Device& device, const RoiSource<T>& source, T* output) {
  const int64_t threads = source.g.num_rois * source.g.bins() * 32;
  const auto average =
      is_wide(source, output) ? average_bins<T, 16 / sizeof(T)> : average_bins<T, 1>;
  device.launch(threads, average, source, output);
}

// grad_output and the features are channels-last. Gradients are null if not wanted.
template <typename T, typename Device>
void roi_backward_pass(
    Device& device, const RoiSource<T>& source, const T* grad_output, Real<T>* grad_input,
    Real<T>* grad_offset, Real<T>* grad_mask) {
  const RoiGeometry& g = source.g;
  if (grad_input) {
    const int64_t tiles_y = (g.height + kTileHeight - 1) / kTileHeight;
    const int64_t tiles_x = (g.width + kTileWidth - 1) / kTileWidth;
    const int64_t slabs = (g.channels + kThreads - 1) / kThreads;
    device.launch_blocks(
        slabs * g.batch * tiles_y * tiles_x, kTileBytes<Real<T>>, gather_bins<T>, source,
        static_cast<int>(tiles_y), static_cast<int>(tiles_x), grad_output, grad_input);
  }
  if (!grad_offset && !grad_mask) return;
  const auto differentiate = is_wide(source, grad_output) ? differentiate_bins<T, 16 / sizeof(T)>
                                                          : differentiate_bins<T, 1>;
  device.launch(
      g.num_rois * g.bins() * 32, differentiate, source, grad_output, grad_offset, grad_mask);
}

}  // namespace deform_conv
