// Runs the passes of the convolution on the CPU: reads the operands from the files of a folder and
// writes the results beside them. Called by test_cuda_emulated.py.
//
//     cuda_driver FOLDER ORDER    the order of threads: 0 forward, 1 reverse, 2 shuffled
//
// The file `geometry` holds the members of Geometry as int64, then the number of elements between
// the samples of two positions in offset and in mask, the most bytes of a chunk, and the type: 0
// float, 1 double, 2 half, 3 bfloat16. Arrays are channels-last. If the file of an optional tensor
// is missing, there is no such tensor; without `upstream`, the gradient of the output, only the
// forward runs; without `input`, nothing does. Gradients of input and weight have the features'
// type if there is a single chunk. The file `launches` gets the launches of the forward and of the
// backward, the file `chunks` the rows of each chunk of the backward.
#include "cuda_device.h"
// The emulation must come first, because the kernels use its definitions.
#include <utility>

#include "../../ops/csrc/cuda/passes.h"

template <typename T, typename Grad>
void run_backward(
    const std::string& folder, const Source<T>& source, const T* weight, const T* upstream,
    Device& device) {
  using R = Real<T>;
  const Geometry& g = source.g;
  const int64_t samples = g.batch * g.positions() * g.offset_groups * g.taps();
  const auto grad_input = like<Grad>(g.batch * g.height * g.width * g.channels),
             grad_weight = like<Grad>(g.out_channels * g.taps() * g.group_channels());
  const auto grad_offset = like<R>(2 * samples),
             grad_mask = source.mask ? like<R>(samples) : Array<R>{};
  const Gradients<R, Grad> grads{
      grad_input.get(), grad_offset.get(), grad_weight.get(), grad_mask.get()};
  backward_pass(device, upstream, source, weight, grads);
  write(folder + "grad_input", grad_input);
  write(folder + "grad_offset", grad_offset);
  write(folder + "grad_weight", grad_weight);
  write(folder + "grad_mask", grad_mask);
}

// Writes the number of rows of each chunk of the backward.
template <typename T>
void write_chunks(const std::string& folder, const Geometry& g, int64_t most_bytes) {
  const std::vector<Chunk> chunks = backward_chunks<T>(g, most_bytes);
  const auto rows = like<int64_t>(chunks.size());
  for (size_t i = 0; i < chunks.size(); ++i) rows.get()[i] = chunks[i].rows;
  write(folder + "chunks", rows);
}

template <typename T>
void run(const std::string& folder, const Geometry& g, int64_t spare, Device& device) {
  using R = Real<T>;
  write_chunks<T>(folder, g, device.most_bytes);
  const auto input = read<T>(folder + "input"), weight = read<T>(folder + "weight"),
             bias = read<T>(folder + "bias"), upstream = read<T>(folder + "upstream");
  if (!input.data) return;
  const auto offset = read<R>(folder + "offset"), mask = read<R>(folder + "mask");
  const auto output = like<T>(g.batch * g.positions() * g.out_channels);
  const auto launches = like<int64_t>(2);
  const int64_t samples = g.offset_groups * g.taps();  // of a position
  const Source<T> source{g,          input.get(),         offset.get(),
                         mask.get(), 2 * samples + spare, samples + spare};
  forward_pass<T>(device, source, weight.get(), bias.get(), output.get());
  write(folder + "output", output);
  launches.get()[0] = std::exchange(device.launches, 0);
  if (upstream.data && backward_chunks<T>(g, device.most_bytes).size() > 1)
    run_backward<T, R>(folder, source, weight.get(), upstream.get(), device);
  else if (upstream.data)
    run_backward<T, T>(folder, source, weight.get(), upstream.get(), device);
  launches.get()[1] = device.launches;
  write(folder + "launches", launches);
}

int main(int, char** arguments) {
  const std::string folder = std::string(arguments[1]) + "/";
  const auto numbers = read<int64_t>(folder + "geometry");
  Geometry g;
  std::memcpy(&g, numbers.get(), sizeof(g));
  Device device;
  const int64_t spare = numbers.get()[numbers.count - 3];
  device.most_bytes = numbers.get()[numbers.count - 2];
  device.order = static_cast<emulation::Order>(std::atoi(arguments[2]));
  with_type(numbers.get()[numbers.count - 1], [&](auto zero) {
    run<decltype(zero)>(folder, g, spare, device);
  });
}
