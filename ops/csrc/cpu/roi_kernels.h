// What the kernels of one processor offer to deformable RoI pooling; as kernels.h is for the
// convolution. roi_kernels.cpp is compiled once for each capability of a processor.
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
  const int64_t* order;  // of the RoIs: neighbours in it read the same pixels, if any
};

template <typename R>
struct RoiKernels {
  // output (R, C, bins) of the RoIs [first, last) in their order.
  void (*forward)(const RoiSamples<R>& samples, R* output, int64_t first, int64_t last);

  // Adds to grad_input (N, H, W, C) what all RoIs of one image give to the channels [first, last).
  void (*backward_input)(
      const RoiSamples<R>& samples, const R* grad_output, R* grad_input, int64_t image,
      int64_t first, int64_t last);

  // grad_offset (R, 2, bins) and grad_mask (R, bins) of the RoIs [first, last) in their order;
  // null: not wanted.
  void (*backward_bins)(
      const RoiSamples<R>& samples, const R* grad_output, R* grad_offset, R* grad_mask,
      int64_t first, int64_t last);
};

// Those of one capability; null where it has none of its own.
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
