// Vectors of the processor that a file is compiled for, from the compiler's vector extension: one
// source for SSE, AVX2, AVX512 and NEON. Everything has internal linkage; geometry.h says why.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#include "kernels.h"

#define DEFORM_CONV_INLINE inline __attribute__((always_inline))

namespace deform_conv {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kTileRows = 12;  // rows of a product in registers, with two vectors of columns
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kTileRows = 6;
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16;
constexpr int kTileRows = 12;
#else
constexpr int kVectorBytes = 16;
constexpr int kTileRows = 6;
#endif

template <typename E>
constexpr int kLanes = kVectorBytes / sizeof(E);

template <typename E>
struct VectorOf {
  typedef E type __attribute__((vector_size(kVectorBytes)));
};
template <typename E>
using Vector = typename VectorOf<E>::type;

DEFORM_CONV_INLINE Vector<float> load(const float* from) {
  Vector<float> vector;
  std::memcpy(&vector, from, sizeof(vector));
  return vector;
}
DEFORM_CONV_INLINE Vector<double> load(const double* from) {
  Vector<double> vector;
  std::memcpy(&vector, from, sizeof(vector));
  return vector;
}

DEFORM_CONV_INLINE void store(float* to, Vector<float> vector) {
  std::memcpy(to, &vector, sizeof(vector));
}
DEFORM_CONV_INLINE void store(double* to, Vector<double> vector) {
  std::memcpy(to, &vector, sizeof(vector));
}

// ---- some lanes of a vector ------------------------------------------------------------------

template <typename R>
using Lanes = Vector<std::conditional_t<sizeof(R) == 4, int32_t, int64_t>>;  // all bits set or none

template <typename R>
DEFORM_CONV_INLINE Lanes<R> lanes_between(int64_t first, int64_t last) {
  Lanes<R> lanes;
  for (int i = 0; i < kLanes<R>; ++i) lanes[i] = -(first <= i && i < last);
  return lanes;
}

template <typename R>
DEFORM_CONV_INLINE void store_lanes(R* to, Vector<R> vector, Lanes<R> lanes) {
  store(to, lanes ? vector : load(to));
}

// ---- single numbers, and vectors of bfloat16 ------------------------------------------------

template <typename R>
DEFORM_CONV_INLINE R real(R value) {
  return value;
}

DEFORM_CONV_INLINE float real(BFloat16 value) {
  const uint32_t bits = uint32_t(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}

template <typename T>
DEFORM_CONV_INLINE T rounded(Real<T> value) {
  if constexpr (sizeof(T) == sizeof(value)) {
    return value;
  } else {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if (value != value) return {uint16_t(bits >> 16 | 0x40)};     // NaN stays NaN
    return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};  // to nearest, ties to even
  }
}

#if defined(__AVX512BF16__)
DEFORM_CONV_INLINE Vector<float> load(const BFloat16* from) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return (Vector<float>)_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16);
}

DEFORM_CONV_INLINE void store(BFloat16* to, Vector<float> vector) {
  const __m256bh rounded = _mm512_cvtneps_pbh((__m512)vector);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)rounded);
}

// to (32, 2): the pairs of even[c] and odd[c]
DEFORM_CONV_INLINE void store_pairs(BFloat16* to, const float* even, const float* odd) {
  for (int c = 0; c < kPanel; c += 16) {
    const __m512i first =
        _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)load(even + c)));
    const __m512i second =
        _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)load(odd + c)));
    _mm512_storeu_si512(to + 2 * c, _mm512_or_si512(first, _mm512_slli_epi32(second, 16)));
  }
}

// Splits values into high + low. Stores the high parts at `to`, the low ones at `to + distance`.
DEFORM_CONV_INLINE void store_parts(
    const float* values, int64_t count, BFloat16* to, int64_t distance) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    const Vector<float> value = load(values + i);
    store(to + i, value);
    store(to + i + distance, value - load(to + i));
  }
  for (; i < count; ++i) {
    to[i] = rounded<BFloat16>(values[i]);
    to[i + distance] = rounded<BFloat16>(values[i] - real(to[i]));
  }
}
#endif

// Prefetches the cache lines of `count` elements.
template <typename E>
DEFORM_CONV_INLINE void fetch(const E* from, int64_t count) {
  for (int64_t i = 0; i < count; i += 64 / sizeof(E)) __builtin_prefetch(from + i);
}

// ---- sums over the lanes --------------------------------------------------------------------

#if defined(__has_builtin) && __has_builtin(__builtin_shufflevector)
template <typename R, int... I>
DEFORM_CONV_INLINE void sum_lanes(
    const Vector<R> (&v)[4], R (&sums)[4], std::integer_sequence<int, I...>) {
  constexpr int n = sizeof...(I), half = n / 2, quarter = n / 4;
  // Adds the halves of each vector, two vectors at a time; then the quarters, four vectors at a
  // time; then the lanes of each quarter, in log2 steps.
  const Vector<R> v01 = __builtin_shufflevector(v[0], v[1], (I < half ? I : n + I - half)...) +
                        __builtin_shufflevector(v[0], v[1], (I < half ? I + half : n + I)...);
  const Vector<R> v23 = __builtin_shufflevector(v[2], v[3], (I < half ? I : n + I - half)...) +
                        __builtin_shufflevector(v[2], v[3], (I < half ? I + half : n + I)...);
  Vector<R> all =
      __builtin_shufflevector(v01, v23, (I / quarter * half + I % quarter)...) +
      __builtin_shufflevector(v01, v23, (I / quarter * half + I % quarter + quarter)...);
  if constexpr (quarter >= 4) all += __builtin_shufflevector(all, all, (I ^ 2)...);
  if constexpr (quarter >= 2) all += __builtin_shufflevector(all, all, (I ^ 1)...);
  for (int k = 0; k < 4; ++k) sums[k] = all[k * quarter];
}
#else  // before GCC 12
#define DEFORM_CONV_NO_SHUFFLE
#endif

// sums[k] = the sum of the lanes of v[k]
template <typename R>
DEFORM_CONV_INLINE void sum_lanes(const Vector<R> (&v)[4], R (&sums)[4]) {
#if !defined(DEFORM_CONV_NO_SHUFFLE)
  if constexpr (kLanes<R> >= 4)
    return sum_lanes<R>(v, sums, std::make_integer_sequence<int, kLanes<R>>());
#endif
  for (int k = 0; k < 4; ++k) {
    sums[k] = 0;
    for (int i = 0; i < kLanes<R>; ++i) sums[k] += v[k][i];
  }
}

// The memory of a task, aligned to cache lines.
template <typename E>
class Buffer {
 public:
  explicit Buffer(int64_t size)
      : elements_(static_cast<E*>(::operator new(size * sizeof(E), std::align_val_t{64}))),
        size_(size) {}
  Buffer(const Buffer&) = delete;
  ~Buffer() { ::operator delete(elements_, std::align_val_t{64}); }

  E* data() { return elements_; }
  void zero() { std::memset(elements_, 0, size_ * sizeof(E)); }

 private:
  E* elements_;
  int64_t size_;
};

}  // namespace
}  // namespace deform_conv
