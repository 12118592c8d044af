#include "program.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#include "dispatch.h"

namespace rewound {

namespace {

constexpr int64_t kLine = 64;
constexpr int64_t kMostFloats = int64_t{1} << 40;

std::string text(int64_t number) { return std::to_string(number); }

// What no operator can read or write wrongly: sizes, and room for a channel's planes.
void check_planes(const Planes& p) {
  for (const int64_t size : {p.channels, p.images, p.height, p.width})
    require(size >= 1 && size <= kMostFloats, "a size is " + text(size) + ", not at least 1");
  for (const int64_t step : {p.pitch, p.lead, p.plane, p.stride})
    require(step >= 0 && step <= kMostFloats, "pitch, lead, plane and stride are numbers of floats, not " + text(step));
}

}  // namespace

Floats::Floats(int64_t count) {
  // calloc gives large memory that the system has zeroed and nobody has touched.
  memory_ = std::calloc(static_cast<size_t>(times(count, sizeof(float)) + kLine), 1);
  if (memory_ == nullptr) throw std::bad_alloc();
  const auto address = reinterpret_cast<uintptr_t>(memory_);
  data_ = reinterpret_cast<float*>((address + kLine - 1) / kLine * kLine);
}

Floats::~Floats() { std::free(memory_); }

namespace {

std::atomic<int64_t> task_size{1 << 14};  // a microsecond or two

}  // namespace

void use_task_size(int64_t floats) {
  require(floats >= 1, "a task of " + text(floats) + " floats");
  task_size.store(floats);
}

int64_t parts(int64_t work) {
  constexpr int64_t kMost = 32;
  return std::clamp<int64_t>(work / task_size.load(), 1, kMost);
}

void require_shape(const Planes& p, int64_t channels, int64_t images, int64_t height, int64_t width, const char* role) {
  require(p.channels == channels && p.images == images && p.height == height && p.width == width,
          std::string(role) + " has " + text(p.channels) + " channels, " + text(p.images) + " images of " + text(p.height) +
              " x " + text(p.width) + "; expected " + text(channels) + ", " + text(images) + " of " + text(height) + " x " +
              text(width));
}

Program::Program(int64_t arena, std::vector<Port> inputs, std::vector<Port> outputs)
    : kernels_(rewound::kernels()), arena_(arena), inputs_(std::move(inputs)), outputs_(std::move(outputs)) {
  require(arena >= 0 && arena <= kMostFloats, "an arena of " + text(arena) + " floats");
  for (const auto* ports : {&inputs_, &outputs_})
    for (const Port& port : *ports)
      require(port.elements >= 0 && port.elements <= kMostFloats, "an array of " + text(port.elements) + " elements");
  for (const Port& port : outputs_) require(!port.ids, "outputs are float32");
}

void Program::open() const { require(!frozen_.load(), "the program has run: nothing can be added"); }

void Program::begin() {
  open();
  pending_.clear();
  pending_bytes_ = 0;
}

int64_t Program::value(int64_t offset, const Planes& p) {
  open();
  check_planes(p);
  require(p.pitch >= p.width, "pitch " + text(p.pitch) + " is less than width " + text(p.width));
  require(p.plane >= plus(p.lead, times(p.height, p.pitch)), "plane " + text(p.plane) + " is less than lead + height * pitch");
  require(p.stride >= times(p.images, p.plane), "stride " + text(p.stride) + " is less than images * plane");
  require(offset >= 0 && offset % 16 == 0, "offset " + text(offset) + " is not a multiple of 16");
  require(plus(offset, plus(times(p.channels, p.stride), p.lead)) <= arena_,
          "a value of " + text(p.channels) + " channels at offset " + text(offset) + " does not fit the arena of " +
              text(arena_) + " floats");
  Value value;
  value.planes = p;
  value.offset = offset;
  values_.push_back(value);
  return static_cast<int64_t>(values_.size()) - 1;
}

int64_t Program::constant(const float* data, int64_t count, const Planes& p) {
  open();
  check_planes(p);
  require(p.pitch >= p.width, "pitch " + text(p.pitch) + " is less than width " + text(p.width));
  require(p.plane >= plus(p.lead, times(p.height, p.pitch)), "plane " + text(p.plane) + " is less than lead + height * pitch");
  require(p.stride >= times(p.images, p.plane), "stride " + text(p.stride) + " is less than images * plane");
  require(plus(times(p.channels, p.stride), p.lead) == count,
          "a constant of " + text(count) + " floats for a geometry of channels * stride + lead = " +
              text(plus(times(p.channels, p.stride), p.lead)));
  auto memory = std::make_unique<Floats>(plus(count, 2 * kSlack));
  std::memcpy(memory->data() + kSlack, data, static_cast<size_t>(count) * sizeof(float));
  Value value;
  value.planes = p;
  value.memory = Memory::kConstant;
  value.constant = memory->data() + kSlack;
  kept_.push_back(std::move(memory));
  constant_bytes_ += count * static_cast<int64_t>(sizeof(float));
  values_.push_back(value);
  return static_cast<int64_t>(values_.size()) - 1;
}

int64_t Program::port(Memory memory, int64_t index, int64_t offset, const Planes& p) {
  open();
  check_planes(p);
  const auto& ports = memory == Memory::kInput ? inputs_ : outputs_;
  const std::string role = memory == Memory::kInput ? "input " : "output ";
  require(index >= 0 && index < static_cast<int64_t>(ports.size()), "there is no " + role + text(index));
  const Port& port = ports[static_cast<size_t>(index)];
  require(!port.ids, role + text(index) + " is int64: only embedding reads it");
  require(p.lead == 0, "lead of " + role + text(index) + " is not 0");
  require(offset >= 0 && offset <= kMostFloats, "offset " + text(offset));
  Value value;
  value.planes = p;
  value.memory = memory;
  value.index = static_cast<int32_t>(index);
  value.offset = offset;
  inside(value, 0, {p.channels, p.images, p.height, p.width}, {p.stride, p.plane, p.pitch, 1}, role.c_str());
  values_.push_back(value);
  return static_cast<int64_t>(values_.size()) - 1;
}

const Value& Program::readable(int64_t id, const char* role) const {
  require(id >= 0 && id < static_cast<int64_t>(values_.size()), std::string(role) + ": there is no value " + text(id));
  return values_[static_cast<size_t>(id)];
}

const Value& Program::writable(int64_t id, const char* role) const {
  const Value& value = readable(id, role);
  require(value.memory == Memory::kArena || value.memory == Memory::kOutput,
          std::string(role) + ": value " + text(id) + " is for reading only");
  return value;
}

int64_t Program::extent(const Value& value) const {
  switch (value.memory) {
    case Memory::kInput: return inputs_[static_cast<size_t>(value.index)].elements - value.offset;
    case Memory::kOutput: return outputs_[static_cast<size_t>(value.index)].elements - value.offset;
    default: return value.planes.floats();
  }
}

void Program::inside(const Value& value, int64_t start, const std::vector<int64_t>& sizes,
                     const std::vector<int64_t>& strides, const char* role) const {
  int64_t least = start, most = start;
  for (size_t i = 0; i < sizes.size(); ++i) {
    require(sizes[i] >= 1, std::string(role) + ": a size is " + text(sizes[i]) + ", not at least 1");
    const int64_t reach = scaled(sizes[i] - 1, strides[i]);
    (reach < 0 ? least : most) = plus(reach < 0 ? least : most, reach);
  }
  require(least >= 0 && most < extent(value), std::string(role) + " reaches from element " + text(least) + " to " +
                                                  text(most) + " of " + text(extent(value)));
}

const float* Program::keep(const float* data, int64_t count) {
  auto memory = std::make_unique<Floats>(count);
  if (count > 0) std::memcpy(memory->data(), data, static_cast<size_t>(count) * sizeof(float));
  pending_.push_back(std::move(memory));
  pending_bytes_ += count * static_cast<int64_t>(sizeof(float));
  return pending_.back()->data();
}

const float* Program::keep_per_channel(const std::vector<float>& data, int64_t channels, const char* role) {
  if (data.empty()) return nullptr;
  require(static_cast<int64_t>(data.size()) == channels, std::string(role) + " has " +
                                                             text(static_cast<int64_t>(data.size())) + " numbers for " +
                                                             text(channels) + " channels");
  return keep(data.data(), channels);
}

int64_t Program::weight_bytes() const {
  int64_t bytes = constant_bytes_;
  for (const Operator& added : operators_) bytes += added.bytes;
  return bytes;
}

}  // namespace rewound
