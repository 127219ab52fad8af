// A device on the CPU for the passes of ops/csrc/cuda, and the files of their operands and results.
#pragma once

#include "cuda_emulation.h"
// The emulation must come first, because the kernels use its definitions.
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <array>
#include <fstream>
#include <iterator>
#include <string>

#include "../../ops/csrc/cuda/matrices.h"
#include "../../ops/csrc/cuda/threads.cuh"

using namespace deform_conv;

// Allocates exactly the requested size, so that AddressSanitizer sees any access beyond it, and
// fills the memory with NaN, so that a value that was never written is seen in the results.
template <typename T>
std::shared_ptr<T[]> allocate(int64_t count) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 256, count * sizeof(T))) std::abort();
  std::memset(memory, 0xff, count * sizeof(T));
  return {static_cast<T*>(memory), std::free};
}

// passes.h lists what a device has.
class Device : public emulation::Gpu {
 public:
  int64_t most_bytes;
  int64_t launches = 0;  // of kernels, products and fills

  template <typename T>
  T* buffer(int64_t count) {
    const std::shared_ptr<T[]> memory = allocate<T>(count);
    buffers_.push_back(memory);
    return memory.get();
  }

  template <typename T>
  void zero(T* data, int64_t count) {
    std::memset(data, 0, count * sizeof(T));
    ++launches;
  }

  template <typename... Parameters, typename... Arguments>
  void launch(int64_t threads, void (*kernel)(Parameters...), const Arguments&... given) {
    launch_blocks((threads + kThreads - 1) / kThreads, 0, kernel, given...);
  }

  template <typename... Parameters, typename... Arguments>
  void launch_blocks(
      int64_t blocks, int shared_bytes, void (*kernel)(Parameters...), const Arguments&... given) {
    run(blocks, kThreads, shared_bytes, [&] { kernel(given...); });
    launches += blocks > 0;
  }

  bool may_fuse() const { return true; }
  int num_multiprocessors() const { return 1; }

  // Does what cuBLAS does with the same sizes, all of whose matrices are stored by columns.
  template <typename T, typename Out>
  void multiply(
      int64_t count, const Matrices<const T>& a, const Matrices<const T>& b,
      const Matrices<Out>& out, bool adds) {
    require(a.columns == b.rows && a.rows == out.rows && b.columns == out.columns, "wrong product");
    const Blas blas = blas_of(a, b, out);
    const auto [m, n, k] = std::array{blas.m, blas.n, blas.k};
    require(blas.first.leading >= (blas.first.transposed ? k : m), "cuBLAS refuses the first");
    require(blas.second.leading >= (blas.second.transposed ? n : k), "cuBLAS refuses the second");
    require(blas.leading >= m, "cuBLAS refuses the result");
    const auto at = [](const Blas::Operand& operand, int64_t row, int64_t column) {
      return operand.transposed ? column + row * operand.leading : row + column * operand.leading;
    };
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t row = 0; row < m; ++row) {
        for (int64_t column = 0; column < n; ++column) {
          Out& result = out.data[i * out.stride + row + column * blas.leading];
          Real<Out> sum = adds ? Real<Out>(result) : Real<Out>(0);
          for (int64_t l = 0; l < k; ++l)
            sum += Real<Out>(b.data[i * b.stride + at(blas.first, row, l)]) *
                   Real<Out>(a.data[i * a.stride + at(blas.second, l, column)]);
          result = static_cast<Out>(sum);
        }
      }
    }
    ++launches;
  }

 private:
  std::vector<std::shared_ptr<void>> buffers_;
};

template <typename T>
struct Array {
  std::shared_ptr<T[]> data;
  int64_t count = 0;

  T* get() const { return data.get(); }
};

template <typename T>
Array<T> read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return {};
  const std::string bytes{std::istreambuf_iterator<char>(file), {}};
  const int64_t count = bytes.size() / sizeof(T);
  Array<T> array{allocate<T>(count), count};
  std::memcpy(array.get(), bytes.data(), bytes.size());
  return array;
}

template <typename T>
void write(const std::string& path, const Array<T>& array) {
  if (!array.data) return;
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(array.get()), array.count * sizeof(T));
}

template <typename T>
Array<T> like(int64_t count) {
  return {allocate<T>(count), count};
}

// Calls `function` with a value of the type: 0 float, 1 double, 2 half, 3 bfloat16.
template <typename Function>
void with_type(int64_t type, const Function& function) {
  switch (type) {
    case 0:
      return function(float());
    case 1:
      return function(double());
    case 2:
      return function(torch::headeronly::Half());
    case 3:
      return function(torch::headeronly::BFloat16());
  }
}
