// Building products with fixed weights.
#include "program.h"

namespace rewound {

namespace {

std::string text(int64_t number) { return std::to_string(number); }

}  // namespace

void Program::conv(int64_t x, int64_t y, int64_t residual, ConvSpec spec, const Weight& weight, const float* bias,
                   Schedule schedule, const std::string& name) {
  begin();
  const Value from = readable(x, "x"), to = writable(y, "y");
  require(from.guarded() && to.memory == Memory::kArena, "conv reads and writes values of the arena");
  Value added;
  if (residual >= 0) {
    added = readable(residual, "residual");
    require(added.guarded(), "conv reads and writes values of the arena");
    require(added.planes.channels == to.planes.channels && added.planes.stride == to.planes.stride &&
                same_place(added.planes, to.planes),
            "the residual stands otherwise than y");
  }
  // Small enough that no product of them overflows in `pack`.
  for (const auto& numbers : {spec.kernel, spec.stride, spec.padding, spec.dilation})
    for (int i = 0; i < 2; ++i)
      require(numbers[i] >= 0 && numbers[i] < 65536,
              "kernel, stride, padding and dilation are less than 65536, not " + text(numbers[i]));
  for (const Planes* planes : {&from.planes, &to.planes})
    require(times(planes->channels, planes->stride) < int64_t{1} << 29, "x or y is larger than 2 GiB");
  spec.in = from.planes;
  spec.out = to.planes;
  constexpr int64_t kMacs = 6;  // in the time that another operator takes for a float
  const auto made = std::make_shared<const Conv>(
      pack(spec, weight, bias, schedule, kernels_.lanes, [](int64_t macs) { return parts(macs / kMacs); }));
  Operator op;
  op.kind = "conv";
  op.name = name;
  op.tasks = made->op.tasks;
  op.bytes = made->bytes;
  op.macs = made->macs;
  const Schedule& chosen = made->schedule;
  op.schedule = {chosen.rows, chosen.vectors, chosen.block, chosen.lanes, chosen.aligned};
  op.whole = true;
  op.run = [made, from, to, added, residual, kernel = kernels_.conv](const Frame& frame, int64_t task) {
    kernel(made->op, from.read(frame), to.write(frame), residual >= 0 ? added.read(frame) : nullptr, task);
  };
  operators_.push_back(std::move(op));
}

void Program::matvec(int64_t x, int64_t y, int64_t residual, const Weight& weight, const float* bias,
                     Activation activation, const std::string& name) {
  begin();
  const Value from = readable(x, "x"), to = writable(y, "y");
  Value added;
  const auto vector = [](const Value& value, int64_t size, const char* role) {
    require_shape(value.planes, size, 1, 1, 1, role);
    require(value.guarded() && value.planes.stride == 1 && value.planes.lead == 0,
            std::string(role) + " is no vector: its stride is " + text(value.planes.stride) + ", not 1");
  };
  vector(from, weight.row, "x");
  vector(to, weight.out, "y");
  require(to.memory == Memory::kArena, "matvec writes values of the arena");
  if (residual >= 0) {
    added = readable(residual, "residual");
    vector(added, weight.out, "residual");
  }
  const auto made = std::make_shared<const Matvec>(pack_matvec(weight, bias, activation));
  Operator op;
  op.kind = "matvec";
  op.name = name;
  op.tasks = made->op.tasks;
  op.bytes = made->bytes;
  op.macs = made->macs;
  op.schedule = {made->op.starts == nullptr ? 0 : 1, made->op.panel};
  op.run = [made, from, to, added, residual, kernel = kernels_.matvec](const Frame& frame, int64_t task) {
    kernel(made->op, from.read(frame), to.write(frame), residual >= 0 ? added.read(frame) : nullptr, task);
  };
  operators_.push_back(std::move(op));
}

}  // namespace rewound
