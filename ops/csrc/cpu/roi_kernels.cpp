// Deformable RoI pooling with the vectors of one processor. Channels are contiguous in memory: the
// pixels and weights of a bin (roi.h) are computed once for all channels, and loops over channels
// use vectors. build.py compiles this file once for each capability.
#include "roi_kernels.h"

#include <new>

#include "vector.h"

namespace deform_conv {
namespace {

// ---- what a bin reads -----------------------------------------------------------------------

// A row or a column of pixels that a bin reads.
template <typename R>
struct Line {
  int64_t at;       // its distance from the image's first pixel, in elements
  R weight, slope;  // in the bin's sum, and in its derivative with respect to the bin's position
};

template <typename R>
struct Lines {
  Line<R>* first;
  int64_t count;

  const Line<R>* begin() const { return first; }
  const Line<R>* end() const { return first + count; }
};

template <typename R>
struct Bin {
  int64_t number;
  Lines<R> rows, columns;
  R share;   // the share of a sample in the average
  R factor;  // the share times the mask
};

// Finds the pixels that the bins of a RoI read, and their weights. Without offsets, all bins of one
// row read the same rows of pixels, and all bins of one column the same columns.
template <typename R>
class Bins {
 public:
  explicit Bins(const RoiSamples<R>& samples)
      : samples_(samples),
        g_(samples.g),
        rows_size_(most_lines(g_.height)),
        columns_size_(most_lines(g_.width)),
        rows_(rows_size_),
        columns_(g_.out_width * columns_size_),
        counts_(g_.out_width) {}

  // Calls `function` with every bin of a RoI.
  template <typename Function>
  DEFORM_CONV_INLINE void each(int64_t number, const Function& function) {
    const Roi<R> roi = roi_of(g_, samples_.boxes + 5 * number);
    const R* offset = samples_.offset ? samples_.offset + 2 * number * g_.bins() : nullptr;
    const R* mask = samples_.mask ? samples_.mask + number * g_.bins() : nullptr;
    Bin<R> bin{0, {rows_.data(), 0}, {}, roi.share(), roi.share()};
    for (int64_t y = 0; y < g_.out_height; ++y)
      for (int64_t x = 0; x < g_.out_width; ++x, ++bin.number) {
        Line<R>* const columns = columns_.data() + x * columns_size_;
        if (offset || x == 0)
          bin.rows.count = find(
              roi.y, y, offset ? offset[g_.bins() + bin.number] : R(0), g_.height,
              g_.width * g_.channels, rows_.data());
        if (offset || y == 0)
          counts_.data()[x] =
              find(roi.x, x, offset ? offset[bin.number] : R(0), g_.width, g_.channels, columns);
        bin.columns = {columns, counts_.data()[x]};
        if (mask) bin.factor = bin.share * mask[bin.number];
        function(bin);
      }
  }

 private:
  // Returns the most lines that a bin reads along an axis of `size` pixels, two for each sample.
  // Without a sampling ratio, samples are at least half a pixel apart.
  int64_t most_lines(int64_t size) const {
    const int64_t samples = g_.sampling_ratio > size ? g_.sampling_ratio : 2 * size + 8;
    return 2 * samples;
  }

  // Writes the lines that a bin reads along one axis, which are `stride` elements apart, and
  // returns their number.
  int64_t find(
      const RoiAxis<R>& axis, int64_t bin, R offset, int64_t size, int64_t stride, Line<R>* lines) {
    const R start = bin_start(g_, axis, bin, offset);
    const SampleRange range = samples_near(axis, start, size);
    Line<R>* end = lines;
    for (int i = range.first; i < range.last; ++i) {
      const AxisSample<R> sample = sample_axis(sample_place(axis, start, i), size);
      if (!sample.inside) continue;
      const int64_t low = sample.low * stride;
      add(low, 1 - sample.fraction, sample.moves ? R(-1) : R(0), lines, end);
      if (sample.moves) add(low + stride, sample.fraction, R(1), lines, end);
    }
    return end - lines;
  }

  // Adds a weight to the line at `at`: one of the last two, because neighbouring samples share
  // lines, or a new one.
  static void add(int64_t at, R weight, R slope, Line<R>* lines, Line<R>*& end) {
    for (Line<R>* line = end; line > lines && line > end - 2;)
      if ((--line)->at == at) {
        line->weight += weight, line->slope += slope;
        return;
      }
    *end++ = {at, weight, slope};
  }

  const RoiSamples<R>& samples_;
  const RoiGeometry& g_;
  int64_t rows_size_, columns_size_;
  Buffer<Line<R>> rows_, columns_;
  Buffer<int64_t> counts_;
};

// Transposes `from` (rows, columns) into `to` (columns, rows), a cache line of columns at a time.
template <typename R>
void transpose(const R* from, int64_t rows, int64_t columns, R* to) {
  constexpr int64_t step = 64 / sizeof(R);
  for (int64_t first = 0; first < columns; first += step) {
    const int64_t last = first + step < columns ? first + step : columns;
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t column = first; column < last; ++column)
        to[column * rows + row] = from[row * columns + column];
  }
}

// Divides channels into runs and calls `run(number of vectors, first channel)` for each: first runs
// of kVectors vectors, whose sums fit the registers, then single vectors. Returns the first channel
// of the rest, which is shorter than a vector.
template <int kVectors, typename R, typename Run>
DEFORM_CONV_INLINE int64_t in_runs(int64_t channels, const Run& run) {
  int64_t c = 0;
  for (; c + kVectors * kLanes<R> <= channels; c += kVectors * kLanes<R>)
    run(std::integral_constant<int, kVectors>(), c);
  for (; c + kLanes<R> <= channels; c += kLanes<R>) run(std::integral_constant<int, 1>(), c);
  return c;
}

// ---- forward --------------------------------------------------------------------------------

// Computes the averages (C) of a bin, times its mask. `image` points to the image's first pixel.
template <typename R>
DEFORM_CONV_INLINE void average(
    const RoiGeometry& g, const Bin<R>& bin, const R* image, R* averages) {
  const int64_t channels = g.channels;
  const int64_t rest = in_runs<8, R>(channels, [&](auto vectors, int64_t c) {
    Vector<R> sums[vectors] = {};
    for (const Line<R>& row : bin.rows)
      for (const Line<R>& column : bin.columns) {
        const R weight = row.weight * column.weight;
        const R* pixel = image + row.at + column.at + c;
        for (int k = 0; k < vectors; ++k) sums[k] += weight * load(pixel + k * kLanes<R>);
      }
    for (int k = 0; k < vectors; ++k) store(averages + c + k * kLanes<R>, bin.factor * sums[k]);
  });
  for (int64_t c = rest; c < channels; ++c) {
    R sum = 0;
    for (const Line<R>& row : bin.rows)
      for (const Line<R>& column : bin.columns)
        sum += row.weight * column.weight * image[row.at + column.at + c];
    averages[c] = bin.factor * sum;
  }
}

template <typename R>
void forward(const RoiSamples<R>& samples, R* output, int64_t first, int64_t last) {
  const RoiGeometry& g = samples.g;
  Bins<R> bins(samples);
  Buffer<R> averages(g.bins() * g.channels);
  for (int64_t i = first; i < last; ++i) {
    const int64_t roi = samples.order[i];
    const int64_t of = roi_of(g, samples.boxes + 5 * roi).image;
    const R* image = samples.input + of * g.height * g.width * g.channels;
    bins.each(roi, [&](const Bin<R>& bin) {
      average(g, bin, image, averages.data() + bin.number * g.channels);
    });
    transpose(averages.data(), g.bins(), g.channels, output + roi * g.channels * g.bins());
  }
}

// ---- backward -------------------------------------------------------------------------------

// grad_image += weights * factor * grad, for `count` channels; grad_image points to the first one
template <typename R>
DEFORM_CONV_INLINE void spread(
    const RoiGeometry& g, const Bin<R>& bin, const R* grad, int64_t count, R* grad_image) {
  const int64_t rest = in_runs<8, R>(count, [&](auto vectors, int64_t c) {
    Vector<R> grads[vectors];
    for (int k = 0; k < vectors; ++k) grads[k] = bin.factor * load(grad + c + k * kLanes<R>);
    for (const Line<R>& row : bin.rows)
      for (const Line<R>& column : bin.columns) {
        const R weight = row.weight * column.weight;
        R* pixel = grad_image + row.at + column.at + c;
        for (int k = 0; k < vectors; ++k)
          store(pixel + k * kLanes<R>, load(pixel + k * kLanes<R>) + weight * grads[k]);
      }
  });
  for (int64_t c = rest; c < count; ++c)
    for (const Line<R>& row : bin.rows)
      for (const Line<R>& column : bin.columns)
        grad_image[row.at + column.at + c] += row.weight * column.weight * (bin.factor * grad[c]);
}

template <typename R>
void backward_input(
    const RoiSamples<R>& samples, const R* grad_output, R* grad_input, int64_t image, int64_t first,
    int64_t last) {
  const RoiGeometry& g = samples.g;
  Bins<R> bins(samples);
  const int64_t count = last - first;
  Buffer<R> grads(g.bins() * count);
  R* grad_image = grad_input + image * g.height * g.width * g.channels + first;
  for (int64_t i = 0; i < g.num_rois; ++i) {
    const int64_t roi = samples.order[i];
    if (roi_of(g, samples.boxes + 5 * roi).image != image) continue;
    transpose(grad_output + (roi * g.channels + first) * g.bins(), count, g.bins(), grads.data());
    bins.each(roi, [&](const Bin<R>& bin) {
      spread(g, bin, grads.data() + bin.number * count, count, grad_image);
    });
  }
}

// Computes the dot products over the channels of grad with the sum of a bin's samples, and with the
// derivatives of that sum along y and x.
template <typename R>
DEFORM_CONV_INLINE void differentiate(
    const RoiGeometry& g, const Bin<R>& bin, const R* image, const R* grad, R (&sums)[4]) {
  const int64_t channels = g.channels;
  Vector<R> totals[4] = {};
  const int64_t rest = in_runs<2, R>(channels, [&](auto vectors, int64_t c) {
    Vector<R> value[vectors] = {}, along_y[vectors] = {}, along_x[vectors] = {};
    for (const Line<R>& row : bin.rows) {
      Vector<R> of_row[vectors] = {}, slope_of_row[vectors] = {};
      for (const Line<R>& column : bin.columns) {
        const R* pixel = image + row.at + column.at + c;
        for (int k = 0; k < vectors; ++k) {
          of_row[k] += column.weight * load(pixel + k * kLanes<R>);
          slope_of_row[k] += column.slope * load(pixel + k * kLanes<R>);
        }
      }
      for (int k = 0; k < vectors; ++k) {
        value[k] += row.weight * of_row[k];
        along_y[k] += row.slope * of_row[k];
        along_x[k] += row.weight * slope_of_row[k];
      }
    }
    for (int k = 0; k < vectors; ++k) {
      const Vector<R> upstream = load(grad + c + k * kLanes<R>);
      totals[0] += upstream * value[k];
      totals[1] += upstream * along_y[k];
      totals[2] += upstream * along_x[k];
    }
  });
  sum_lanes<R>(totals, sums);
  for (int64_t c = rest; c < channels; ++c)
    for (const Line<R>& row : bin.rows)
      for (const Line<R>& column : bin.columns) {
        const R product = grad[c] * image[row.at + column.at + c];
        sums[0] += row.weight * column.weight * product;
        sums[1] += row.slope * column.weight * product;
        sums[2] += row.weight * column.slope * product;
      }
}

template <typename R>
void backward_bins(
    const RoiSamples<R>& samples, const R* grad_output, R* grad_offset, R* grad_mask, int64_t first,
    int64_t last) {
  const RoiGeometry& g = samples.g;
  const R gamma = static_cast<R>(g.gamma);
  Bins<R> bins(samples);
  Buffer<R> grads(g.bins() * g.channels);
  for (int64_t i = first; i < last; ++i) {
    const int64_t number = samples.order[i];
    const Roi<R> roi = roi_of(g, samples.boxes + 5 * number);
    const R* image = samples.input + roi.image * g.height * g.width * g.channels;
    transpose(grad_output + number * g.channels * g.bins(), g.channels, g.bins(), grads.data());
    bins.each(number, [&](const Bin<R>& bin) {
      R sums[4];
      differentiate(g, bin, image, grads.data() + bin.number * g.channels, sums);
      const int64_t at = number * g.bins() + bin.number;
      if (grad_mask) grad_mask[at] = bin.share * sums[0];
      if (!grad_offset) return;
      R* const grad = grad_offset + 2 * number * g.bins() + bin.number;
      grad[0] = bin.factor * gamma * roi.x.size * sums[2];
      grad[g.bins()] = bin.factor * gamma * roi.y.size * sums[1];
    });
  }
}

template <typename R>
constexpr RoiKernels<R> kKernels = {forward<R>, backward_input<R>, backward_bins<R>};

}  // namespace

namespace DEFORM_CONV_CAPABILITY {
extern const RoiTable kRoiTable = {&kKernels<float>, &kKernels<double>};
}
}  // namespace deform_conv
