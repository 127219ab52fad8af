// Runs the passes of the convolution on the CPU: reads the operands from the files of a folder and
// writes the results beside them. Called by test_cuda_emulated.py.
//
//     cuda_driver FOLDER ORDER    the order of threads: 0 forward, 1 reverse, 2 shuffled
//
// The file `geometry` holds the members of Geometry as int64, then the bytes of a chunk, then the
// type: 0 float, 1 double, 2 half, 3 bfloat16. Arrays are channels-last. If the file of an optional
// tensor is missing, there is no such tensor; without `upstream`, the gradient of the output, only
// the forward runs.
#include "cuda_device.h"
// The emulation must come first, because the kernels use its definitions.
#include "../../ops/csrc/cuda/passes.h"

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
  with_type(
      numbers.get()[numbers.count - 1], [&](auto zero) { run<decltype(zero)>(folder, g, device); });
}
