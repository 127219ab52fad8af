// The product of bfloat16 matrices on the matrix unit (AMX). Four of its eight tiles hold the sums
// of 32 rows and 32 columns, and each step adds 32 products to every sum. A tile has 16 rows of 64
// bytes.
#pragma once

#include "vector.h"

#if defined(DEFORM_CONV_EMULATE_AMX)
#include DEFORM_CONV_EMULATE_AMX
#endif

namespace deform_conv {
namespace {

constexpr int64_t kAmxRows = 32;
constexpr int64_t kAmxDepth = 32;  // numbers in a row of a tile

// Configures the shapes of the thread's tiles, and releases the tiles when it is destroyed:
// otherwise the operating system would save them at every context switch.
struct MatrixUnit {
  MatrixUnit() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } shapes;
    for (int tile = 0; tile < 8; ++tile) shapes.row_bytes[tile] = 64, shapes.rows[tile] = 16;
    asm volatile("" ::"r"(&shapes) : "memory");  // the intrinsic declares only a part of its input
    _tile_loadconfig(&shapes);
  }
  ~MatrixUnit() { _tile_release(); }
};

// Computes c = a b or, if `add`, c += a b, for c (rows, 32) and a (rows, depth), whose rows and
// depth are multiples of 32. The thread must have a MatrixUnit.
void multiply_by_matrix_unit(
    int64_t rows, int64_t depth, const BFloat16* a, int64_t lda, const BFloat16* b, float* c,
    bool add) {
  const int64_t stride = lda * sizeof(BFloat16), row = kPanel * sizeof(float);
  for (int64_t i = 0; i < rows; i += kAmxRows, a += kAmxRows * lda, c += kAmxRows * kPanel) {
    float* corner[4] = {c, c + 16, c + 16 * kPanel, c + 16 * kPanel + 16};
    if (add) {
      _tile_loadd(0, corner[0], row);
      _tile_loadd(1, corner[1], row);
      _tile_loadd(2, corner[2], row);
      _tile_loadd(3, corner[3], row);
    } else {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    }
    for (int64_t k = 0; k < depth; k += kAmxDepth) {
      const BFloat16* right = b + k * kPanel;  // 16 rows of 32 pairs
      _tile_loadd(4, a + k, stride);
      _tile_loadd(5, a + 16 * lda + k, stride);
      _tile_loadd(6, right, row);
      _tile_loadd(7, right + 32, row);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, corner[0], row);
    _tile_stored(1, corner[1], row);
    _tile_stored(2, corner[2], row);
    _tile_stored(3, corner[3], row);
  }
}

}  // namespace
}  // namespace deform_conv
