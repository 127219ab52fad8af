// The kernels of one capability: the forward and backward of tiles of rows, on plain memory.
// build.py compiles this file once for each capability; the object files must not share any
// function.
#include "kernels.h"

#include <new>

#include "product.h"
#include "sampling.h"

namespace deform_conv {
namespace {

constexpr int64_t kColumnPadding = 64;  // bytes after a row of columns: no two share a cache set

DEFORM_CONV_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// The columns [first, last) of a panel that belong to one weight group.
struct Part {
  int64_t group, first, last;
};

// Returns the part that begins at `column` of a panel whose columns are the channels [begin, begin
// + count), with `per_group` channels to a group. If the panel belongs to a single group, the part
// includes the padding, so that the product computes the whole panel.
Part part_at(int64_t column, int64_t begin, int64_t count, int64_t per_group) {
  const int64_t group = (begin + column) / per_group, end = (group + 1) * per_group - begin;
  if (column == 0 && end >= count) return {group, 0, kPanel};
  return {group, column, smaller(end, count)};
}

// Positions [first, first + count) of an image.
struct Rows {
  int64_t image, first, count;
};

Rows rows_of(const Geometry& g, Tiles tiles, int64_t tile) {
  const int64_t image = tile / tiles.per_image, first = tile % tiles.per_image * tiles.rows;
  return {image, first, smaller(tiles.rows, g.positions() - first)};
}

// ---- forward ------------------------------------------------------------------------------
//
//     packed   (panels, K, parts, depth, 32)            panels of the weights of one tap
//     columns  (rows, groups, parts, depth) + padding   the samples of one tap
//     sums     (panels, rows, 32)                       the tile's output
//
// T is the type of the features and F that of the product's factors. If F is smaller than T, a
// number is split into two parts, high + low, and the product is the sum of the products of the
// parts except low * low (Henry, Tang, Heinecke: Leveraging the bfloat16 Artificial Intelligence
// Datatype For Higher-Precision Computations, 2019).

template <typename T, typename F>
constexpr int64_t kParts = sizeof(T) > sizeof(F) ? 2 : 1;

template <typename T, typename F>
int64_t packed_size(const Geometry& g) {
  return num_panels(g) * g.taps() * kParts<T, F> * padded_depth<F>(g.group_channels()) * kPanel *
         sizeof(F) / sizeof(T);
}

// Packs one panel of weight (O, K, Cg).
template <typename T, typename F>
void pack(const Geometry& g, const T* weight, int64_t panel, T* packed) {
  const int64_t depth = g.group_channels(), row = g.taps() * depth;
  const int64_t part_size = padded_depth<F>(depth) * kPanel;
  const int64_t tap_size = kParts<T, F> * part_size;
  const int64_t count = smaller(kPanel, g.out_channels - panel * kPanel);
  weight += panel * kPanel * row;
  F* to = reinterpret_cast<F*>(packed) + panel * g.taps() * tap_size;
  if (count < kPanel || padded_depth<F>(depth) > depth)
    std::memset(to, 0, g.taps() * tap_size * sizeof(F));
  for (int64_t tap = 0; tap < g.taps(); ++tap)
    for (int64_t begin = 0; begin < depth; begin += 16)  // a cache line of each of 32 rows
      for (int64_t o = 0; o < count; ++o)
        for (int64_t c = begin; c < smaller(begin + 16, depth); ++c) {
          const T value = weight[o * row + tap * depth + c];
          F* at = to + tap * tap_size + packed_at<F>(c, o);
          if constexpr (kParts<T, F> == 1) {
            *at = value;
          } else {
            *at = rounded<F>(value);
            at[part_size] = rounded<F>(value - real(*at));
          }
        }
}

template <typename T, typename F>
class Forward {
 public:
  Forward(
      const Samples<T>& samples, const Channels* runs, int64_t num_runs, const T* packed,
      const Real<T>* bias, T* output, int64_t most_rows)
      : samples_(samples),
        g_(samples.g),
        runs_(runs),
        num_runs_(num_runs),
        packed_(reinterpret_cast<const F*>(packed)),
        bias_(bias),
        output_(output),
        depth_(padded_depth<F>(g_.group_channels())),
        row_(g_.groups * kParts<T, F> * depth_ + kColumnPadding / sizeof(F)),
        rows_(padded_rows<F>(most_rows)),
        columns_(rows_ * row_),
        sums_(num_panels(g_) * rows_ * kPanel),
        zeros_(g_.channels),
        whole_(kParts<T, F> == 2 ? g_.channels : 0) {
    zeros_.zero();
    if (depth_ > g_.group_channels()) columns_.zero();
  }

  void tile(Rows rows) {
    for (int64_t tap = 0; tap < g_.taps(); ++tap) {
      sample(rows, tap);
      for (int64_t panel = 0; panel < num_panels(g_); ++panel) multiply_panel(rows, tap, panel);
    }
    for (int64_t panel = 0; panel < num_panels(g_); ++panel) write(rows, panel);
  }

 private:
  void sample(Rows rows, int64_t tap) {
    const T* image = samples_.input + rows.image * g_.height * g_.width * g_.channels;
    const int64_t ky = tap / g_.kernel_w, kx = tap % g_.kernel_w;
    for (int64_t r = 0; r < num_runs_; ++r) {
      const Channels& run = runs_[r];
      int64_t y = rows.first / g_.out_width, x = rows.first % g_.out_width;
      for (int64_t row = 0; row < rows.count; ++row) {
        const int64_t position = rows.image * g_.positions() + rows.first + row;
        const int64_t at = (position * g_.offset_groups + run.offset_group) * g_.taps() + tap;
        const auto location =
            locate_tap(g_, y, x, ky, kx, samples_.offset[2 * at], samples_.offset[2 * at + 1]);
        const Real<T> modulation = samples_.mask ? samples_.mask[at] : Real<T>(1);
        const Corners<T> corners = corners_of(
            location, image + run.first, g_.height, g_.width, g_.channels, modulation,
            static_cast<const T*>(zeros_.data()));
        write_columns(corners, run, columns_.data() + row * row_);
        if (++x == g_.out_width) x = 0, ++y;
      }
    }
  }

  // Writes the samples of a run at one location to a row of columns: all at once if the columns of
  // different groups are contiguous, as their channels are, else group by group.
  void write_columns(Corners<T> corners, const Channels& run, F* row) {
    const int64_t per_group = g_.group_channels();
    if constexpr (kParts<T, F> == 1)
      if (depth_ == per_group) return blend(corners, run.count, row + run.first);
    const int64_t last = run.first + run.count;
    for (int64_t c = run.first; c < last;) {
      const int64_t group = c / per_group, count = smaller((group + 1) * per_group, last) - c;
      F* to = row + group * kParts<T, F> * depth_ + c - group * per_group;
      if constexpr (kParts<T, F> == 1) {
        blend(corners, count, to);
      } else {
        blend(corners, count, whole_.data());
        store_parts(whole_.data(), count, to, depth_);
      }
      for (const T*& pixel : corners.pixel) pixel += count;
      c += count;
    }
  }

  void multiply_panel(Rows rows, int64_t tap, int64_t panel) {
    const int64_t begin = panel * kPanel, columns = smaller(kPanel, g_.out_channels - begin);
    const int64_t count = padded_rows<F>(rows.count);
    const F* b = packed_ + (panel * g_.taps() + tap) * kParts<T, F> * depth_ * kPanel;
    Real<T>* sums = sums_.data() + begin * rows_;
    for (int64_t column = 0; column < columns;) {
      const Part part = part_at(column, begin, columns, g_.group_out_channels());
      const F* a = columns_.data() + part.group * kParts<T, F> * depth_;
      multiply(count, depth_, a, row_, b, sums, part.first, part.last, tap > 0);
      if constexpr (kParts<T, F> == 2) {
        multiply(count, depth_, a + depth_, row_, b, sums, part.first, part.last, true);
        multiply(count, depth_, a, row_, b + depth_ * kPanel, sums, part.first, part.last, true);
      }
      column = part.last;
    }
  }

  void write(Rows rows, int64_t panel) {
    const int64_t first = panel * kPanel, count = smaller(kPanel, g_.out_channels - first);
    const Real<T>* sums = sums_.data() + first * rows_;
    const Real<T>* bias = bias_ ? bias_ + first : nullptr;
    T* output = output_ + (rows.image * g_.positions() + rows.first) * g_.out_channels + first;
    for (int64_t row = 0; row < rows.count; ++row, output += g_.out_channels, sums += kPanel)
      for (int64_t o = 0; o < count; ++o)
        output[o] = rounded<T>(bias ? sums[o] + bias[o] : sums[o]);
  }

  const Samples<T>& samples_;
  const Geometry& g_;
  const Channels* runs_;
  int64_t num_runs_;
  const F* packed_;
  const Real<T>* bias_;
  T* output_;
  int64_t depth_, row_, rows_;
  Buffer<F> columns_;
  Buffer<Real<T>> sums_;
  Buffer<T> zeros_, whole_;
  MatrixUnit unit_;
};

template <typename T, typename F>
void forward(
    const Samples<T>& samples, const Channels* runs, int64_t num_runs, const T* packed,
    const Real<T>* bias, T* output, Tiles tiles, int64_t first, int64_t last) {
  Forward<T, F> forward(samples, runs, num_runs, packed, bias, output, tiles.rows);
  for (int64_t tile = first; tile < last; ++tile) forward.tile(rows_of(samples.g, tiles, tile));
}

// ---- backward -----------------------------------------------------------------------------
//
// The arrays of one block of up to 32 input channels, which may belong to several weight groups:
//
//     packed        (K, outs, 32)      the block's weights; outs are the output channels of a group
//     grad_columns  (K, rows, 32)
//     columns       (K, rows, 32)      packed as the right factor of grad_weight's product
//     grad_weights  (K, outs, 32)      summed over the tiles
//
// Left factors in bfloat16 are padded copies: one of the tile's grad_output (groups of the block,
// rows, outs), and one of its transpose (groups, outs, rows), which the blocks share.

template <typename T>
constexpr bool kCopies = sizeof(T) == 2;

template <typename T>
int64_t transposed_tile_size(const Geometry& g, Tiles tiles) {
  return g.groups * padded_rows<T>(g.group_out_channels()) * padded_depth<T>(tiles.rows);
}

template <typename T>
int64_t transposed_size(const Geometry& g, Tiles tiles) {
  return kCopies<T> ? g.batch * tiles.per_image * transposed_tile_size<T>(g, tiles) : 0;
}

template <typename T>
void transpose(const Geometry& g, const T* grad_output, Tiles tiles, int64_t tile, T* transposed) {
  const Rows rows = rows_of(g, tiles, tile);
  const int64_t outs = g.group_out_channels(), depth = padded_depth<T>(tiles.rows);
  const int64_t group_size = padded_rows<T>(outs) * depth;
  grad_output += (rows.image * g.positions() + rows.first) * g.out_channels;
  transposed += tile * transposed_tile_size<T>(g, tiles);
  for (int64_t o = 0; o < g.out_channels; ++o) {
    T* to = transposed + o / outs * group_size + o % outs * depth;
    for (int64_t row = 0; row < rows.count; ++row) to[row] = grad_output[row * g.out_channels + o];
    std::memset(to + rows.count, 0, (depth - rows.count) * sizeof(T));
  }
}

template <typename T>
class Backward {
 public:
  Backward(
      const Samples<T>& samples, Channels block, const T* weight, const Gradients<T>& gradients,
      Tiles tiles)
      : samples_(samples),
        g_(samples.g),
        block_(block),
        gradients_(gradients),
        tiles_(tiles),
        outs_(g_.group_out_channels()),
        depth_(padded_depth<T>(outs_)),
        first_group_(block.first / g_.group_channels()),
        num_groups_((block.first + block.count - 1) / g_.group_channels() - first_group_ + 1),
        rows_(padded_rows<T>(padded_depth<T>(tiles.rows))),
        packed_(g_.taps() * depth_ * kPanel),
        grad_columns_(g_.taps() * rows_ * kPanel),
        columns_(g_.taps() * rows_ * kPanel),
        grad_weights_(g_.taps() * padded_rows<T>(outs_) * kPanel),
        grad_output_(kCopies<T> ? num_groups_ * rows_ * depth_ : 0),
        zeros_(kPanel),
        nowhere_(4 * kPanel),
        located_(2 * kElementDepth<T> * g_.taps()) {
    packed_.zero(), columns_.zero(), grad_weights_.zero(), zeros_.zero(), nowhere_.zero();
    if (kCopies<T>) grad_output_.zero();
    pack_block(weight);
  }

  void tile(int64_t tile) {
    const Rows rows = rows_of(g_, tiles_, tile);
    const T* grad_output =
        gradients_.output + (rows.image * g_.positions() + rows.first) * g_.out_channels;
    if (kCopies<T>) copy_grad_output(rows, grad_output);
    for (int64_t column = 0; column < block_.count;) {
      const Part part = part_at(column);
      const T* a = kCopies<T> ? grad_output_.data() + (part.group - first_group_) * rows_ * depth_
                              : grad_output + part.group * outs_;
      for (int64_t tap = 0; tap < g_.taps(); ++tap)
        multiply(
            padded_rows<T>(rows.count), depth_, a, kCopies<T> ? depth_ : g_.out_channels,
            packed_.data() + tap * depth_ * kPanel, grad_columns_.data() + tap * rows_ * kPanel,
            part.first, part.last, false);
      column = part.last;
    }

    if (block_.count == kPanel)
      spread_rows(rows, kPanel);
    else
      spread_rows(rows, block_.count);

    for (int64_t column = 0; gradients_.weight && column < block_.count;) {
      const Part part = part_at(column);
      for (int64_t tap = 0; tap < g_.taps(); ++tap) {
        const T* columns = columns_.data() + tap * rows_ * kPanel;
        Real<T>* sums = grad_weights_.data() + tap * padded_rows<T>(outs_) * kPanel;
        if constexpr (kCopies<T>) {
          const int64_t row = padded_depth<T>(tiles_.rows), group = padded_rows<T>(outs_) * row;
          multiply(
              padded_rows<T>(outs_), padded_depth<T>(rows.count),
              gradients_.output_transposed + (tile * g_.groups + part.group) * group, row, columns,
              sums, part.first, part.last, true);
        } else {
          multiply<T, true>(
              outs_, rows.count, grad_output + part.group * outs_, g_.out_channels, columns, sums,
              part.first, part.last, true);
        }
      }
      column = part.last;
    }
  }

  void write_grad_weight() {
    for (int64_t column = 0; gradients_.weight && column < block_.count;) {
      const Part part = part_at(column);
      const int64_t count = smaller(part.last, block_.count) - part.first;
      for (int64_t o = 0; o < outs_; ++o)
        for (int64_t tap = 0; tap < g_.taps(); ++tap)
          std::memcpy(
              gradients_.weight + weight_at(part, o, tap),
              grad_weights_.data() + (tap * padded_rows<T>(outs_) + o) * kPanel + part.first,
              count * sizeof(Real<T>));
      column = part.last;
    }
  }

 private:
  Part part_at(int64_t column) const {
    return deform_conv::part_at(column, block_.first, block_.count, g_.group_channels());
  }

  // Returns the index in weight (O, K, Cg) of the part's first weight for an output of its group.
  int64_t weight_at(const Part& part, int64_t out, int64_t tap) const {
    const int64_t channel = block_.first + part.first - part.group * g_.group_channels();
    return ((part.group * outs_ + out) * g_.taps() + tap) * g_.group_channels() + channel;
  }

  void pack_block(const T* weight) {
    for (int64_t column = 0; column < block_.count;) {
      const Part part = part_at(column);
      for (int64_t o = 0; o < outs_; ++o)
        for (int64_t tap = 0; tap < g_.taps(); ++tap)
          for (int64_t c = part.first; c < smaller(part.last, block_.count); ++c)
            packed_.data()[tap * depth_ * kPanel + packed_at<T>(o, c)] =
                weight[weight_at(part, o, tap) + c - part.first];
      column = part.last;
    }
  }

  void copy_grad_output(Rows rows, const T* grad_output) {
    for (int64_t group = 0; group < num_groups_; ++group)
      for (int64_t row = 0; row < rows.count; ++row)
        std::memcpy(
            grad_output_.data() + (group * rows_ + row) * depth_,
            grad_output + row * g_.out_channels + (first_group_ + group) * outs_,
            outs_ * sizeof(T));
  }

  // One tap of one row: the location that it samples, and where its gradients are written.
  struct Sample {
    Location<Real<T>> location;
    Real<T> modulation;
    Corners<T> corners;
    Real<T>* grad_pixel[4];
    Real<T>* partial;
  };

  // Propagates grad_columns back through the sampling and fills columns. Rows are processed in
  // pairs if columns hold pairs. Meanwhile the pixels of the next rows are prefetched into the
  // cache.
  DEFORM_CONV_INLINE void spread_rows(Rows rows, int64_t channels) {
    constexpr int64_t d = kElementDepth<T>;
    const int64_t taps = g_.taps(), steps = (rows.count + d - 1) / d;
    locate_rows(rows, 0);
    for (int64_t step = 0; step < steps; ++step) {
      if (step + 1 < steps) locate_rows(rows, step + 1);
      const Sample* located = located_.data() + step % 2 * d * taps;
      for (int64_t tap = 0; tap < taps; ++tap) {
        const int64_t at = (tap * rows_ + step * d) * kPanel;
        if constexpr (d == 1) {
          spread_sample(located[tap], channels, grad_columns_.data() + at, columns_.data() + at);
        } else {
          alignas(64) Real<T> values[2][kPanel] = {};
          for (int64_t i = 0; i < d && step * d + i < rows.count; ++i)
            spread_sample(
                located[i * taps + tap], channels, grad_columns_.data() + at + i * kPanel,
                values[i]);
          store_pairs(columns_.data() + at, values[0], values[1]);
        }
      }
    }
    for (int64_t tap = 0; tap < taps; ++tap)  // the padding after the last row
      for (int64_t row = steps * d; row < padded_depth<T>(rows.count); row += d)
        std::memset(columns_.data() + (tap * rows_ + row) * kPanel, 0, d * kPanel * sizeof(T));
  }

  DEFORM_CONV_INLINE void locate_rows(Rows rows, int64_t step) {
    constexpr int64_t d = kElementDepth<T>;
    Sample* sample = located_.data() + step % 2 * d * g_.taps();
    const int64_t start = rows.image * g_.height * g_.width * g_.channels + block_.first;
    for (int64_t row = step * d; row < smaller(step * d + d, rows.count); ++row) {
      const int64_t p = rows.first + row, position = rows.image * g_.positions() + p;
      const int64_t y = p / g_.out_width, x = p % g_.out_width;
      int64_t at = (position * g_.offset_groups + block_.offset_group) * g_.taps();
      Real<T>* partial = gradients_.partial + position * g_.taps() * 3;
      for (int64_t ky = 0; ky < g_.kernel_h; ++ky)
        for (int64_t kx = 0; kx < g_.kernel_w; ++kx, ++at, ++sample, partial += 3) {
          sample->location =
              locate_tap(g_, y, x, ky, kx, samples_.offset[2 * at], samples_.offset[2 * at + 1]);
          sample->modulation = samples_.mask ? samples_.mask[at] : Real<T>(1);
          sample->partial = partial;
          sample->corners = corners_of(
              sample->location, samples_.input + start, g_.height, g_.width, g_.channels,
              sample->modulation, static_cast<const T*>(zeros_.data()));
          for (int k = 0; k < 4; ++k) {
            const bool wanted =
                gradients_.input && has_corner(sample->location, k, g_.height, g_.width);
            sample->grad_pixel[k] =
                wanted ? gradients_.input + start +
                             corner_pixel(sample->location, k, g_.width) * g_.channels
                       : nowhere_.data() + k * kPanel;
            fetch(sample->corners.pixel[k], kPanel);
            fetch(sample->grad_pixel[k], kPanel);
          }
        }
    }
  }

  DEFORM_CONV_INLINE void spread_sample(
      const Sample& sample, int64_t channels, const Real<T>* grad_column, Real<T>* column) {
    Real<T>* partial = sample.partial;
    if (!sample.location.inside) {
      partial[0] = partial[1] = partial[2] = 0;
      for (int64_t c = 0; c < channels; ++c) column[c] = 0;
      return;
    }
    Real<T> dots[4];
    spread(sample.corners, sample.grad_pixel, grad_column, channels, column, dots);
    partial[0] = sample.modulation * derivative_y(sample.location, dots);
    partial[1] = sample.modulation * derivative_x(sample.location, dots);
    partial[2] = value(sample.location, dots);
  }

  const Samples<T>& samples_;
  const Geometry& g_;
  Channels block_;
  const Gradients<T>& gradients_;
  Tiles tiles_;
  int64_t outs_, depth_, first_group_, num_groups_, rows_;
  Buffer<T> packed_;
  Buffer<Real<T>> grad_columns_;
  Buffer<T> columns_;
  Buffer<Real<T>> grad_weights_;
  Buffer<T> grad_output_;
  Buffer<T> zeros_;
  Buffer<Real<T>> nowhere_;
  Buffer<Sample> located_;
  MatrixUnit unit_;
};

template <typename T>
void backward(
    const Samples<T>& samples, Channels block, const T* weight, const Gradients<T>& gradients,
    Tiles tiles, int64_t first, int64_t last) {
  Backward<T> backward(samples, block, weight, gradients, tiles);
  for (int64_t tile = first * tiles.per_image; tile < last * tiles.per_image; ++tile)
    backward.tile(tile);
  backward.write_grad_weight();
}

template <typename T, typename F = T>
constexpr ForwardKernels<T> kForward = {packed_size<T, F>, pack<T, F>, forward<T, F>};

template <typename T>
constexpr Kernels<T> kKernels = {kForward<T>, transposed_size<T>, transpose<T>, backward<T>};

}  // namespace

namespace DEFORM_CONV_CAPABILITY {

#if defined(__AMX_BF16__)
extern const Table kTable = {nullptr, nullptr, &kKernels<BFloat16>, &kForward<float, BFloat16>};
#elif defined(__AVX512BF16__)
extern const Table kTable = {nullptr, nullptr, &kKernels<BFloat16>, nullptr};
#else
extern const Table kTable = {&kKernels<float>, &kKernels<double>, nullptr, nullptr};
#endif

}  // namespace DEFORM_CONV_CAPABILITY
}  // namespace deform_conv
