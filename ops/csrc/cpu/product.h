// Matrix products of tiles that fit the L2 cache, on the vector or matrix unit of the processor:
//
//     c (rows, 32) = a (rows, depth) b (depth, 32), or c += a b
//
// b is a panel (kernels.h), and c has 32 contiguous columns. If several weight groups share a
// panel, the columns of one group are multiplied at a time. A library's product cannot read panels,
// and would pack the same weights again for every tile.
#pragma once

#include "vector.h"

#if defined(__AMX_BF16__)
#include "amx.h"
#endif

namespace deform_conv {
namespace {

// The factor of one lane: a number or, for bfloat16, a pair of numbers whose products are summed.
using Pair = uint32_t;

template <typename T>
struct ElementOf {
  using type = T;
};
template <>
struct ElementOf<BFloat16> {
  using type = Pair;
};
template <typename T>
using Element = typename ElementOf<T>::type;

template <typename T>
constexpr int64_t kElementDepth = sizeof(Element<T>) / sizeof(T);

#if !defined(__AMX_BF16__)
struct MatrixUnit {};  // there is no unit to configure
#endif

// Depths and rows are padded to multiples of these.
#if defined(__AMX_BF16__)
template <typename T>
constexpr int64_t kDepthStep = sizeof(T) == 2 ? 32 : 1;
template <typename T>
constexpr int64_t kRowStep = sizeof(T) == 2 ? 32 : 1;
#else
template <typename T>
constexpr int64_t kDepthStep = kElementDepth<T>;
template <typename T>
constexpr int64_t kRowStep = 1;
#endif

DEFORM_CONV_INLINE int64_t round_up(int64_t value, int64_t step) {
  return (value + step - 1) / step * step;
}

template <typename T>
int64_t padded_depth(int64_t depth) {
  return round_up(depth, kDepthStep<T>);
}

template <typename T>
int64_t padded_rows(int64_t rows) {
  return round_up(rows, kRowStep<T>);
}

// Returns the index of element (depth, column) in a panel.
template <typename T>
DEFORM_CONV_INLINE int64_t packed_at(int64_t depth, int64_t column) {
  constexpr int64_t d = kElementDepth<T>;
  return (depth / d * kPanel + column) * d + depth % d;
}

DEFORM_CONV_INLINE Vector<float> multiply_add(float a, Vector<float> b, Vector<float> c) {
  return a * b + c;
}
DEFORM_CONV_INLINE Vector<double> multiply_add(double a, Vector<double> b, Vector<double> c) {
  return a * b + c;
}
#if defined(__AVX512BF16__)
DEFORM_CONV_INLINE Vector<float> multiply_add(Pair a, Vector<Pair> b, Vector<float> c) {
  const __m512i pairs = _mm512_set1_epi32(static_cast<int>(a));
  return (Vector<float>)_mm512_dpbf16_ps((__m512)c, (__m512bh)pairs, (__m512bh)b);
}
#endif

template <typename T>
DEFORM_CONV_INLINE Element<T> read_element(const T* from) {
  Element<T> element;
  std::memcpy(&element, from, sizeof(element));
  return element;
}

template <typename T>
DEFORM_CONV_INLINE Vector<Element<T>> read_elements(const T* from) {
  Vector<Element<T>> elements;
  std::memcpy(&elements, from, sizeof(elements));
  return elements;
}

// Multiplies kRows rows by one or two vectors of columns, with all sums in registers. The values in
// c are added last: adding the sums of slices of the depth loses less precision than one long sum.
// With one vector, only the `wanted` lanes of c are written.
template <typename T, int kRows, int kVectors, bool kTransposed>
DEFORM_CONV_INLINE void multiply_tile(
    int64_t depth, const T* a, int64_t lda, const T* b, Real<T>* c, bool add,
    Lanes<Real<T>> wanted = Lanes<Real<T>>()) {
  using R = Real<T>;
  constexpr int64_t d = kElementDepth<T>;
  constexpr int lanes = kLanes<R>;
  Vector<R> sums[kRows][kVectors] = {};
  for (int64_t k = 0; k < depth; k += d, b += kPanel * d) {
    Vector<Element<T>> right[kVectors];
    for (int j = 0; j < kVectors; ++j) right[j] = read_elements(b + j * lanes * d);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const Element<T> factor = read_element(a + (kTransposed ? k * lda + i : i * lda + k));
      for (int j = 0; j < kVectors; ++j) sums[i][j] = multiply_add(factor, right[j], sums[i][j]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kVectors; ++j) {
      R* to = c + i * kPanel + j * lanes;
      const Vector<R> sum = add ? load(to) + sums[i][j] : sums[i][j];
      if constexpr (kVectors == 1)
        store_lanes(to, sum, wanted);
      else
        store(to, sum);
    }
}

// Multiplies kRows rows by the columns [first, last), which are whole pairs of vectors.
template <typename T, int kRows, bool kTransposed>
__attribute__((noinline)) void multiply_rows(
    int64_t depth, const T* a, int64_t lda, const T* b, Real<T>* c, int64_t first, int64_t last,
    bool add) {
  for (int64_t j = first; j < last; j += 2 * kLanes<Real<T>>)
    multiply_tile<T, kRows, 2, kTransposed>(depth, a, lda, b + j * kElementDepth<T>, c + j, add);
}

// Multiplies the last rows, which are fewer than kTileRows.
template <typename T, bool kTransposed, int kRows = kTileRows - 1>
void multiply_rest(
    int64_t rows, int64_t depth, const T* a, int64_t lda, const T* b, Real<T>* c, int64_t first,
    int64_t last, bool add) {
  if constexpr (kRows > 0) {
    if (rows == kRows)
      return multiply_rows<T, kRows, kTransposed>(depth, a, lda, b, c, first, last, add);
    multiply_rest<T, kTransposed, kRows - 1>(rows, depth, a, lda, b, c, first, last, add);
  }
}

// Multiplies all rows by the `wanted` columns of one vector: eight rows at a time, then four, two
// and one.
template <typename T, bool kTransposed, int kRows = 8>
void multiply_vector(
    int64_t rows, int64_t depth, const T* a, int64_t lda, const T* b, Real<T>* c, bool add,
    Lanes<Real<T>> wanted) {
  for (; rows >= kRows; rows -= kRows, a += kTransposed ? kRows : kRows * lda, c += kRows * kPanel)
    multiply_tile<T, kRows, 1, kTransposed>(depth, a, lda, b, c, add, wanted);
  if constexpr (kRows > 1)
    multiply_vector<T, kTransposed, kRows / 2>(rows, depth, a, lda, b, c, add, wanted);
}

constexpr int64_t kSliceBytes = 32 << 10;  // a slice of a panel, which stays in the L1 cache

// Computes the columns [first, last) of c (rows, 32) = a b or, if `add`, of c += a b. Other columns
// of c are not written, and other columns of b have no effect. In memory, a is (rows, depth) or, if
// kTransposed, (depth, rows), with a distance of `lda` from one row of the array to the next.
// bfloat16 is never transposed, and its depth is padded. The thread must have a MatrixUnit.
template <typename T, bool kTransposed = false>
void multiply(
    int64_t rows, int64_t depth, const T* a, int64_t lda, const T* b, Real<T>* c, int64_t first,
    int64_t last, bool add) {
  static_assert(sizeof(T) > 2 || !kTransposed);
#if defined(__AMX_BF16__)
  if constexpr (sizeof(T) == 2)
    if (last - first == kPanel) return multiply_by_matrix_unit(rows, depth, a, lda, b, c, add);
#endif
  constexpr int64_t lanes = kLanes<Real<T>>;
  constexpr int64_t longest = kSliceBytes / (kPanel * sizeof(T));
  for (int64_t k = 0; k < depth; k += longest, b += longest * kPanel) {
    const int64_t slice = depth - k < longest ? depth - k : longest;
    const T* left = a + (kTransposed ? k * lda : k);
    if (first % (2 * lanes) == 0 && last % (2 * lanes) == 0) {
      for (int64_t i = 0; i < rows; i += kTileRows) {
        const T* tile = left + (kTransposed ? i : i * lda);
        Real<T>* to = c + i * kPanel;
        if (rows - i >= kTileRows)
          multiply_rows<T, kTileRows, kTransposed>(slice, tile, lda, b, to, first, last, add || k);
        else
          multiply_rest<T, kTransposed>(rows - i, slice, tile, lda, b, to, first, last, add || k);
      }
    } else {
      for (int64_t j = first / lanes * lanes; j < last; j += lanes)
        multiply_vector<T, kTransposed>(
            rows, slice, left, lda, b + j * kElementDepth<T>, c + j, add || k,
            lanes_between<Real<T>>(first - j, last - j));
    }
  }
}

}  // namespace
}  // namespace deform_conv
