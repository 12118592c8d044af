// Building elementwise operators: which loops can be joined into long runs.
#include <cmath>
#include <utility>

#include "program.h"

namespace rewound {

Walk walk(const Value& y, const Value& a, const Value* b, bool join, bool whole_planes) {
  const Value* values[Walk::kMost] = {&y, &a, b != nullptr ? b : &a};
  const Planes& p = y.planes;
  bool alike = whole_planes, planes = whole_planes;  // all in the same place; those that are not are one pixel
  for (const Value* each : values) {
    const Planes& q = each->planes;
    const bool same = each->guarded() && same_place(q, p);
    alike = alike && same && q.stride == p.stride && q.channels == p.channels;
    planes = planes && (same || (each != &y && q.height == 1 && q.width == 1 && p.height * p.width > 1));
  }
  Walk w;
  w.channels = p.channels;
  w.whole = alike;
  w.outer = alike ? 1 : p.images;
  w.inner = alike || planes ? 1 : p.height;
  w.run = alike ? p.stride : planes ? p.plane : p.width;
  for (int i = 0; i < Walk::kMost; ++i) {
    const Planes& q = values[i]->planes;
    const bool pixel = q.height == 1 && q.width == 1 && !same_place(q, p);
    w.start[i] = alike || (planes && !pixel) ? 0 : q.lead;
    w.channel[i] = q.channels == 1 && p.channels > 1 ? 0 : q.stride;
    w.out[i] = q.images == 1 ? 0 : q.plane;
    w.in[i] = q.height == 1 ? 0 : q.pitch;
    w.step[i] = q.width == 1 && w.run > 1 && !(alike || (planes && !pixel)) ? 0 : 1;
  }
  // Join an axis to the run where all follow upon each other.
  const auto follows = [&](const int64_t* strides) {
    for (int i = 0; i < Walk::kMost; ++i)
      if (strides[i] != w.run * w.step[i]) return false;
    return true;
  };
  const auto one_wide = [&](const int64_t* strides) {  // runs of one element: the axis itself may be the run
    for (int i = 0; i < Walk::kMost; ++i)
      if (strides[i] != 0 && strides[i] != 1) return false;
    return w.run == 1 && strides[0] == 1;
  };
  for (auto [count, strides] : {std::pair{&w.inner, w.in}, std::pair{&w.outer, w.out}}) {
    if (*count == 1) continue;
    if (strides == w.out && w.inner > 1) break;
    if (one_wide(strides))
      for (int i = 0; i < Walk::kMost; ++i) w.step[i] = strides[i];
    else if (!follows(strides))
      continue;
    w.run *= *count;
    *count = 1;
  }
  w.joined = join && w.outer == 1 && w.inner == 1 && follows(w.channel);
  return w;
}

namespace {

// f(0) = 0, so that zero guards stay zero by themselves.
bool keeps_zero(const Activation& activation) {
  switch (activation.kind) {
    case Act::kSigmoid:
    case Act::kHardSigmoid:
    case Act::kExp:
    case Act::kRsqrt:
    case Act::kLog:
    case Act::kSoftplus:
    case Act::kReciprocal:
    case Act::kCos: return false;
    case Act::kClamp: return activation.a <= 0.0f && activation.b >= 0.0f;
    case Act::kLeakyRelu:
    case Act::kElu: return std::isfinite(activation.a);
    default: return true;
  }
}

bool broadcasts(int64_t size, int64_t to) { return size == to || size == 1; }

}  // namespace

void Program::elementwise(ElementwiseOp op, const std::string& name) {
  const bool binary = op.what == ElementwiseOp::What::kBinary, affine = op.what == ElementwiseOp::What::kAffine;
  const bool preserving =
      keeps_zero(op.activation) && op.shift == nullptr && op.what != ElementwiseOp::What::kScalar &&
      (!binary || (op.kind != Kind::kDiv && op.kind != Kind::kPow));
  op.walk = walk(op.y, op.a, binary ? &op.b : nullptr, !affine, true);
  // An infinite scale makes NaN of a zero.
  op.guards = op.y.guarded() && has_guards(op.y.planes) && !(op.walk.whole && preserving && !affine);
  constexpr const char* kNames[] = {"unary", "affine", "scalar", "binary"};
  int64_t cost = op.kind == Kind::kPow ? 16 : 1;
  if (op.activation.kind > Act::kLeakyRelu) cost += 8;
  const Planes& p = op.y.planes;
  add(kNames[static_cast<int>(op.what)], name, op, kernels_.elementwise, times(cost, times(p.channels, p.pixels())));
}

void Program::unary(int64_t x, int64_t y, Activation activation, const std::string& name) {
  begin();
  ElementwiseOp op{.what = ElementwiseOp::What::kUnary, .y = writable(y, "y"), .a = readable(x, "x"), .b = {}, .walk = {}};
  const Planes& p = op.a.planes;
  require_shape(op.y.planes, p.channels, p.images, p.height, p.width, "y");
  op.activation = activation;
  elementwise(op, name);
}

void Program::affine(int64_t x, int64_t y, const std::vector<float>& scale, const std::vector<float>& shift,
                     Activation activation, const std::string& name) {
  begin();
  ElementwiseOp op{.what = ElementwiseOp::What::kAffine, .y = writable(y, "y"), .a = readable(x, "x"), .b = {}, .walk = {}};
  const Planes& p = op.a.planes;
  require_shape(op.y.planes, p.channels, p.images, p.height, p.width, "y");
  op.scale = keep_per_channel(scale, p.channels, "scale");
  op.shift = keep_per_channel(shift, p.channels, "shift");
  op.activation = activation;
  elementwise(op, name);
}

void Program::scalar(int64_t x, int64_t y, Kind kind, float number, bool reverse, Activation activation,
                     const std::string& name) {
  begin();
  ElementwiseOp op{.what = ElementwiseOp::What::kScalar, .y = writable(y, "y"), .a = readable(x, "x"), .b = {}, .walk = {}};
  const Planes& p = op.a.planes;
  require_shape(op.y.planes, p.channels, p.images, p.height, p.width, "y");
  op.kind = kind;
  op.number = number;
  op.reverse = reverse;
  op.activation = activation;
  elementwise(op, name);
}

void Program::binary(int64_t a, int64_t b, int64_t y, Kind kind, Activation activation, const std::string& name) {
  begin();
  ElementwiseOp op{.what = ElementwiseOp::What::kBinary, .y = writable(y, "y"), .a = readable(a, "a"), .b = readable(b, "b"),
                   .walk = {}};
  const Planes &p = op.y.planes;
  for (const Planes* q : {&op.a.planes, &op.b.planes})
    require(broadcasts(q->channels, p.channels) && broadcasts(q->images, p.images) && broadcasts(q->height, p.height) &&
                broadcasts(q->width, p.width),
            std::string(q == &op.a.planes ? "a" : "b") + " does not broadcast to y: channels, images, height and width are "
                "y's or 1");
  op.kind = kind;
  op.activation = activation;
  elementwise(op, name);
}

void Program::clear(int64_t value, bool everything, const std::string& name) {
  begin();
  FillOp op{.y = writable(value, "value"), .number = 0.0f, .pixels = everything};
  add("clear", name, op, kernels_.fill, op.y.planes.channels * (everything ? op.y.planes.pixels() : op.y.planes.images));
}

void Program::fill(int64_t value, float number, const std::string& name) {
  begin();
  FillOp op{.y = writable(value, "value"), .number = number, .pixels = true};
  add("fill", name, op, kernels_.fill, times(op.y.planes.channels, op.y.planes.pixels()));
}

void Program::zero_guards(const Value& y, const std::string& name) {
  if (!y.guarded() || !has_guards(y.planes)) return;
  const FillOp op{.y = y, .number = 0.0f, .pixels = false};
  constexpr int64_t kMiss = 256;  // a guard is a cache line that is not there: as long as so many floats
  add("clear", name, op, kernels_.fill, y.planes.channels * y.planes.images * kMiss);
}

}  // namespace rewound
