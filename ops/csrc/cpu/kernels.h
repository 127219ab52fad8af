// The interface between the operators and the kernels of one capability. kernels.cpp is compiled
// once for each capability of a processor; the table of the best one is chosen at run time.
//
// The right factor of a product is packed into panels of 32 columns:
//
//     panel (depth, 32)           float, double
//     panel (depth / 2, 32, 2)    bfloat16, in the pairs that the processor's dot products take
//
// The depth is padded with zeros to a multiple of kDepthStep (product.h). The columns of a panel
// are 32 neighbouring channels, which may belong to several weight groups; the depth is that of one
// group.
#pragma once

#include "../geometry.h"

namespace deform_conv {

constexpr int64_t kPanel = 32;  // columns of a panel, and channels of a backward task

struct BFloat16 {
  uint16_t bits;
};

template <typename T>
struct RealOf {
  using type = float;
};
template <>
struct RealOf<double> {
  using type = double;
};
template <typename T>
using Real = typename RealOf<T>::type;  // the type of locations and sums

// The features, channels-last, and where they are sampled.
template <typename T>
struct Samples {
  Geometry g;
  const T* input;         // (N, H, W, C)
  const Real<T>* offset;  // (N, P, G, K, 2)
  const Real<T>* mask;    // (N, P, G, K), or null
};

// The P positions of an image, also called rows, are divided into tiles of `rows` positions (the
// last tile may be shorter). Tiles are numbered through the whole batch.
struct Tiles {
  int64_t rows, per_image;
};

template <typename T>
struct Gradients {
  const T* output;             // (N, P, O), the gradient of the output
  const T* output_transposed;  // the result of `transpose`
  Real<T>* input;              // (N, H, W, C), added to; null if not wanted
  Real<T>* weight;             // (O, K, Cg); null if not wanted
  Real<T>* partial;            // (N, P, K, 3), a block's share of the gradients of (dy, dx, mask)
};

// Returns the number of panels of all weights.
DEFORM_CONV_HOST_DEVICE int64_t num_panels(const Geometry& g) {
  return (g.out_channels + kPanel - 1) / kPanel;
}

template <typename T>
struct ForwardKernels {
  // The number of elements of the packed weights, and a function that packs one panel of them.
  int64_t (*packed_size)(const Geometry& g);
  void (*pack)(const Geometry& g, const T* weight, int64_t panel, T* packed);

  // Computes output (N, P, O) for the tiles [first, last). `runs` cover all channels, in order.
  void (*forward)(
      const Samples<T>& samples, const Channels* runs, int64_t num_runs, const T* packed,
      const Real<T>* bias, T* output, Tiles tiles, int64_t first, int64_t last);
};

template <typename T>
struct Kernels {
  ForwardKernels<T> forward;

  // The number of elements of the transposed grad_output, the left factor of grad_weight's product
  // (0: grad_output is used as it is), and a function that transposes one tile of it.
  int64_t (*transposed_size)(const Geometry& g, Tiles tiles);
  void (*transpose)(
      const Geometry& g, const T* grad_output, Tiles tiles, int64_t tile, T* transposed);

  // Computes the gradients of one block of channels from the images [first, last).
  void (*backward)(
      const Samples<T>& samples, Channels block, const T* weight, const Gradients<T>& gradients,
      Tiles tiles, int64_t first, int64_t last);
};

// The kernels of one capability; null for dtypes of which it has no kernels of its own.
struct Table {
  const Kernels<float>* float32;
  const Kernels<double>* float64;
  const Kernels<BFloat16>* bfloat16;
  const ForwardKernels<float>* float32_split;  // float32 as the sum of two bfloat16
};

namespace portable {
extern const Table kTable;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Table kTable;
}
namespace avx512 {
extern const Table kTable;
}
namespace avx512_bf16 {
extern const Table kTable;
}
namespace amx {
extern const Table kTable;
}
#endif

}  // namespace deform_conv
