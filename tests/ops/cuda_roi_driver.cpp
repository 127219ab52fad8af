// Runs the passes of RoI pooling on the CPU: reads the operands from the files of a folder and
// writes the results beside them. Called by test_cuda_roi_emulated.py.
//
//     cuda_roi_driver FOLDER ORDER    the order of threads: 0 forward, 1 reverse, 2 shuffled
//
// The file `geometry` holds the integer members of RoiGeometry as int64, then the type as in
// cuda_device.h; the file `scales` holds the other two members as double. input, upstream, output
// and grad_input are channels-last.
#include "cuda_device.h"
// The emulation must come first, because the kernels use its definitions.
#include "../../ops/csrc/cuda/roi_passes.h"

template <typename T>
void run(const std::string& folder, const RoiGeometry& g, Device& device) {
  using R = Real<T>;
  const auto input = read<T>(folder + "input"), upstream = read<T>(folder + "upstream");
  const auto boxes = read<R>(folder + "boxes"), offset = read<R>(folder + "offset"),
             mask = read<R>(folder + "mask");
  const auto output = like<T>(g.num_rois * g.bins() * g.channels);
  const RoiSource<T> source{g, input.get(), boxes.get(), offset.get(), mask.get()};
  roi_forward_pass<T>(device, source, output.get());
  write(folder + "output", output);
  const auto grad_input = like<R>(input.count);
  const auto grad_offset = offset.data ? like<R>(offset.count) : Array<R>{};
  const auto grad_mask = mask.data ? like<R>(mask.count) : Array<R>{};
  roi_backward_pass<T>(
      device, source, upstream.get(), grad_input.get(), grad_offset.get(), grad_mask.get());
  write(folder + "grad_input", grad_input);
  write(folder + "grad_offset", grad_offset);
  write(folder + "grad_mask", grad_mask);
}

int main(int, char** arguments) {
  const std::string folder = std::string(arguments[1]) + "/";
  const auto numbers = read<int64_t>(folder + "geometry");
  const auto scales = read<double>(folder + "scales");
  RoiGeometry g;
  std::memcpy(&g, numbers.get(), sizeof(g) - 2 * sizeof(double));
  g.spatial_scale = scales.get()[0], g.gamma = scales.get()[1];
  Device device;
  device.order = static_cast<emulation::Order>(std::atoi(arguments[2]));
  with_type(
      numbers.get()[numbers.count - 1], [&](auto zero) { run<decltype(zero)>(folder, g, device); });
}
