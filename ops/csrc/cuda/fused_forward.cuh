// The forward of 16-bit features in one kernel: a block samples 64 positions into shared memory
// and multiplies them with the weights of up to 256 output channels on tensor cores. Columns never
// leave the chip, and a sample is taken once for all the output channels of the block.
//
// The depth of the product, K Cg, is divided into steps of 64 channels of one tap. In each step,
// all threads
//     start to copy the next step's weights, and to load the next step's pixels into registers
//     multiply this step's tile
//     blend the pixels into the next step's tile, which has its own shared memory
// so that the loads can arrive during the multiplication. The locations that a tap samples are
// computed one step before their pixels are loaded, by one thread per position, for all channels.
//
// A row of a tile has 64 elements, in eight cells of 16 bytes. Row r stores its cell c in place
// c ^ (r % 8), so that eight lanes that read one cell of eight rows, or write the eight cells of
// one row, use every bank once.
#pragma once

#include <algorithm>
#include <cstdint>

#include "columns.cuh"

namespace deform_conv {

constexpr int kTileRows = 64;   // positions
constexpr int kTileDepth = 64;  // channels of a step
constexpr int kCells = kTileDepth / 8;

__device__ __forceinline__ int cell_of(int row, int cell) {
  return row * kCells + (cell ^ (row % 8));
}

// The data that the channels of an offset group share at one tap of one position.
struct alignas(16) Point {
  float weight[4];
  int cell[4];  // the cells of input in which the corners start; -1 outside the image
};

template <int kOuts>
struct Tiles {
  uint4 columns[2][kTileRows * kCells];
  uint4 weights[2][kOuts * kCells];
  Point points[2][kTileRows];
};

// A step of the product: a tap, the first of 64 channels, and the set of points (0 or 1) in use.
struct Step {
  int tap, channel;
  int change;  // the channel at which the points change
  int points;
  bool fresh;  // whether the points have just changed

  __device__ __forceinline__ void next(int first, int end, int per_offset_group) {
    channel += kTileDepth;
    fresh = channel == change;
    if (!fresh) return;
    points ^= 1;
    if (channel == end) channel = first, ++tap;
    change = min(end, (channel / per_offset_group + 1) * per_offset_group);
  }
};

template <typename T, int kOuts>
__global__ void __launch_bounds__(kThreads)
    fused_forward(Source<T> from, const T* weight, const T* bias, T* output) {
  constexpr int kWarpOuts = kOuts / 4;  // eight warps: 2 of positions x 4 of output channels
  auto& tiles = *static_cast<Tiles<kOuts>*>(shared_memory());
  const Geometry& g = from.g;
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int outs = g.group_out_channels(), out_tiles = (outs + kOuts - 1) / kOuts;
  const int slices = out_tiles * static_cast<int>(g.groups), slice = blockIdx.x % slices;
  const int group = slice / out_tiles, first_out = slice % out_tiles * kOuts;
  const int64_t first_row = int64_t(blockIdx.x / slices) * kTileRows;
  const int64_t rows = g.batch * g.positions();

  const int taps = g.taps();
  const int per_group = g.group_channels(), per_offset_group = g.channels / g.offset_groups;
  const int first_channel = group * per_group, end_channel = first_channel + per_group;
  const int depth = taps * per_group, num_steps = depth / kTileDepth;

  // A thread's part of a tile: a cell of every 32nd row.
  constexpr int kStride = kThreads / kCells, kPacks = kTileRows / kStride;
  const int cell = thread % kCells, first = thread / kCells, place = cell_of(first, cell);
  const auto input = reinterpret_cast<const uint4*>(from.input);
  const auto weights = reinterpret_cast<const uint4*>(weight + int64_t(group) * outs * depth);

  const auto find_points = [&](const Step& step) {
    if (thread >= kTileRows) return;
    const int64_t row = first_row + thread;
    Point point{{}, {-1, -1, -1, -1}};
    if (row < rows) {
      Sample<float> sample;
      const int of_position = step.channel / per_offset_group * taps + step.tap;
      const float* dydx = from.offset + row * from.offset_stride + 2 * of_position;
      sample.image = row / g.positions();
      sample.at = locate_tap(g, row - sample.image * g.positions(), step.tap, dydx[0], dydx[1]);
      sample.modulation = from.mask ? from.mask[row * from.mask_stride + of_position] : 1.0f;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const Corner<float> corner = corner_of(g, sample, k);
        point.weight[k] = corner.weight;
        if (corner.pixel >= 0) point.cell[k] = corner.pixel * (g.channels / 8);
      }
    }
    tiles.points[step.points][thread] = point;
  };

  const auto copy_weights = [&](int step, int tile) {
#pragma unroll
    for (int i = 0; i < kOuts / kStride; ++i) {
      // Beyond the last output channel, the last one is copied again; its product is not used.
      const int out = min(first_out + first + i * kStride, outs - 1);
      copy_async(
          &tiles.weights[tile][place + i * kStride * kCells],
          weights + (out * (depth / 8) + step * kCells + cell));
    }
  };

  uint4 pixels[kPacks][4];
  const auto load_pixels = [&](const Step& step) {
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      const Point& point = tiles.points[step.points][first + i * kStride];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        pixels[i][k] = uint4{};
        if (point.cell[k] >= 0) pixels[i][k] = input[point.cell[k] + (step.channel / 8 + cell)];
      }
    }
  };

  const auto blend_pixels = [&](const Step& step, int tile, int i) {
    const Point& point = tiles.points[step.points][first + i * kStride];
    float v[8] = {};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const Pack<float, 8> pixel = load<8>(reinterpret_cast<const T*>(&pixels[i][k]));
#pragma unroll
      for (int j = 0; j < 8; ++j) v[j] += point.weight[k] * pixel.at[j];
    }
    tiles.columns[tile][place + i * kStride * kCells] = {
        round_pair<T>(v[0], v[1]), round_pair<T>(v[2], v[3]), round_pair<T>(v[4], v[5]),
        round_pair<T>(v[6], v[7])};
  };

  Step next{0, first_channel - kTileDepth, first_channel, 0, false};  // its tile is being filled
  next.next(first_channel, end_channel, per_offset_group);
  find_points(next);
  copy_weights(0, 0);
  __syncthreads();
  load_pixels(next);
#pragma unroll
  for (int i = 0; i < kPacks; ++i) blend_pixels(next, 0, i);
  Step after = next;  // its points are being computed
  after.next(first_channel, end_channel, per_offset_group);
  if (num_steps > 1 && after.fresh) find_points(after);

  const int warp_row = warp % 2 * 32, warp_out = warp / 2 * kWarpOuts;
  const int column_row = warp_row + lane % 16, weight_row = warp_out + lane / 16 * 8 + lane % 8;
  float sums[2][kWarpOuts / 8][4] = {};
  for (int step = 0; step < num_steps; ++step) {
    const int tile = step % 2;
    const bool more = step + 1 < num_steps;
    wait_for_copies();
    __syncthreads();  // the tile and the next step's points are ready, the other tile is free
    if (more) {
      next = after;
      after.next(first_channel, end_channel, per_offset_group);
      copy_weights(step + 1, 1 - tile);
      load_pixels(next);
    }
#pragma unroll
    for (int k = 0; k < kCells; k += 2) {  // 16 channels, which are two cells
      uint32_t a[2][4];
#pragma unroll
      for (int m = 0; m < 2; ++m)
        load_matrices(
            a[m], &tiles.columns[tile][cell_of(column_row, k + lane / 16) + m * 16 * kCells]);
#pragma unroll
      for (int n = 0; n < kWarpOuts; n += 16) {
        uint32_t b[4];
        load_matrices(b, &tiles.weights[tile][cell_of(weight_row, k + lane / 8 % 2) + n * kCells]);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          multiply_add<T>(sums[m][n / 8], a[m], b[0], b[1]);
          multiply_add<T>(sums[m][n / 8 + 1], a[m], b[2], b[3]);
        }
      }
      // The branch keeps the compiler from blending too early, before the multiplications.
      if (more && k >= kCells / 2) blend_pixels(next, 1 - tile, k / 2 - 2);
    }
    if (step + 2 < num_steps && after.fresh) find_points(after);
  }

#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int n = 0; n < kWarpOuts / 8; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int64_t row = first_row + warp_row + m * 16 + half * 8 + lane / 4;
        const int out = first_out + warp_out + n * 8 + lane % 4 * 2;
        if (row >= rows || out >= outs) continue;
        const int channel = group * outs + out;
        float pair[2] = {sums[m][n][half * 2], sums[m][n][half * 2 + 1]};
        if (bias) pair[0] += float(bias[channel]), pair[1] += float(bias[channel + 1]);
        *reinterpret_cast<uint32_t*>(output + row * g.out_channels + channel) =
            round_pair<T>(pair[0], pair[1]);
      }
    }
  }
}

// Returns the number of output channels of a block.
inline int fused_outs(const Geometry& g) { return g.group_out_channels() <= 128 ? 128 : 256; }

inline int64_t fused_blocks(const Geometry& g) {
  const int64_t tiles = (g.batch * g.positions() + kTileRows - 1) / kTileRows;
  return tiles * ((g.group_out_channels() + fused_outs(g) - 1) / fused_outs(g)) * g.groups;
}

// Returns whether the kernel can be used: the channels of a step must belong to one weight group
// and one offset group, cells must be aligned and few enough for an int, outputs must come in
// pairs, and the blocks must fill at least half the GPU.
template <typename T, typename Device>
bool can_fuse(const Device& device, const Source<T>& source, const T* weight) {
  const Geometry& g = source.g;
  const int64_t most_cells = std::max(
      g.batch * g.height * g.width * g.channels / 8,
      g.group_out_channels() * g.taps() * g.group_channels() / 8);
  const auto aligned = [](const T* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; };
  return g.group_channels() % kTileDepth == 0 && g.channels / g.offset_groups % kTileDepth == 0 &&
         g.group_out_channels() % 2 == 0 && most_cells < (int64_t(1) << 31) &&
         aligned(source.input) && aligned(weight) &&
         2 * fused_blocks(g) >= device.num_multiprocessors();
}

template <typename T, typename Device>
void fused_forward_pass(
    Device& device, const Source<T>& source, const T* weight, const T* bias, T* output) {
  const auto launch = [&]<int kOuts>() {
    device.launch_blocks(
        fused_blocks(source.g), sizeof(Tiles<kOuts>), fused_forward<T, kOuts>, source, weight, bias,
        output);
  };
  if (fused_outs(source.g) == 128)
    launch.template operator()<128>();
  else
    launch.template operator()<256>();
}

}  // namespace deform_conv
