// Pooling, adaptive pooling and reductions: rows of pixels are combined as vectors first, then along the row.
#pragma once

#include "ops_elementwise.h"

namespace rewound {
namespace {

struct Largest {
  static constexpr float kStart = -kInfinity;
  REWOUND_INLINE V operator()(V a, V b) const { return larger(a, b); }
  REWOUND_INLINE float operator()(float a, float b) const { return a > b || a != a ? a : b; }
};
struct Smallest {
  static constexpr float kStart = kInfinity;
  REWOUND_INLINE V operator()(V a, V b) const { return smaller(a, b); }
  REWOUND_INLINE float operator()(float a, float b) const { return a < b || a != a ? a : b; }
};
struct Sum {
  static constexpr float kStart = 0.0f;
  REWOUND_INLINE V operator()(V a, V b) const { return a + b; }
  REWOUND_INLINE float operator()(float a, float b) const { return a + b; }
};

// y[i] = f(y[i], x[i])
template <class F>
REWOUND_INLINE void accumulate(float* y, const float* x, int64_t n, F f) {
  each_vector(n, [&](int64_t i, auto part) { part.store(y + i, f(part.load(y + i), part.load(x + i))); });
}

// All of n floats into one, by lanes.
template <class F>
REWOUND_INLINE float along(const float* x, int64_t n, F f) {
  V lanes = splat(F::kStart);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) lanes = f(lanes, load(x + i));
  float all = F::kStart;
  if (n >= kLanes)
    for (int j = 0; j < kLanes; ++j) all = f(all, static_cast<float>(lanes[j]));
  for (; i < n; ++i) all = f(all, x[i]);
  return all;
}

// One row of y from the rows of a window. `line` and `next`: scratch rows as wide as the padded row that windows touch.
template <class F>
REWOUND_INLINE void pool_row(const PoolOp& op, const float* x, int64_t v, float* to, float* line, float* next, F f) {
  const Planes &p = op.x.planes, &q = op.y.planes;
  const int64_t wide = (q.width - 1) * op.stride_x + (op.kernel_x - 1) * op.dilation_x + 1;
  const int64_t room = wide - op.left;  // may be narrower than the row
  const int64_t used = room < p.width ? (room > 0 ? room : 0) : p.width;
  // The rows of x in the window, as one row.
  const int64_t top = v * op.stride_y - op.top;
  int64_t first = 0, last = op.kernel_y;
  while (first < last && top + first * op.dilation_y < 0) ++first;
  while (first < last && top + (last - 1) * op.dilation_y >= p.height) --last;
  if (first == last || used == 0) {
    set(line, wide, F::kStart);
  } else {
    const float* rows = x + p.lead + (top + first * op.dilation_y) * p.pitch;
    const int64_t step = op.dilation_y * p.pitch, count = last - first;
    set(line, op.left, F::kStart);
    each_vector(used, [&](int64_t i, auto part) {
      V acc = part.load(rows + i);
      for (int64_t k = 1; k < count; ++k) acc = f(acc, part.load(rows + k * step + i));
      part.store(line + op.left + i, acc);
    });
    set(line + op.left + used, wide - op.left - used, F::kStart);
  }
  // Along that row.
  const int64_t kernel = op.kernel_x, dilation = op.dilation_x;
  if (op.stride_x == 1) {
    each_vector(q.width, [&](int64_t i, auto part) {
      V acc = part.load(line + i);
      for (int64_t k = 1; k < kernel; ++k) acc = f(acc, part.load(line + i + k * dilation));
      part.store(to + i, acc);
    });
  } else if (op.stride_x == 2) {  // reads past the row's end stay in the scratch
    each_vector(q.width, [&](int64_t i, auto part) {
      V acc = every_second(line + 2 * i);
      for (int64_t k = 1; k < kernel; ++k) acc = f(acc, every_second(line + 2 * i + k * dilation));
      part.store(to + i, acc);
    });
  } else if (kernel > 2 * op.stride_x) {
    for (int64_t u = 0; u < q.width; ++u) {
      float acc = line[u * op.stride_x];
      for (int64_t k = 1; k < kernel; ++k) acc = f(acc, line[u * op.stride_x + k * dilation]);
      to[u] = acc;
    }
  } else {  // every position as a vector, then the strided ones: cheaper than scalars
    each_vector(wide - (kernel - 1) * dilation, [&](int64_t i, auto part) {
      V acc = part.load(line + i);
      for (int64_t k = 1; k < kernel; ++k) acc = f(acc, part.load(line + i + k * dilation));
      part.store(next + i, acc);
    });
    for (int64_t u = 0; u < q.width; ++u) to[u] = next[u * op.stride_x];
  }
}

// How many positions of a window count: those inside [0, size), or with padding inside [-before, size + after).
REWOUND_INLINE int64_t window(int64_t at, int64_t kernel, int64_t dilation, int64_t size, int64_t before, int64_t after,
                              bool padding) {
  int64_t count = 0;
  for (int64_t k = 0; k < kernel; ++k) {
    const int64_t i = at + k * dilation;
    count += padding ? i >= -before && i < size + after : i >= 0 && i < size;
  }
  return count;
}

void pool(const PoolOp& op, const Frame& frame, int64_t task) {
  const Planes &p = op.x.planes, &q = op.y.planes;
  const Part channels = part(q.channels, op.tasks, task);
  const float* x = op.x.read(frame);
  float* y = op.y.write(frame);
  float* line = frame.scratch;
  float* next = line + op.scratch / 3;
  float* divisors = next + op.scratch / 3;
  if (!op.max)
    for (int64_t u = 0; u < q.width; ++u)
      divisors[u] = static_cast<float>(window(u * op.stride_x - op.left, op.kernel_x, op.dilation_x, p.width, op.left,
                                              op.right, op.count_padding));
  for (int64_t c = channels.first; c < channels.last; ++c)
    for (int64_t i = 0; i < p.images; ++i)
      for (int64_t v = 0; v < q.height; ++v) {
        const float* from = x + c * p.stride + i * p.plane;
        float* to = y + c * q.stride + i * q.plane + q.lead + v * q.pitch;
        if (op.max) {
          pool_row(op, from, v, to, line, next, Largest{});
          continue;
        }
        pool_row(op, from, v, to, line, next, Sum{});
        const float rows = static_cast<float>(window(v * op.stride_y - op.top, op.kernel_y, op.dilation_y, p.height,
                                                     op.top, op.bottom, op.count_padding));
        for (int64_t u = 0; u < q.width; ++u) to[u] /= rows * divisors[u];
      }
  finish(op.y, y, channels);
}

// The sum of a channel's pixels in one image. Guards are zeros: a guarded plane is one run.
REWOUND_INLINE float plane_sum(const Value& value, const float* plane) {
  const Planes& p = value.planes;
  const float* x = plane + p.lead;
  int64_t rows = p.height, run = p.width;
  if (p.pitch == p.width || value.guarded()) {
    run = (p.height - 1) * p.pitch + p.width;
    rows = 1;
  }
  float sum = 0.0f;
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = x + r * p.pitch;
    V a = {}, b = {}, c = {}, d = {};
    int64_t i = 0;
    for (; i + 4 * kLanes <= run; i += 4 * kLanes) {
      a += load(row + i);
      b += load(row + i + kLanes);
      c += load(row + i + 2 * kLanes);
      d += load(row + i + 3 * kLanes);
    }
    each_vector(run - i, [&](int64_t j, auto part) { a += part.load(row + i + j); });
    sum += total((a + b) + (c + d));
  }
  return sum;
}

template <class F>
REWOUND_INLINE float cell(const float* x, int64_t pitch, int64_t rows, int64_t columns, F f) {
  float all = F::kStart;
  for (int64_t r = 0; r < rows; ++r) all = f(all, along(x + r * pitch, columns, f));
  return all;
}

void adaptive_pool(const AdaptivePoolOp& op, const Frame& frame, int64_t task) {
  const Planes &p = op.x.planes, &q = op.y.planes;
  const Part channels = part(q.channels, op.tasks, task);
  const float* x = op.x.read(frame);
  float* y = op.y.write(frame);
  const bool whole = q.height == 1 && q.width == 1;
  for (int64_t c = channels.first; c < channels.last; ++c)
    for (int64_t i = 0; i < p.images; ++i) {
      const float* plane = x + c * p.stride + i * p.plane;
      float* to = y + c * q.stride + i * q.plane + q.lead;
      if (whole && !op.max) {
        *to = plane_sum(op.x, plane) / static_cast<float>(p.height * p.width);
        continue;
      }
      for (int64_t v = 0; v < q.height; ++v) {
        const int64_t top = v * p.height / q.height, below = ((v + 1) * p.height + q.height - 1) / q.height;
        for (int64_t u = 0; u < q.width; ++u) {
          const int64_t left = u * p.width / q.width, right = ((u + 1) * p.width + q.width - 1) / q.width;
          const float* from = plane + p.lead + top * p.pitch + left;
          const int64_t rows = below - top, columns = right - left;
          to[v * q.pitch + u] = op.max ? cell(from, p.pitch, rows, columns, Largest{})
                                       : cell(from, p.pitch, rows, columns, Sum{}) / static_cast<float>(rows * columns);
        }
      }
    }
  finish(op.y, y, channels);
}

// Rows are added up in two levels, so that rounding grows with the root of their number.
constexpr int64_t kRowsAtOnce = 32;

template <class F>
REWOUND_INLINE void reduce_with(const ReduceOp& op, const Frame& frame, int64_t task, F f) {
  const Planes &p = op.x.planes, &q = op.y.planes;
  const Part channels = part(q.channels, op.tasks, task);
  const float* x = op.x.read(frame);
  float* y = op.y.write(frame);
  float* all = frame.scratch;
  float* some = all + op.scratch / 2;
  const int64_t rows = op.over_height ? p.height : 1;
  const float count = static_cast<float>(op.group * rows * (op.over_width ? p.width : 1));
  for (int64_t c = channels.first; c < channels.last; ++c)
    for (int64_t i = 0; i < p.images; ++i)
      for (int64_t v = 0; v < q.height; ++v) {
        set(all, p.width, F::kStart);
        for (int64_t r = 0; r < op.group * rows;) {
          set(some, p.width, F::kStart);
          for (const int64_t end = r + kRowsAtOnce; r < end && r < op.group * rows; ++r)
            accumulate(some, x + (c * op.group + r / rows) * p.stride + i * p.plane + p.lead + (v + r % rows) * p.pitch,
                       p.width, f);
          accumulate(all, some, p.width, f);
        }
        int64_t width = p.width;
        if (op.over_width) {
          all[0] = along(all, width, f);
          width = 1;
        }
        float* to = y + c * q.stride + i * q.plane + q.lead + v * q.pitch;
        for (int64_t u = 0; u < width; ++u) to[u] = op.combine == Combine::kMean ? all[u] / count : all[u];
      }
  finish(op.y, y, channels);
}

// Sums of whole planes: guards are zeros, so that each is one run.
void reduce_planes(const ReduceOp& op, const Frame& frame, int64_t task) {
  const Planes &p = op.x.planes, &q = op.y.planes;
  const Part channels = part(q.channels, op.tasks, task);
  const float* x = op.x.read(frame);
  float* y = op.y.write(frame);
  const float count = op.combine == Combine::kMean ? static_cast<float>(op.group * p.height * p.width) : 1.0f;
  for (int64_t c = channels.first; c < channels.last; ++c)
    for (int64_t i = 0; i < p.images; ++i) {
      double sum = 0.0;
      for (int64_t k = 0; k < op.group; ++k)
        sum += static_cast<double>(plane_sum(op.x, x + (c * op.group + k) * p.stride + i * p.plane));
      y[c * q.stride + i * q.plane + q.lead] = static_cast<float>(sum) / count;
    }
  finish(op.y, y, channels);
}

void reduce(const ReduceOp& op, const Frame& frame, int64_t task) {
  if (op.over_height && op.over_width && op.combine <= Combine::kSum) return reduce_planes(op, frame, task);
  switch (op.combine) {
    case Combine::kMean:
    case Combine::kSum: return reduce_with(op, frame, task, Sum{});
    case Combine::kMax: return reduce_with(op, frame, task, Largest{});
    case Combine::kMin: return reduce_with(op, frame, task, Smallest{});
  }
}

}  // namespace
}  // namespace rewound
