// Shared memory, and the instructions of sm_80 and later for which CUDA has no function. The tests
// replace this file by functions in plain C++ (tests/ops/cuda_emulation.h).
#pragma once

#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <type_traits>

namespace deform_conv {

// Returns the shared memory of the block; the launch sets its size.
__device__ __forceinline__ void* shared_memory() {
  extern __shared__ __align__(128) unsigned char memory[];
  return memory;
}

__device__ __forceinline__ uint32_t shared_address(const void* memory) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(memory));
}

// Starts to copy 16 bytes from global to shared memory.
__device__ __forceinline__ void copy_async(uint4* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from)
               : "memory");
}

// Waits for all copies that this thread has started.
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

// Loads four 8 x 8 matrices of 16-bit elements. Lane 8 i + r passes the address of row r of matrix
// i. Every lane receives in to[i] two elements of row lane / 4 of matrix i, 2 (lane % 4) and the
// next.
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], const uint4* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
}

// Rounds two numbers to T and packs them into one word, the first in its lower half.
template <typename T>
__device__ __forceinline__ uint32_t round_pair(float first, float second) {
  uint32_t pair;
  if constexpr (std::is_same_v<T, torch::headeronly::Half>)
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  else
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
}

// Computes sum (16 x 8) += a (16 x 16) b (16 x 8) with the whole warp. With r = lane / 4 and
// c = 2 (lane % 4), a lane holds these elements, each together with the next one along k (a, b) or
// along the columns (sum):
//     a[0] (r, k = c)   a[1] (r + 8, k = c)   a[2] (r, k = c + 8)   a[3] (r + 8, k = c + 8)
//     b0 (k = c, column r)   b1 (k = c + 8, column r)   sum[0] (r, c)   sum[2] (r + 8, c)
template <typename T>
__device__ __forceinline__ void multiply_add(
    float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<T, torch::headeronly::Half>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace deform_conv
