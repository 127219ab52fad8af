// Building blocks of all kernels, whose threads process channels in parallel, V at a time.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../bilinear.h"
#if defined(__CUDACC__)
#include "instructions.cuh"
#endif

namespace deform_conv {

template <typename T>
using Real = std::conditional_t<std::is_same_v<T, double>, double, float>;

constexpr int kThreads = 256;  // per block

__device__ __forceinline__ int64_t thread_number() {
  return int64_t(blockIdx.x) * kThreads + threadIdx.x;
}

// V neighbouring channels, moved by one instruction.
template <typename T, int V>
struct alignas(sizeof(T) * V) Pack {
  T at[V];
};

template <int V, typename T>
__device__ __forceinline__ Pack<Real<T>, V> load(const T* from) {
  const Pack<T, V> pack = *reinterpret_cast<const Pack<T, V>*>(from);
  Pack<Real<T>, V> values;
#pragma unroll
  for (int j = 0; j < V; ++j) values.at[j] = static_cast<Real<T>>(pack.at[j]);
  return values;
}

template <int V, typename T>
__device__ __forceinline__ void store(T* to, const Pack<Real<T>, V>& values) {
  Pack<T, V> pack;
#pragma unroll
  for (int j = 0; j < V; ++j) pack.at[j] = static_cast<T>(values.at[j]);
  if constexpr (sizeof(pack) == 16)  // an intrinsic, because the compiler splits packs of Half
    __stcg(reinterpret_cast<uint4*>(to), *reinterpret_cast<const uint4*>(&pack));
  else
    *reinterpret_cast<Pack<T, V>*>(to) = pack;
}

// Returns to every lane the sum over `lanes` neighbouring lanes, in a fixed order.
template <typename R>
__device__ __forceinline__ R sum_over_lanes(R value, int lanes) {
  const unsigned first = threadIdx.x % 32 / lanes * lanes;
  const unsigned members = (0xffffffffu >> (32 - lanes)) << first;
  for (int step = lanes / 2; step > 0; step /= 2) value += __shfl_xor_sync(members, value, step);
  return value;
}

}  // namespace deform_conv
