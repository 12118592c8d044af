// Normalisation and softmax: two passes (mean, then squares of what is left; maximum, then the sum of powers).
#pragma once

#include <type_traits>

#include "ops_pool.h"

namespace rewound {
namespace {

// Pixels in a register block: one task of work over channels.
constexpr int64_t kColumns = 4 * kLanes;

// Work over channels goes by blocks of neighbouring pixels. f(part, x, y, pixel block): for each block of each group of
// channels, where part says how many pixels of a vector there are.
template <class F>
REWOUND_INLINE void each_block(const Walk& w, int64_t groups, int64_t group, int64_t tasks, int64_t task, const float* x,
                               float* y, F f) {
  const int64_t blocks = (w.run + kColumns - 1) / kColumns;
  const Part units = part(groups * w.outer * w.inner * blocks, tasks, task);
  for (int64_t unit = units.first; unit < units.last; ++unit) {
    const int64_t block = unit % blocks, j = unit / blocks % w.inner, i = unit / blocks / w.inner % w.outer;
    const int64_t g = unit / blocks / w.inner / w.outer;
    const float* from = x + w.start[1] + g * group * w.channel[1] + i * w.out[1] + j * w.in[1] + block * kColumns;
    float* to = y + w.start[0] + g * group * w.channel[0] + i * w.out[0] + j * w.in[0] + block * kColumns;
    const int64_t n = w.run - block * kColumns < kColumns ? w.run - block * kColumns : kColumns;
    int64_t at = 0;
    for (; at + kLanes <= n; at += kLanes) f(Full{}, from + at, to + at, g);
    if (at < n) f(Rest{n - at}, from + at, to + at, g);
  }
}

// sum over channels c < n of term(x[c]), in two levels
template <class P, class T>
REWOUND_INLINE V down(const P& part, const float* x, int64_t stride, int64_t n, T term) {
  V all = {};
  for (int64_t c = 0; c < n;) {
    V some = {};
    for (const int64_t end = c + kRowsAtOnce < n ? c + kRowsAtOnce : n; c < end; ++c)
      some += term(part.load(x + c * stride));
    all += some;
  }
  return all;
}

void norm_channels(const NormOp& op, const Frame& frame, int64_t task) {
  const Walk& w = op.walk;
  const int64_t group = op.group;
  const V count = splat(static_cast<float>(group));
  each_block(w, op.x.planes.channels / group, group, op.tasks, task, op.x.read(frame), op.y.write(frame),
             [&](const auto& part, const float* x, float* y, int64_t g) {
               V mean = {};
               if (!op.rms) mean = down(part, x, w.channel[1], group, [](V v) { return v; }) / count;
               const V variance = down(part, x, w.channel[1], group, [&](V v) { return (v - mean) * (v - mean); }) / count;
               const V factor = 1.0f / root(variance + op.eps);
               for (int64_t c = 0; c < group; ++c) {
                 V v = (part.load(x + c * w.channel[1]) - mean) * factor;
                 if (op.scale != nullptr) v = v * op.scale[g * group + c];
                 if (op.shift != nullptr) v = v + op.shift[g * group + c];
                 part.store(y + c * w.channel[0], v);
               }
             });
}

// f(row, n) for each run of pixels of channels [first, last) of an image
template <class F>
REWOUND_INLINE void each_row(const Planes& p, const float* x, int64_t image, int64_t first, int64_t last, F f) {
  const bool joined = p.pitch == p.width;
  for (int64_t c = first; c < last; ++c)
    for (int64_t r = 0; r < (joined ? 1 : p.height); ++r)
      f(x + c * p.stride + image * p.plane + p.lead + r * p.pitch, joined ? p.width * p.height : p.width);
}

template <class T>
REWOUND_INLINE double row_total(const float* row, int64_t n, T term) {
  double sum = 0.0;
  for (int64_t i = 0; i < n; i += kBlock) {  // lanes add few numbers before the sum goes on in double
    V lanes = {};
    each_vector(n - i < kBlock ? n - i : kBlock, [&](int64_t j, auto part) {
      const V v = term(part.load(row + i + j));
      V kept = {};
      // beyond the row's end terms do not count
      float buffer[kLanes];
      if constexpr (std::is_same_v<decltype(part), Full>) {
        kept = v;
      } else {
        store(buffer, v);
        kept = part.load(buffer);
      }
      lanes += kept;
    });
    sum += static_cast<double>(total(lanes));
  }
  return sum;
}

void norm_pixels(const NormOp& op, const Frame& frame, int64_t task) {
  const Planes &p = op.x.planes, &q = op.y.planes;
  const int64_t groups = p.channels / op.group;
  const Part units = part(groups * p.images, op.tasks, task);
  const float* x = op.x.read(frame);
  float* y = op.y.write(frame);
  const double count = static_cast<double>(op.group * p.height * p.width);
  for (int64_t unit = units.first; unit < units.last; ++unit) {
    const int64_t first = unit / p.images * op.group, last = first + op.group, image = unit % p.images;
    double sum = 0.0, squares = 0.0;
    if (!op.rms)
      each_row(p, x, image, first, last, [&](const float* row, int64_t n) {
        sum += row_total(row, n, [](V v) { return v; });
      });
    const float mean = static_cast<float>(sum / count);
    each_row(p, x, image, first, last, [&](const float* row, int64_t n) {
      squares += row_total(row, n, [&](V v) { return (v - mean) * (v - mean); });
    });
    const float factor = static_cast<float>(1.0 / __builtin_sqrt(squares / count + static_cast<double>(op.eps)));
    for (int64_t c = first; c < last; ++c) {
      const float scale = op.scale != nullptr ? op.scale[c] : 1.0f, shift = op.shift != nullptr ? op.shift[c] : 0.0f;
      for (int64_t r = 0; r < p.height; ++r) {
        const float* from = x + c * p.stride + image * p.plane + p.lead + r * p.pitch;
        float* to = y + c * q.stride + image * q.plane + q.lead + r * q.pitch;
        each_vector(p.width, [&](int64_t i, auto part) {
          part.store(to + i, (part.load(from + i) - mean) * factor * scale + shift);
        });
      }
    }
  }
}

// Guards are zeroed by a step of its own (program.cc): tasks here are no ranges of channels.
void norm(const NormOp& op, const Frame& frame, int64_t task) {
  op.pixels ? norm_pixels(op, frame, task) : norm_channels(op, frame, task);
}

void softmax_channels(const SoftmaxOp& op, const Frame& frame, int64_t task) {
  const Walk& w = op.walk;
  each_block(w, op.x.planes.channels / op.group, op.group, op.tasks, task, op.x.read(frame), op.y.write(frame),
             [&](const auto& part, const float* x, float* y, int64_t) {
               V most = part.load(x);
               for (int64_t c = 1; c < op.group; ++c) most = larger(most, part.load(x + c * w.channel[1]));
               V sum = {};
               for (int64_t c = 0; c < op.group;) {
                 V some = {};
                 for (const int64_t end = c + kRowsAtOnce < op.group ? c + kRowsAtOnce : op.group; c < end; ++c) {
                   const V e = exponential(part.load(x + c * w.channel[1]) - most);
                   if (!op.log) part.store(y + c * w.channel[0], e);
                   some += e;
                 }
                 sum += some;
               }
               const V logs = op.log ? logarithm(sum) : V{};
               for (int64_t c = 0; c < op.group; ++c) {
                 float* to = y + c * w.channel[0];
                 part.store(to, op.log ? (part.load(x + c * w.channel[1]) - most) - logs : part.load(to) / sum);
               }
             });
}

// Softmax over `rows` rows of n floats.
REWOUND_INLINE void softmax_rows(const float* x, int64_t pitch, float* y, int64_t y_pitch, int64_t rows, int64_t n,
                                 bool log) {
  float most = -kInfinity;
  for (int64_t r = 0; r < rows; ++r) most = Largest{}(most, along(x + r * pitch, n, Largest{}));
  double sum = 0.0;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < n; i += kBlock) {
      V lanes = {};
      const float* from = x + r * pitch + i;
      float* to = y + r * y_pitch + i;
      const int64_t m = n - i < kBlock ? n - i : kBlock;
      float rest = 0.0f;
      each_vector(m, [&](int64_t j, auto part) {
        const V e = exponential(part.load(from + j) - most);
        if (!log) part.store(to + j, e);
        if constexpr (std::is_same_v<decltype(part), Full>)
          lanes += e;
        else
          for (int64_t k = 0; k < part.n; ++k) rest += e[k];
      });
      sum += static_cast<double>(total(lanes) + rest);
    }
  const float whole = static_cast<float>(sum);
  const float logs = log ? static_cast<float>(__builtin_log(sum)) : 0.0f;
  for (int64_t r = 0; r < rows; ++r) {
    const float* from = x + r * pitch;
    float* to = y + r * y_pitch;
    each_vector(n, [&](int64_t j, auto part) {
      part.store(to + j, log ? (part.load(from + j) - most) - logs : part.load(to + j) / whole);
    });
  }
}

void softmax(const SoftmaxOp& op, const Frame& frame, int64_t task) {
  if (op.over == Over::kChannels) return softmax_channels(op, frame, task);
  const Planes &p = op.x.planes, &q = op.y.planes;
  const Part channels = part(p.channels, op.tasks, task);
  const float* x = op.x.read(frame);
  float* y = op.y.write(frame);
  const bool rows = op.over == Over::kRows;
  for (int64_t c = channels.first; c < channels.last; ++c)
    for (int64_t i = 0; i < p.images; ++i)
      for (int64_t r = 0; r < (rows ? p.height : 1); ++r)
        softmax_rows(x + c * p.stride + i * p.plane + p.lead + r * p.pitch, p.pitch,
                     y + c * q.stride + i * q.plane + q.lead + r * q.pitch, q.pitch, rows ? 1 : p.height, p.width, op.log);
  finish(op.y, y, channels);
}

}  // namespace
}  // namespace rewound
