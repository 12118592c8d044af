// Building operators over pixels or channels: pooling, reductions, normalisation, softmax.
#include <algorithm>

#include "program.h"

namespace rewound {

namespace {

constexpr int64_t kMostStep = int64_t{1} << 20, kMostPadding = 4096;

// Along one axis: windows of y start inside the padded x, and a window is no larger than that.
void check_window(int64_t size, int64_t out, int64_t kernel, int64_t stride, int64_t dilation, int64_t before,
                  int64_t after) {
  for (const int64_t number : {kernel, stride, dilation})
    require(number >= 1 && number <= kMostStep, "kernel, stride or dilation is " + std::to_string(number));
  for (const int64_t number : {before, after})
    require(number >= 0 && number <= kMostPadding, "padding is " + std::to_string(number));
  const int64_t padded = plus(size, before + after);
  require((kernel - 1) * dilation < padded, "a window of " + std::to_string((kernel - 1) * dilation + 1) +
                                                " is larger than the padded size " + std::to_string(padded));
  require(times(out - 1, stride) < padded, "the last of " + std::to_string(out) + " windows starts outside");
}

}  // namespace

void Program::pool(int64_t x, int64_t y, bool max, const Window& w, bool count_padding, const std::string& name) {
  begin();
  PoolOp op{.x = readable(x, "x"),
            .y = writable(y, "y"),
            .max = max,
            .kernel_y = w.kernel[0],
            .kernel_x = w.kernel[1],
            .stride_y = w.stride[0],
            .stride_x = w.stride[1],
            .top = w.padding[0],
            .left = w.padding[1],
            .bottom = w.padding[2],
            .right = w.padding[3],
            .dilation_y = w.dilation[0],
            .dilation_x = w.dilation[1],
            .count_padding = count_padding};
  const Planes &p = op.x.planes, &q = op.y.planes;
  require_shape(q, p.channels, p.images, q.height, q.width, "y");
  check_window(p.height, q.height, op.kernel_y, op.stride_y, op.dilation_y, op.top, op.bottom);
  check_window(p.width, q.width, op.kernel_x, op.stride_x, op.dilation_x, op.left, op.right);
  const int64_t wide = (q.width - 1) * op.stride_x + (op.kernel_x - 1) * op.dilation_x + 1;
  op.scratch = times(3, plus(std::max(wide, q.width), 64));  // vectors of two read past the end
  const int64_t taps = times(op.kernel_y, p.width) + times(op.kernel_x, q.width);
  add(max ? "max_pool" : "mean_pool", name, op, kernels_.pool, times(times(q.channels, q.images * q.height), taps) / 4,
      op.scratch);
}

void Program::adaptive_pool(int64_t x, int64_t y, bool max, const std::string& name) {
  begin();
  AdaptivePoolOp op{.x = readable(x, "x"), .y = writable(y, "y"), .max = max};
  const Planes &p = op.x.planes, &q = op.y.planes;
  require_shape(q, p.channels, p.images, q.height, q.width, "y");
  require(q.height <= 1 << 20 && q.width <= 1 << 20, "y is too large");
  add(max ? "adaptive_max_pool" : "adaptive_mean_pool", name, op, kernels_.adaptive_pool, times(p.channels, p.pixels()));
}

void Program::reduce(int64_t x, int64_t y, Combine combine, const std::string& name) {
  begin();
  ReduceOp op{.x = readable(x, "x"), .y = writable(y, "y"), .combine = combine, .group = 1, .over_height = false,
              .over_width = false};
  const Planes &p = op.x.planes, &q = op.y.planes;
  require(p.channels % q.channels == 0, "y has " + std::to_string(q.channels) + " channels, no divisor of " +
                                            std::to_string(p.channels));
  require_shape(q, q.channels, p.images, q.height == 1 ? 1 : p.height, q.width == 1 ? 1 : p.width, "y");
  op.group = p.channels / q.channels;
  op.over_height = q.height == 1 && p.height > 1;
  op.over_width = q.width == 1 && p.width > 1;
  op.scratch = times(2, plus(p.width, 16));
  add("reduce", name, op, kernels_.reduce, times(p.channels, p.pixels()), op.scratch);
}

void Program::norm(int64_t x, int64_t y, int64_t groups, bool pixels, bool rms, float eps,
                   const std::vector<float>& scale, const std::vector<float>& shift, const std::string& name) {
  begin();
  NormOp op{.x = readable(x, "x"), .y = writable(y, "y"), .group = 1, .pixels = pixels, .rms = rms, .eps = eps,
            .scale = nullptr, .shift = nullptr, .walk = {}};
  const Planes& p = op.x.planes;
  require_shape(op.y.planes, p.channels, p.images, p.height, p.width, "y");
  require(groups >= 1 && p.channels % groups == 0,
          std::to_string(p.channels) + " channels do not divide into " + std::to_string(groups) + " groups");
  op.group = p.channels / groups;
  op.scale = keep_per_channel(scale, p.channels, "scale");
  op.shift = keep_per_channel(shift, p.channels, "shift");
  op.walk = walk(op.y, op.x, nullptr, false, true);
  add("norm", name, op, kernels_.norm, times(4, times(p.channels, p.pixels())));
  zero_guards(op.y, name);
}

void Program::softmax(int64_t x, int64_t y, Over over, int64_t groups, bool log, const std::string& name) {
  begin();
  SoftmaxOp op{.x = readable(x, "x"), .y = writable(y, "y"), .over = over, .group = 1, .log = log, .walk = {}};
  const Planes& p = op.x.planes;
  require_shape(op.y.planes, p.channels, p.images, p.height, p.width, "y");
  require(groups >= 1 && p.channels % groups == 0,
          std::to_string(p.channels) + " channels do not divide into " + std::to_string(groups) + " groups");
  op.group = p.channels / groups;
  op.walk = walk(op.y, op.x, nullptr, false, true);
  add("softmax", name, op, kernels_.softmax, times(10, times(p.channels, p.pixels())));
  if (over == Over::kChannels) zero_guards(op.y, name);
}

}  // namespace rewound
