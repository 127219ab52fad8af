// The instructions of the matrix unit in plain C++, as Intel's instruction set reference defines
// them, for processors without one. -DDEFORM_CONV_EMULATE_AMX='"<this file>"' puts them in place of
// the compiler's intrinsics. A wrong use stops the program.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

struct EmulatedUnit {
  bool configured = false;
  uint8_t rows[8];
  uint16_t row_bytes[8];
  uint8_t tile[8][16][64];
};
thread_local EmulatedUnit emulated_unit;

inline void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "emulated matrix unit: %s\n", what);
  std::abort();
}

inline void emulate_loadconfig(const void* memory) {
  const uint8_t* bytes = static_cast<const uint8_t*>(memory);
  require(bytes[0] == 1 && bytes[1] == 0, "palette 1 and start row 0 are expected");
  for (int i = 2; i < 16; ++i) require(bytes[i] == 0, "reserved bytes must be zero");
  for (int i = 0; i < 16; ++i) {
    uint16_t row_bytes;
    std::memcpy(&row_bytes, bytes + 16 + 2 * i, 2);
    const uint8_t rows = bytes[48 + i];
    require(i < 8 ? row_bytes <= 64 && rows <= 16 : row_bytes == 0 && rows == 0, "tile shape");
    if (i < 8) emulated_unit.row_bytes[i] = row_bytes, emulated_unit.rows[i] = rows;
  }
  std::memset(emulated_unit.tile, 0, sizeof(emulated_unit.tile));
  emulated_unit.configured = true;
}

inline void emulate_release() { emulated_unit.configured = false; }

inline void emulate_zero(int tile) {
  require(emulated_unit.configured, "no configuration");
  std::memset(emulated_unit.tile[tile], 0, sizeof(emulated_unit.tile[tile]));
}

inline void emulate_loadd(int tile, const void* memory, int64_t stride) {
  emulate_zero(tile);
  for (int row = 0; row < emulated_unit.rows[tile]; ++row)
    std::memcpy(
        emulated_unit.tile[tile][row], static_cast<const char*>(memory) + row * stride,
        emulated_unit.row_bytes[tile]);
}

inline void emulate_stored(int tile, void* memory, int64_t stride) {
  require(emulated_unit.configured, "no configuration");
  for (int row = 0; row < emulated_unit.rows[tile]; ++row)
    std::memcpy(
        static_cast<char*>(memory) + row * stride, emulated_unit.tile[tile][row],
        emulated_unit.row_bytes[tile]);
}

// c (m, n) += a (m, k, 2) b (k, n, 2)
inline void emulate_dpbf16ps(int c, int a, int b) {
  EmulatedUnit& unit = emulated_unit;
  require(unit.configured, "no configuration");
  require(
      unit.rows[c] == unit.rows[a] && unit.row_bytes[c] == unit.row_bytes[b] &&
          unit.row_bytes[a] == 4 * unit.rows[b],
      "tiles that do not fit together");
  const auto number = [](const uint8_t* bytes) {
    uint32_t bits = 0;
    std::memcpy(reinterpret_cast<uint8_t*>(&bits) + 2, bytes, 2);
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
  };
  for (int m = 0; m < unit.rows[c]; ++m)
    for (int n = 0; n < unit.row_bytes[c] / 4; ++n) {
      float sum;
      std::memcpy(&sum, unit.tile[c][m] + 4 * n, 4);
      for (int k = 0; k < unit.rows[b]; ++k)
        for (int i = 0; i < 2; ++i)
          sum = std::fma(
              number(unit.tile[a][m] + 4 * k + 2 * i), number(unit.tile[b][k] + 4 * n + 2 * i),
              sum);
      std::memcpy(unit.tile[c][m] + 4 * n, &sum, 4);
    }
}

}  // namespace

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig emulate_loadconfig
#define _tile_release emulate_release
#define _tile_zero emulate_zero
#define _tile_loadd emulate_loadd
#define _tile_stored emulate_stored
#define _tile_dpbf16ps emulate_dpbf16ps
