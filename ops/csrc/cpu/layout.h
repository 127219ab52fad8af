// Copies between NCHW and channels-last memory, in blocks that fit the L1 cache. torch's own copy
// takes several times as long.
#pragma once

#include <algorithm>

#include "../checks.h"

namespace deform_conv {
namespace {

constexpr int64_t kBlockPixels = 64, kBlockChannels = 16;

// Copies pixels [first, last) of an image between `nchw` (channels, pixels) and `channels_last`
// (pixels, channels).
template <typename E, bool kToLast>
void copy_pixels(
    E* nchw, E* channels_last, int64_t channels, int64_t pixels, int64_t first, int64_t last) {
  for (int64_t p = first; p < last; p += kBlockPixels)
    for (int64_t c = 0; c < channels; c += kBlockChannels) {
      const int64_t pixel_end = std::min(p + kBlockPixels, last);
      const int64_t channel_end = std::min(c + kBlockChannels, channels);
      if constexpr (kToLast) {
        for (int64_t pixel = p; pixel < pixel_end; ++pixel)
          for (int64_t channel = c; channel < channel_end; ++channel)
            channels_last[pixel * channels + channel] = nchw[channel * pixels + pixel];
      } else {
        for (int64_t channel = c; channel < channel_end; ++channel)
          for (int64_t pixel = p; pixel < pixel_end; ++pixel)
            nchw[channel * pixels + pixel] = channels_last[pixel * channels + channel];
      }
    }
}

template <typename E, bool kToLast>
void copy_images(const Tensor& nchw, const Tensor& channels_last) {
  const int64_t channels = nchw.size(1), pixels = nchw.size(2) * nchw.size(3);
  const int64_t blocks = (pixels + kBlockPixels - 1) / kBlockPixels;
  torch::stable::parallel_for(0, nchw.size(0) * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t image = block / blocks * channels * pixels;
      const int64_t first = block % blocks * kBlockPixels;
      copy_pixels<E, kToLast>(
          static_cast<E*>(nchw.data_ptr()) + image,
          static_cast<E*>(channels_last.data_ptr()) + image, channels, pixels, first,
          std::min(first + kBlockPixels, pixels));
    }
  });
}

template <bool kToLast>
void copy_layout(const Tensor& nchw, const Tensor& channels_last) {
  switch (nchw.element_size()) {
    case 2:
      return copy_images<uint16_t, kToLast>(nchw, channels_last);
    case 4:
      return copy_images<uint32_t, kToLast>(nchw, channels_last);
    default:
      return copy_images<uint64_t, kToLast>(nchw, channels_last);
  }
}

// Does what `channels_last` of checks.h does, with the fast copy.
Tensor fast_channels_last(const Tensor& tensor, ScalarType dtype) {
  const Tensor given = torch::stable::to(tensor, dtype);
  const bool both = given.size(1) == 1 || given.size(2) * given.size(3) == 1;  // both formats
  if (!given.is_contiguous() || both) return channels_last(given, dtype);
  const Tensor copy = empty_channels_last(given, dtype);
  copy_layout<true>(given, copy);
  return copy;
}

// Converts a channels-last result to the dtype and the memory format of another tensor.
Tensor formatted_as(const Tensor& like, const Tensor& result) {
  const Tensor given = torch::stable::to(result, like.scalar_type());
  if (is_channels_last(like)) return given;
  const Tensor copy =
      torch::stable::empty(given.sizes(), given.scalar_type(), std::nullopt, given.device());
  copy_layout<false>(copy, given);
  return copy;
}

}  // namespace
}  // namespace deform_conv
