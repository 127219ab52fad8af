// The interface between deformable RoI pooling and the kernels of one capability, as kernels.h is
// for the convolution. roi_kernels.cpp is compiled once for each capability of a processor.
#pragma once

#include "../roi.h"

namespace deform_conv {

// The features, and where they are sampled.
template <typename R>
struct RoiSamples {
  RoiGeometry g;
  const R* input;        // (N, H, W, C)
  const R* boxes;        // (R, 5)
  const R* offset;       // (R, 2, bins), along x first; or null
  const R* mask;         // (R, bins), or null
  const int64_t* order;  // numbers of the RoIs, sorted so that neighbours share pixels
};

template <typename R>
struct RoiKernels {
  // Computes output (R, C, bins) for the RoIs order[first] to order[last - 1].
  void (*forward)(const RoiSamples<R>& samples, R* output, int64_t first, int64_t last);

  // Adds the gradients from all RoIs of one image to grad_input (N, H, W, C), for the channels
  // [first, last).
  void (*backward_input)(
      const RoiSamples<R>& samples, const R* grad_output, R* grad_input, int64_t image,
      int64_t first, int64_t last);

  // Computes grad_offset (R, 2, bins) and grad_mask (R, bins), which are null if not wanted, for
  // the RoIs order[first] to order[last - 1].
  void (*backward_bins)(
      const RoiSamples<R>& samples, const R* grad_output, R* grad_offset, R* grad_mask,
      int64_t first, int64_t last);
};

// The kernels of one capability.
struct RoiTable {
  const RoiKernels<float>* float32;
  const RoiKernels<double>* float64;
};

namespace portable {
extern const RoiTable kRoiTable;
}
#if defined(__x86_64__)
namespace avx2 {
extern const RoiTable kRoiTable;
}
namespace avx512 {
extern const RoiTable kRoiTable;
}
#endif

}  // namespace deform_conv
