// Products of matrices by cuBLAS, called directly: one call multiplies the matrices of all weight
// groups, 16-bit factors can have a float32 result, and the precision of float32 is chosen for each
// call, where `aten::mm` follows a global setting.
//
// libtorch_cuda is linked against cuBLAS, so its functions are found wherever this library loads.
// They are declared here, because not every wheel of CUDA that can compile this file has cuBLAS'
// headers. Names and values are those of cublas_api.h, the same in CUDA 12 and 13.
#pragma once

#include <library_types.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <type_traits>

#include "matrices.h"

extern "C" {
int cublasSetMathMode(void* handle, int mode);
int cublasGemmEx(
    void* handle, int transa, int transb, int m, int n, int k, const void* alpha, const void* A,
    cudaDataType_t Atype, int lda, const void* B, cudaDataType_t Btype, int ldb, const void* beta,
    void* C, cudaDataType_t Ctype, int ldc, int computeType, int algo);
int cublasGemmStridedBatchedEx(
    void* handle, int transa, int transb, int m, int n, int k, const void* alpha, const void* A,
    cudaDataType_t Atype, int lda, long long strideA, const void* B, cudaDataType_t Btype, int ldb,
    long long strideB, const void* beta, void* C, cudaDataType_t Ctype, int ldc, long long strideC,
    int batchCount, int computeType, int algo);
}

namespace deform_conv {
namespace {

// Sums of 16-bit products stay in float32 even if cuBLAS divides a sum among several blocks.
constexpr int CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION = 16;
constexpr int CUBLAS_COMPUTE_32F = 68, CUBLAS_COMPUTE_64F = 70, CUBLAS_COMPUTE_32F_FAST_TF32 = 77;
constexpr int CUBLAS_GEMM_DEFAULT = -1;

template <typename T>
constexpr cudaDataType_t cuda_type() {
  if constexpr (std::is_same_v<T, double>)
    return CUDA_R_64F;
  else if constexpr (std::is_same_v<T, float>)
    return CUDA_R_32F;
  else if constexpr (std::is_same_v<T, torch::headeronly::Half>)
    return CUDA_R_16F;
  else {
    static_assert(std::is_same_v<T, torch::headeronly::BFloat16>);
    return CUDA_R_16BF;
  }
}

// Computes out = a b, or out += a b, for `count` matrices each. PyTorch sets the handle's math mode
// itself whenever it takes the handle.
template <typename T, typename Out>
void multiply_matrices(
    void* handle, int64_t count, const Matrices<const T>& a, const Matrices<const T>& b,
    const Matrices<Out>& out, bool adds, bool allow_tf32) {
  using Scalar = std::conditional_t<std::is_same_v<T, double>, double, float>;
  const Blas blas = blas_of(a, b, out);
  const Scalar alpha = 1, beta = adds ? 1 : 0;
  int compute = CUBLAS_COMPUTE_32F;
  if (std::is_same_v<T, double>) compute = CUBLAS_COMPUTE_64F;
  if (std::is_same_v<T, float> && allow_tf32) compute = CUBLAS_COMPUTE_32F_FAST_TF32;
  int status = cublasSetMathMode(handle, CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION);
  if (!status && count == 1)
    status = cublasGemmEx(
        handle, blas.first.transposed, blas.second.transposed, blas.m, blas.n, blas.k, &alpha,
        b.data, cuda_type<T>(), blas.first.leading, a.data, cuda_type<T>(), blas.second.leading,
        &beta, out.data, cuda_type<Out>(), blas.leading, compute, CUBLAS_GEMM_DEFAULT);
  else if (!status)
    status = cublasGemmStridedBatchedEx(
        handle, blas.first.transposed, blas.second.transposed, blas.m, blas.n, blas.k, &alpha,
        b.data, cuda_type<T>(), blas.first.leading, b.stride, a.data, cuda_type<T>(),
        blas.second.leading, a.stride, &beta, out.data, cuda_type<Out>(), blas.leading, out.stride,
        count, compute, CUBLAS_GEMM_DEFAULT);
  STD_TORCH_CHECK(
      status == 0, "deform_conv2d: cuBLAS failed with status ", status, " for ", count,
      " products of (", out.rows, ", ", blas.k, ") by (", blas.k, ", ", out.columns, ")");
}

}  // namespace
}  // namespace deform_conv
