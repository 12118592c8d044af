// Elementwise operators: unary, per-channel affine, with a number, of two values with broadcasting; and setting to a number.
#pragma once

#include "ops_math.h"

namespace rewound {
namespace {

REWOUND_INLINE void set(float* p, int64_t n, float number) {
  for (int64_t i = 0; i < n; ++i) p[i] = number;
}

// Zero what is no pixel in channels [part.first, part.last); behind the last channel of all, the tail too.
[[gnu::noinline]] void zero_guards(const Planes& p, float* y, Part channels) {
  const int64_t rows = p.height * p.pitch, used = p.images * p.plane;
  const bool rows_guarded = p.pitch > p.width;
  for (int64_t c = channels.first; c < channels.last; ++c) {
    float* at = y + c * p.stride;
    if (rows_guarded || p.lead > 0 || p.plane > rows) {
      for (int64_t i = 0; i < p.images; ++i) {
        float* plane = at + i * p.plane;
        set(plane, p.lead, 0.0f);
        float* right = plane + p.lead + p.width;
        if (p.pitch == p.width + 1)
          for (int64_t r = 0; r < p.height; ++r) right[r * p.pitch] = 0.0f;
        else if (rows_guarded)
          for (int64_t r = 0; r < p.height; ++r) set(right + r * p.pitch, p.pitch - p.width, 0.0f);
        set(plane + p.lead + rows, p.plane - p.lead - rows, 0.0f);
      }
    }
    set(at + used, p.stride - used, 0.0f);
  }
  if (channels.last == p.channels) set(y + p.channels * p.stride, p.lead, 0.0f);
}

// The guards of channels of a value that has some.
REWOUND_INLINE void finish(const Value& y, float* at, Part channels) {
  if (y.guarded()) zero_guards(y.planes, at, channels);
}

REWOUND_INLINE V power(V a, V b) {
  V y;
  for (int i = 0; i < kLanes; ++i) y[i] = __builtin_powf(a[i], b[i]);
  return y;
}

// f(a, b) for the kind, chosen once.
template <class Then>
REWOUND_INLINE void with_kind(Kind kind, Then then) {
  switch (kind) {
    case Kind::kAdd: return then([](V a, V b) { return a + b; });
    case Kind::kSub: return then([](V a, V b) { return a - b; });
    case Kind::kMul: return then([](V a, V b) { return a * b; });
    case Kind::kDiv: return then([](V a, V b) { return a / b; });
    case Kind::kMaximum: return then([](V a, V b) { return larger(a, b); });
    case Kind::kMinimum: return then([](V a, V b) { return smaller(a, b); });
    case Kind::kPow: return then([](V a, V b) { return power(a, b); });
  }
}

[[gnu::noinline]] void combine(Kind kind, float* y, const float* a, bool a_moves, const float* b, bool b_moves,
                               int64_t n) {
  with_kind(kind, [&](auto f) {
    if (a_moves && b_moves) {
      each_vector(n, [&](int64_t i, auto part) { part.store(y + i, f(part.load(a + i), part.load(b + i))); });
    } else if (a_moves) {
      const V second = splat(*b);
      each_vector(n, [&](int64_t i, auto part) { part.store(y + i, f(part.load(a + i), second)); });
    } else {
      const V first = splat(*a);
      each_vector(n, [&](int64_t i, auto part) {
        part.store(y + i, f(first, b_moves ? part.load(b + i) : splat(*b)));
      });
    }
  });
}

// Blocks that stay in the L1 cache between an operator and its activation.
constexpr int64_t kBlock = 2048;

REWOUND_INLINE void elementwise_run(const ElementwiseOp& op, int64_t channel, float* y, const float* a, const float* b,
                                    int64_t n) {
  const bool a_moves = op.walk.step[1] != 0, b_moves = op.walk.step[2] != 0;
  for (int64_t i = 0; i < n; i += kBlock) {
    const int64_t m = n - i < kBlock ? n - i : kBlock;
    float* to = y + i;
    const float* from = a + (a_moves ? i : 0);
    switch (op.what) {
      case ElementwiseOp::What::kUnary:
        if (to != from) each_vector(m, [&](int64_t j, auto part) { part.store(to + j, part.load(from + j)); });
        break;
      case ElementwiseOp::What::kAffine: {
        const V scale = splat(op.scale != nullptr ? op.scale[channel] : 1.0f);
        const V shift = splat(op.shift != nullptr ? op.shift[channel] : 0.0f);
        if (op.shift == nullptr)  // keeps the sign of a zero
          each_vector(m, [&](int64_t j, auto part) { part.store(to + j, part.load(from + j) * scale); });
        else
          each_vector(m, [&](int64_t j, auto part) { part.store(to + j, part.load(from + j) * scale + shift); });
        break;
      }
      case ElementwiseOp::What::kScalar:
        if (op.reverse)
          combine(op.kind, to, &op.number, false, from, true, m);
        else
          combine(op.kind, to, from, true, &op.number, false, m);
        break;
      case ElementwiseOp::What::kBinary:
        combine(op.kind, to, from, a_moves, b + (b_moves ? i : 0), b_moves, m);
        break;
    }
    activate(op.activation, to, m);
  }
}

void elementwise(const ElementwiseOp& op, const Frame& frame, int64_t task) {
  const Walk& w = op.walk;
  const Part channels = part(w.channels, op.tasks, task);
  float* y = op.y.write(frame);
  const float* a = op.a.read(frame);
  const float* b = op.what == ElementwiseOp::What::kBinary ? op.b.read(frame) : a;
  const bool joined = w.joined;
  for (int64_t c = channels.first; c < channels.last; c = joined ? channels.last : c + 1) {
    const int64_t n = joined ? w.run * (channels.last - channels.first) : w.run;
    for (int64_t i = 0; i < w.outer; ++i)
      for (int64_t j = 0; j < w.inner; ++j)
        elementwise_run(op, c, y + w.start[0] + c * w.channel[0] + i * w.out[0] + j * w.in[0],
                        a + w.start[1] + c * w.channel[1] + i * w.out[1] + j * w.in[1],
                        b + w.start[2] + c * w.channel[2] + i * w.out[2] + j * w.in[2], n);
  }
  if (op.guards)
    zero_guards(op.y.planes, y, channels);
  else if (op.y.guarded() && channels.last == op.y.planes.channels)
    zero_guards(op.y.planes, y, {channels.last, channels.last});
}

void fill(const FillOp& op, const Frame& frame, int64_t task) {
  const Planes& p = op.y.planes;
  const Part channels = part(p.channels, op.tasks, task);
  float* y = op.y.write(frame);
  if (op.pixels)
    for (int64_t c = channels.first; c < channels.last; ++c)
      for (int64_t i = 0; i < p.images; ++i)
        for (int64_t r = 0; r < p.height; ++r)
          set(y + c * p.stride + i * p.plane + p.lead + r * p.pitch, p.width, op.number);
  finish(op.y, y, channels);
}

}  // namespace
}  // namespace rewound
