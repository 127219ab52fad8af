// What the kernels of one processor offer to the operators. kernels.cpp is compiled once for each
// capability of a processor; the best table that the processor has is chosen at run time.
//
// A product's right factor is packed: 32 of its columns side by side make a panel,
//
//     panel (depth, 32)           float, double
//     panel (depth / 2, 32, 2)    bfloat16: pairs, as the processor's dot products take them
//
// with the depth padded by zeros to a multiple of kDepthStep (product.h). A panel's columns are 32
// neighbouring channels, whatever weight groups they belong to: the depth is that of one group.
#pragma once

#include "../geometry.h"

namespace deform_conv {

constexpr int64_t kPanel = 32;  // also the channels whose gradients one backward task owns

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
using Real = typename RealOf<T>::type;  // of locations and sums

// The features, channels-last, and where they are sampled.
template <typename T>
struct Samples {
  Geometry g;
  const T* input;         // (N, H, W, C)
  const Real<T>* offset;  // (N, P, G, K, 2)
  const Real<T>* mask;    // (N, P, G, K), or null
};

// The rows of an image, its P positions, are worked on in tiles of `rows` of them (the last one may
// be shorter). Tiles are counted through the whole batch.
struct Tiles {
  int64_t rows, per_image;
};

template <typename T>
struct Gradients {
  const T* output;             // (N, P, O): the gradient that comes in
  const T* output_transposed;  // what `transpose` made of it
  Real<T>* input;              // (N, H, W, C), summed into; null if not wanted
  Real<T>* weight;             // (O, K, Cg); null if not wanted
  Real<T>* partial;            // (N, P, K, 3): the share of a block in (dy, dx, mask)
};

// Panels of all weights.
DEFORM_CONV_HOST_DEVICE int64_t num_panels(const Geometry& g) {
  return (g.out_channels + kPanel - 1) / kPanel;
}

template <typename T>
struct ForwardKernels {
  // The weights as the product's right factor: elements, and the packing of one panel.
  int64_t (*packed_size)(const Geometry& g);
  void (*pack)(const Geometry& g, const T* weight, int64_t panel, T* packed);

  // output (N, P, O) of the tiles [first, last). `runs` are all channels, in order.
  void (*forward)(
      const Samples<T>& samples, const Channels* runs, int64_t num_runs, const T* packed,
      const Real<T>* bias, T* output, Tiles tiles, int64_t first, int64_t last);
};

template <typename T>
struct Kernels {
  ForwardKernels<T> forward;

  // grad_output as the left factor of grad_weight's product: elements (0: used as it is), and
  // the transposition of one tile.
  int64_t (*transposed_size)(const Geometry& g, Tiles tiles);
  void (*transpose)(
      const Geometry& g, const T* grad_output, Tiles tiles, int64_t tile, T* transposed);

  // The gradients that belong to one block of channels, from the images [first, last).
  void (*backward)(
      const Samples<T>& samples, Channels block, const T* weight, const Gradients<T>& gradients,
      Tiles tiles, int64_t first, int64_t last);
};

// The kernels of one capability; null where it has none of its own.
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
