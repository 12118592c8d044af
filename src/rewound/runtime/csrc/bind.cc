// The one border between Python and the native part: see _native.pyi for what everything means.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <limits>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "decode_bind.h"
#include "dispatch.h"
#include "program.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace rewound {
namespace {

using Array = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using Starts = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Places = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using ReadAny = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;
using WriteAny = nb::ndarray<nb::c_contig, nb::device::cpu>;
using Pair = std::tuple<int64_t, int64_t>;
using Geometry = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>;

// What a Python object holds; another type is refused like another size.
template <class T>
T held(nb::handle object, const char* wanted) {
  T found;
  require(nb::try_cast<T>(object, found), std::string("expected ") + wanted);
  return found;
}

const std::map<std::string, Act>& named() {
  static const std::map<std::string, Act> names = {
      {"leaky_relu", Act::kLeakyRelu}, {"elu", Act::kElu}, {"gelu", Act::kGelu}, {"gelu_tanh", Act::kGeluTanh},
      {"quick_gelu", Act::kQuickGelu}, {"silu", Act::kSilu}, {"hardswish", Act::kHardSwish},
      {"hardsigmoid", Act::kHardSigmoid}, {"sigmoid", Act::kSigmoid}, {"tanh", Act::kTanh}, {"exp", Act::kExp},
      {"erf", Act::kErf}, {"sqrt", Act::kSqrt}, {"rsqrt", Act::kRsqrt}, {"neg", Act::kNeg}, {"abs", Act::kAbs},
      {"log", Act::kLog}, {"softplus", Act::kSoftplus}, {"mish", Act::kMish}, {"reciprocal", Act::kReciprocal},
      {"square", Act::kSquare}, {"sin", Act::kSin}, {"cos", Act::kCos}};
  return names;
}

Activation activation_of(const std::optional<nb::sequence>& given) {
  if (!given) return {};
  constexpr float kInf = std::numeric_limits<float>::infinity();
  std::vector<nb::object> parts;
  for (nb::handle part : *given) parts.push_back(nb::borrow(part));
  require(!parts.empty(), "an activation is a list that begins with its name");
  const auto name = held<std::string>(parts[0], "the name of an activation");
  const auto number = [&](size_t i) {
    require(parts.size() > i, "activation '" + name + "' lacks a number");
    return parts[i].is_none() ? (i == 1 ? -kInf : kInf) : held<float>(parts[i], "a number of an activation");
  };
  if (name == "relu") return {Act::kClamp, 0.0f, kInf};
  if (name == "relu6") return {Act::kClamp, 0.0f, 6.0f};
  if (name == "clamp") return {Act::kClamp, number(1), number(2)};
  const auto found = named().find(name);
  require(found != named().end(), "there is no activation '" + name + "' (activations() lists them)");
  if (found->second == Act::kLeakyRelu || found->second == Act::kElu) return {found->second, number(1), 0.0f};
  return {found->second, 0.0f, 0.0f};
}

std::vector<std::string> activations() {
  std::vector<std::string> names = {"clamp", "relu", "relu6"};
  for (const auto& [name, act] : named()) names.push_back(name);
  return names;
}

// What a weight's arrays hold; they live as long as the caller's arguments.
struct Given {
  Weight weight;
  std::vector<nb::object> alive;
};

Given weight_of(nb::object given, int64_t out, int64_t row) {
  Given found;
  require(out >= 1 && row >= 1, "a weight has at least one output and one input");
  found.weight.out = out;
  found.weight.row = row;
  if (nb::isinstance<nb::tuple>(given)) {
    const auto parts = nb::cast<nb::tuple>(given);
    require(parts.size() == 3, "a sparse weight is (starts, places, values)");
    const auto starts = held<Starts>(parts[0], "starts: an int64 array of one axis");
    const auto places = held<Places>(parts[1], "places: an int32 array of one axis");
    const auto values = held<Array>(parts[2], "values: a float32 array");
    require(static_cast<int64_t>(starts.size()) == out + 1,
            std::to_string(starts.size()) + " starts for " + std::to_string(out) + " rows (one more than rows is right)");
    require(places.size() == values.size(), "as many places as values");
    require(starts.data()[0] == 0, "the first row starts at " + std::to_string(starts.data()[0]));
    for (int64_t o = 0; o < out; ++o)  // before any row is looked at: a row must not end behind the values
      require(starts.data()[o] <= starts.data()[o + 1], "row " + std::to_string(o) + " ends before it starts");
    require(starts.data()[out] == static_cast<int64_t>(values.size()), "the last start is not the number of values");
    found.weight.starts = starts.data();
    found.weight.places = places.data();
    found.weight.values = values.data();
    found.alive = {nb::cast(starts), nb::cast(places), nb::cast(values)};
  } else {
    const auto values = held<Array>(given, "a weight: a float32 array, or (starts, places, values)");
    require(static_cast<int64_t>(values.size()) == times(out, row),
            "a dense weight of " + std::to_string(values.size()) + " numbers for " + std::to_string(out) + " x " +
                std::to_string(row));
    found.weight.starts = nullptr;
    found.weight.places = nullptr;
    found.weight.values = values.data();
    found.alive = {nb::cast(values)};
  }
  return found;
}

const float* bias_of(const std::optional<Array>& bias, int64_t out) {
  if (!bias) return nullptr;
  require(static_cast<int64_t>(bias->size()) == out,
          "a bias of " + std::to_string(bias->size()) + " numbers for " + std::to_string(out) + " outputs");
  return bias->data();
}

std::vector<float> vector_of(const std::optional<Array>& array) {
  return array ? std::vector<float>(array->data(), array->data() + array->size()) : std::vector<float>();
}

Planes planes_of(int64_t channels, int64_t images, int64_t height, int64_t width, int64_t pitch, int64_t lead,
                 int64_t plane, int64_t stride) {
  return {channels, images, height, width, pitch, lead, plane, stride};
}

Kind kind_of(const std::string& name) {
  static const std::map<std::string, Kind> kinds = {
      {"add", Kind::kAdd}, {"sub", Kind::kSub}, {"mul", Kind::kMul}, {"div", Kind::kDiv},
      {"maximum", Kind::kMaximum}, {"minimum", Kind::kMinimum}, {"pow", Kind::kPow}};
  const auto found = kinds.find(name);
  require(found != kinds.end(), "there is no kind '" + name + "' (add, sub, mul, div, maximum, minimum, pow)");
  return found->second;
}

bool is_max(const std::string& kind) {
  require(kind == "max" || kind == "mean", "kind is 'max' or 'mean', not '" + kind + "'");
  return kind == "max";
}

std::vector<Port> ports_of(const std::vector<std::tuple<std::string, int64_t>>& given) {
  std::vector<Port> ports;
  for (const auto& [dtype, elements] : given) {
    require(dtype == "float32" || dtype == "int64", "dtype is 'float32' or 'int64', not '" + dtype + "'");
    ports.push_back({dtype == "int64", elements});
  }
  return ports;
}

// Addresses of a run's arrays, checked.
template <class Pointer, class Arrays>
std::vector<Pointer> addresses(const Arrays& arrays, const std::vector<Port>& ports, int64_t groups,
                               const char* role) {
  require(arrays.size() == ports.size(), std::to_string(arrays.size()) + " arrays for " + std::to_string(ports.size()) +
                                             " " + role + "s");
  std::vector<Pointer> found;
  for (size_t i = 0; i < ports.size(); ++i) {
    const auto dtype = ports[i].ids ? nb::dtype<int64_t>() : nb::dtype<float>();
    require(arrays[i].dtype() == dtype,
            std::string(role) + " " + std::to_string(i) + " is not " + (ports[i].ids ? "int64" : "float32"));
    require(static_cast<int64_t>(arrays[i].size()) == times(groups, ports[i].elements),
            std::string(role) + " " + std::to_string(i) + " has " + std::to_string(arrays[i].size()) + " elements, not " +
                std::to_string(groups) + " groups of " + std::to_string(ports[i].elements));
    found.push_back(static_cast<Pointer>(arrays[i].data()));
  }
  return found;
}

void run(Program& program, const std::vector<ReadAny>& inputs, const std::vector<WriteAny>& outputs, int64_t groups, int threads) {
  require(groups >= 1, "groups is " + std::to_string(groups) + ", not at least 1");
  const auto from = addresses<const void*>(inputs, program.inputs(), groups, "input");
  const auto to = addresses<void*>(outputs, program.outputs(), groups, "output");
  nb::gil_scoped_release release;
  program.run(from, to, groups, threads);
}

std::vector<int64_t> profile(Program& program, const std::vector<ReadAny>& inputs, const std::vector<WriteAny>& outputs,
                             int threads) {
  const auto from = addresses<const void*>(inputs, program.inputs(), 1, "input");
  const auto to = addresses<void*>(outputs, program.outputs(), 1, "output");
  std::vector<int64_t> nanoseconds(program.operators().size());
  nb::gil_scoped_release release;
  program.run(from, to, 1, threads, &nanoseconds);
  return nanoseconds;
}

nb::list operators(const Program& program) {
  nb::list rows;
  for (const Operator& op : program.operators()) {
    nb::dict row;
    row["kind"] = op.kind;
    row["name"] = op.name;
    row["tasks"] = op.tasks;
    row["bytes"] = op.bytes;
    row["macs"] = op.macs;
    row["schedule"] = op.schedule;
    rows.append(row);
  }
  return rows;
}

void conv(Program& program, int64_t x, int64_t y, nb::object weight,
          const std::tuple<int64_t, int64_t, int64_t, int64_t>& shape, const std::optional<Array>& bias,
          std::optional<int64_t> residual, int64_t groups, Pair stride, Pair padding, Pair dilation,
          const std::optional<nb::sequence>& activation, const std::optional<std::vector<int64_t>>& schedule,
          const std::string& name) {
  const auto [out, in, kh, kw] = shape;
  const Given given = weight_of(std::move(weight), out, times(in, times(kh, kw)));
  ConvSpec spec;
  spec.groups = groups;
  spec.kernel[0] = kh, spec.kernel[1] = kw;
  spec.stride[0] = std::get<0>(stride), spec.stride[1] = std::get<1>(stride);
  spec.padding[0] = std::get<0>(padding), spec.padding[1] = std::get<1>(padding);
  spec.dilation[0] = std::get<0>(dilation), spec.dilation[1] = std::get<1>(dilation);
  spec.activation = activation_of(activation);
  Schedule chosen;
  if (schedule) {
    require(schedule->size() == 3 || schedule->size() == 5, "a schedule is (rows, vectors, block[, lanes, aligned])");
    for (const int64_t part : *schedule) require(part >= 0, "a schedule has no negative numbers");
    chosen = {(*schedule)[0], (*schedule)[1], (*schedule)[2]};
    if (schedule->size() == 5) chosen.lanes = (*schedule)[3], chosen.aligned = (*schedule)[4];
  }
  program.conv(x, y, residual.value_or(-1), spec, given.weight, bias_of(bias, out), chosen, name);
}

}  // namespace
}  // namespace rewound

using namespace rewound;  // NOLINT: the module below names little else

NB_MODULE(_native, m) {
  m.doc() = "Sparse kernels and the engine's executor (src/rewound/runtime/csrc).";
  m.def("instruction_set", [] { return std::string(kernels().name); });
  m.def("instruction_sets", &available);
  m.def("use_instruction_set", &use, "name"_a);
  m.def("use_task_size", &use_task_size, "floats"_a);
  m.def("lanes", [] { return kernels().lanes; });
  m.def("activations", &activations);
  m.attr("SLACK") = Program::kSlack;
  bind_decoders(m);

  nb::register_exception_translator(
      [](const std::exception_ptr& p, void*) {
        try {
          std::rethrow_exception(p);
        } catch (const Outside& error) {
          PyErr_SetString(PyExc_IndexError, error.what());
        }
      },
      nullptr);

  nb::class_<Program>(m, "Program")
      .def("__init__",
           [](Program* self, int64_t arena, const std::vector<std::tuple<std::string, int64_t>>& inputs,
              const std::vector<std::tuple<std::string, int64_t>>& outputs) {
             new (self) Program(arena, ports_of(inputs), ports_of(outputs));
           },
           "arena"_a, "inputs"_a = nb::make_tuple(), "outputs"_a = nb::make_tuple())
      .def("value",
           [](Program& p, int64_t offset, int64_t channels, int64_t images, int64_t height, int64_t width, int64_t pitch,
              int64_t lead, int64_t plane, int64_t stride) {
             return p.value(offset, planes_of(channels, images, height, width, pitch, lead, plane, stride));
           },
           "offset"_a, "channels"_a, "images"_a, "height"_a, "width"_a, "pitch"_a, "lead"_a, "plane"_a, "stride"_a)
      .def("constant",
           [](Program& p, const Array& array, const Geometry& g) {
             return p.constant(array.data(), static_cast<int64_t>(array.size()), std::apply(planes_of, g));
           },
           "array"_a, "geometry"_a)
      .def("input",
           [](Program& p, int64_t index, int64_t offset, int64_t channels, int64_t images, int64_t height, int64_t width,
              int64_t pitch, int64_t plane, int64_t stride) {
             return p.port(Memory::kInput, index, offset, planes_of(channels, images, height, width, pitch, 0, plane, stride));
           },
           "index"_a, "offset"_a, "channels"_a, "images"_a, "height"_a, "width"_a, "pitch"_a, "plane"_a, "stride"_a)
      .def("output",
           [](Program& p, int64_t index, int64_t offset, int64_t channels, int64_t images, int64_t height, int64_t width,
              int64_t pitch, int64_t plane, int64_t stride) {
             return p.port(Memory::kOutput, index, offset,
                           planes_of(channels, images, height, width, pitch, 0, plane, stride));
           },
           "index"_a, "offset"_a, "channels"_a, "images"_a, "height"_a, "width"_a, "pitch"_a, "plane"_a, "stride"_a)
      .def("conv", &conv, "x"_a, "y"_a, "weight"_a, "shape"_a, "bias"_a = nb::none(), "residual"_a = nb::none(),
           "groups"_a = 1, "stride"_a = nb::make_tuple(1, 1), "padding"_a = nb::make_tuple(0, 0),
           "dilation"_a = nb::make_tuple(1, 1), "activation"_a = nb::none(), "schedule"_a = nb::none(), "name"_a = "")
      .def("matvec",
           [](Program& p, int64_t x, int64_t y, nb::object weight, const Pair& shape, const std::optional<Array>& bias,
              std::optional<int64_t> residual, const std::optional<nb::sequence>& activation, const std::string& name) {
             const auto [out, in] = shape;
             const Given given = weight_of(std::move(weight), out, in);
             p.matvec(x, y, residual.value_or(-1), given.weight, bias_of(bias, out), activation_of(activation), name);
           },
           "x"_a, "y"_a, "weight"_a, "shape"_a, "bias"_a = nb::none(), "residual"_a = nb::none(),
           "activation"_a = nb::none(), "name"_a = "")
      .def("phases",
           [](Program& p, int64_t x, int64_t y, const Pair& stride, const Pair& padding, const std::string& name) {
             p.phases(x, y, {std::get<0>(stride), std::get<1>(stride)}, {std::get<0>(padding), std::get<1>(padding)}, name);
           },
           "x"_a, "y"_a, "stride"_a, "padding"_a = nb::make_tuple(0, 0), "name"_a = "")
      .def("copy",
           [](Program& p, int64_t source, int64_t target, const std::vector<int64_t>& sizes,
              const std::vector<int64_t>& from, const std::vector<int64_t>& to, int64_t source_start,
              int64_t target_start, const std::string& name) {
             require(sizes.size() == from.size() && sizes.size() == to.size(), "as many strides as sizes");
             std::vector<Program::Axis> axes;
             for (size_t i = 0; i < sizes.size(); ++i) axes.push_back({sizes[i], from[i], to[i]});
             p.copy(source, target, axes, source_start, target_start, name);
           },
           "source"_a, "target"_a, "sizes"_a, "source_strides"_a, "target_strides"_a, "source_start"_a = 0,
           "target_start"_a = 0, "name"_a = "")
      .def("clear", &Program::clear, "value"_a, "everything"_a = false, "name"_a = "")
      .def("fill", &Program::fill, "value"_a, "number"_a, "name"_a = "")
      .def("unary",
           [](Program& p, int64_t x, int64_t y, const std::optional<nb::sequence>& activation, const std::string& name) {
             p.unary(x, y, activation_of(activation), name);
           },
           "x"_a, "y"_a, "activation"_a.none(), "name"_a = "")
      .def("affine",
           [](Program& p, int64_t x, int64_t y, const std::optional<Array>& scale, const std::optional<Array>& shift,
              const std::optional<nb::sequence>& activation, const std::string& name) {
             p.affine(x, y, vector_of(scale), vector_of(shift), activation_of(activation), name);
           },
           "x"_a, "y"_a, "scale"_a.none(), "shift"_a.none(), "activation"_a = nb::none(), "name"_a = "")
      .def("scalar",
           [](Program& p, int64_t x, int64_t y, const std::string& kind, float number, bool reverse,
              const std::optional<nb::sequence>& activation, const std::string& name) {
             p.scalar(x, y, kind_of(kind), number, reverse, activation_of(activation), name);
           },
           "x"_a, "y"_a, "kind"_a, "number"_a, "reverse"_a = false, "activation"_a = nb::none(), "name"_a = "")
      .def("binary",
           [](Program& p, int64_t a, int64_t b, int64_t y, const std::string& kind,
              const std::optional<nb::sequence>& activation, const std::string& name) {
             p.binary(a, b, y, kind_of(kind), activation_of(activation), name);
           },
           "a"_a, "b"_a, "y"_a, "kind"_a, "activation"_a = nb::none(), "name"_a = "")
      .def("pool",
           [](Program& p, int64_t x, int64_t y, const std::string& kind, const Pair& kernel, const Pair& stride,
              const std::tuple<int64_t, int64_t, int64_t, int64_t>& padding, bool count_padding, const Pair& dilation,
              const std::string& name) {
             const auto [top, left, bottom, right] = padding;
             const Program::Window window{{std::get<0>(kernel), std::get<1>(kernel)},
                                          {std::get<0>(stride), std::get<1>(stride)},
                                          {top, left, bottom, right},
                                          {std::get<0>(dilation), std::get<1>(dilation)}};
             p.pool(x, y, is_max(kind), window, count_padding, name);
           },
           "x"_a, "y"_a, "kind"_a, "kernel"_a, "stride"_a, "padding"_a = nb::make_tuple(0, 0, 0, 0),
           "count_padding"_a = true, "dilation"_a = nb::make_tuple(1, 1), "name"_a = "")
      .def("adaptive_pool",
           [](Program& p, int64_t x, int64_t y, const std::string& kind, const std::string& name) {
             p.adaptive_pool(x, y, is_max(kind), name);
           },
           "x"_a, "y"_a, "kind"_a, "name"_a = "")
      .def("reduce",
           [](Program& p, int64_t x, int64_t y, const std::string& kind, const std::string& name) {
             static const std::map<std::string, Combine> kinds = {
                 {"mean", Combine::kMean}, {"sum", Combine::kSum}, {"max", Combine::kMax}, {"min", Combine::kMin}};
             const auto found = kinds.find(kind);
             require(found != kinds.end(), "kind is 'mean', 'sum', 'max' or 'min', not '" + kind + "'");
             p.reduce(x, y, found->second, name);
           },
           "x"_a, "y"_a, "kind"_a, "name"_a = "")
      .def("norm",
           [](Program& p, int64_t x, int64_t y, int64_t groups, bool pixels, bool rms, float eps,
              const std::optional<Array>& scale, const std::optional<Array>& shift, const std::string& name) {
             p.norm(x, y, groups, pixels, rms, eps, vector_of(scale), vector_of(shift), name);
           },
           "x"_a, "y"_a, "groups"_a, "pixels"_a, "rms"_a, "eps"_a, "scale"_a = nb::none(), "shift"_a = nb::none(),
           "name"_a = "")
      .def("softmax",
           [](Program& p, int64_t x, int64_t y, const std::string& over, int64_t groups, bool log, const std::string& name) {
             static const std::map<std::string, Over> overs = {
                 {"channels", Over::kChannels}, {"rows", Over::kRows}, {"planes", Over::kPlanes}};
             const auto found = overs.find(over);
             require(found != overs.end(), "over is 'channels', 'rows' or 'planes', not '" + over + "'");
             p.softmax(x, y, found->second, groups, log, name);
           },
           "x"_a, "y"_a, "over"_a, "groups"_a = 1, "log"_a = false, "name"_a = "")
      .def("attention",
           [](Program& p, int64_t q, int64_t k, int64_t v, int64_t y, int64_t heads, int64_t kv_heads, float scale,
              bool causal, std::optional<int64_t> mask, const std::string& name) {
             p.attention(q, k, v, y, heads, kv_heads, scale, causal, mask.value_or(-1), name);
           },
           "q"_a, "k"_a, "v"_a, "y"_a, "heads"_a, "kv_heads"_a, "scale"_a, "causal"_a = false, "mask"_a = nb::none(),
           "name"_a = "")
      .def("matmul",
           [](Program& p, int64_t a, int64_t b, int64_t y, const std::tuple<int64_t, int64_t, int64_t>& sizes,
              const Pair& a_strides, const Pair& b_strides, const Pair& y_strides, const std::vector<int64_t>& batch,
              const std::vector<int64_t>& a_batch, const std::vector<int64_t>& b_batch,
              const std::vector<int64_t>& y_batch, const std::tuple<int64_t, int64_t, int64_t>& starts, float factor,
              const std::string& name) {
             const auto [rows, columns, depth] = sizes;
             const auto [start_a, start_b, start_y] = starts;
             p.matmul(a, b, y,
                      {{rows, columns, depth},
                       {std::get<0>(a_strides), std::get<1>(a_strides)},
                       {std::get<0>(b_strides), std::get<1>(b_strides)},
                       {std::get<0>(y_strides), std::get<1>(y_strides)},
                       {start_a, start_b, start_y},
                       batch, a_batch, b_batch, y_batch, factor},
                      name);
           },
           "a"_a, "b"_a, "y"_a, "sizes"_a, "a_strides"_a, "b_strides"_a, "y_strides"_a, "batch"_a = nb::make_tuple(),
           "a_batch"_a = nb::make_tuple(), "b_batch"_a = nb::make_tuple(), "y_batch"_a = nb::make_tuple(),
           "starts"_a = nb::make_tuple(0, 0, 0), "factor"_a = 1.0f, "name"_a = "")
      .def("embedding",
           [](Program& p, int64_t index, int64_t y, const Array& table, int64_t offset, int64_t image_stride,
              int64_t row_stride, int64_t pixel_stride, const std::string& name) {
             require(table.ndim() == 2, "a table has rows and features");
             p.embedding(index, y, table.data(), static_cast<int64_t>(table.shape(0)),
                         static_cast<int64_t>(table.shape(1)), offset, image_stride, row_stride, pixel_stride, name);
           },
           "index"_a, "y"_a, "table"_a, "offset"_a = 0, "image_stride"_a = 0, "row_stride"_a = 0, "pixel_stride"_a = 1,
           "name"_a = "")
      .def("upsample",
           [](Program& p, int64_t x, int64_t y, const std::string& mode, bool align_corners,
              const std::optional<std::tuple<float, float>>& scale, const std::string& name) {
             require(mode == "nearest" || mode == "bilinear", "mode is 'nearest' or 'bilinear', not '" + mode + "'");
             const float both[2] = {scale ? std::get<0>(*scale) : 0.0f, scale ? std::get<1>(*scale) : 0.0f};
             p.upsample(x, y, mode == "bilinear", align_corners, scale ? both : nullptr, name);
           },
           "x"_a, "y"_a, "mode"_a, "align_corners"_a = false, "scale"_a = nb::none(), "name"_a = "")
      .def("run", &run, "inputs"_a.noconvert(), "outputs"_a.noconvert(), "groups"_a = 1, "threads"_a = 1)
      .def("profile", &profile, "inputs"_a.noconvert(), "outputs"_a.noconvert(), "threads"_a = 1)
      .def("operators", &operators)
      .def("trim", &Program::trim)
      .def_prop_ro("instruction_set", [](const Program& p) { return std::string(p.kernels().name); })
      .def_prop_ro("weight_bytes", &Program::weight_bytes)
      .def_prop_ro("arena_bytes", &Program::arena_bytes);
}
