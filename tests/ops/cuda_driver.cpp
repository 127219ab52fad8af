// Runs the passes of ops/csrc/cuda on the CPU: reads the operands from the files of a folder and
// writes the results beside them. Called by test_cuda_emulated.py.
//
//     cuda_driver FOLDER ORDER    the order of threads: 0 forward, 1 reverse, 2 shuffled
//
// geometry holds the members of Geometry as int64, then the bytes of a chunk, then the type: 0
// float, 1 double, 2 half, 3 bfloat16.
// Arrays lie in channels-last memory. A file that is not there stands for a tensor that is not;
// without upstream, the gradient of the output, there is no backward.
#include "cuda_emulation.h"
// The emulation comes first: the kernels are written in its terms.
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <fstream>
#include <iterator>
#include <string>

#include "../../ops/csrc/cuda/passes.h"

using namespace deform_conv;

// Memory of exactly the size asked for, so that AddressSanitizer sees any access beyond it, and
// full of NaN, so that a value nobody wrote is seen in the results.
template <typename T>
std::shared_ptr<T[]> allocate(int64_t count) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 256, count * sizeof(T))) std::abort();
  std::memset(memory, 0xff, count * sizeof(T));
  return {static_cast<T*>(memory), std::free};
}

// See passes.h for what a device has.
class Device : public emulation::Gpu {
 public:
  int64_t chunk_bytes;

  template <typename T>
  T* buffer(int64_t count) {
    const std::shared_ptr<T[]> memory = allocate<T>(count);
    buffers_.push_back(memory);
    return memory.get();
  }

  template <typename T>
  void zero(T* data, int64_t count) {
    std::memset(data, 0, count * sizeof(T));
  }

  template <typename... Parameters, typename... Arguments>
  void launch(int64_t threads, void (*kernel)(Parameters...), const Arguments&... given) {
    launch_blocks((threads + kThreads - 1) / kThreads, 0, kernel, given...);
  }

  template <typename... Parameters, typename... Arguments>
  void launch_blocks(
      int64_t blocks, int shared_bytes, void (*kernel)(Parameters...), const Arguments&... given) {
    run(blocks, kThreads, shared_bytes, [&] { kernel(given...); });
  }

  bool may_fuse() const { return true; }
  int num_multiprocessors() const { return 1; }

  template <typename A, typename B, typename Out>
  void multiply(
      const Matrix<A>& a, const Matrix<B>& b, const Matrix<Out>& out, const Out* bias = nullptr) {
    require(a.columns == b.rows && a.rows == out.rows && b.columns == out.columns, "wrong product");
    for (int64_t i = 0; i < out.rows; ++i) {
      for (int64_t j = 0; j < out.columns; ++j) {
        Real<Out> sum = bias ? Real<Out>(bias[j]) : Real<Out>(0);
        for (int64_t k = 0; k < a.columns; ++k)
          sum += Real<Out>(a.data[i * a.row_stride + k * a.column_stride]) *
                 Real<Out>(b.data[k * b.row_stride + j * b.column_stride]);
        out.data[i * out.row_stride + j * out.column_stride] = static_cast<Out>(sum);
      }
    }
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

template <typename T>
void run(const std::string& folder, const Geometry& g, Device& device) {
  using R = Real<T>;
  const auto input = read<T>(folder + "input"), weight = read<T>(folder + "weight"),
             bias = read<T>(folder + "bias"), upstream = read<T>(folder + "upstream");
  const auto offset = read<R>(folder + "offset"), mask = read<R>(folder + "mask");
  const auto output = like<T>(g.batch * g.positions() * g.out_channels);
  const Source<T> source{g, input.get(), offset.get(), mask.get()};
  forward_pass<T>(device, source, weight.get(), bias.get(), output.get());
  write(folder + "output", output);
  if (!upstream.data) return;
  const auto grad_input = like<R>(input.count), grad_offset = like<R>(offset.count),
             grad_weight = like<R>(weight.count);
  const auto grad_mask = mask.data ? like<R>(mask.count) : Array<R>{};
  std::fill_n(grad_input.get(), grad_input.count, R(0));
  std::fill_n(grad_weight.get(), grad_weight.count, R(0));
  const Gradients<R> grads{grad_input.get(), grad_offset.get(), grad_weight.get(), grad_mask.get()};
  backward_pass<T>(device, upstream.get(), source, weight.get(), grads);
  write(folder + "grad_input", grad_input);
  write(folder + "grad_offset", grad_offset);
  write(folder + "grad_weight", grad_weight);
  write(folder + "grad_mask", grad_mask);
}

int main(int, char** arguments) {
  const std::string folder = std::string(arguments[1]) + "/";
  const auto numbers = read<int64_t>(folder + "geometry");
  Geometry g;
  std::memcpy(&g, numbers.get(), sizeof(g));
  Device device;
  device.chunk_bytes = numbers.get()[numbers.count - 2];
  device.order = static_cast<emulation::Order>(std::atoi(arguments[2]));
  switch (numbers.get()[numbers.count - 1]) {
    case 0:
      run<float>(folder, g, device);
      break;
    case 1:
      run<double>(folder, g, device);
      break;
    case 2:
      run<torch::headeronly::Half>(folder, g, device);
      break;
    case 3:
      run<torch::headeronly::BFloat16>(folder, g, device);
      break;
  }
}
