// Building operators that move: copies, phase planes, tables, upsampling.
#include <algorithm>
#include <cmath>

#include "program.h"

namespace rewound {

namespace {

constexpr int64_t kMostStep = int64_t{1} << 20;  // kernel sizes, strides, paddings

}  // namespace

void Program::phases(int64_t x, int64_t y, const int64_t (&stride)[2], const int64_t (&padding)[2],
                     const std::string& name) {
  begin();
  PhasesOp op{.x = readable(x, "x"),
              .y = writable(y, "y"),
              .stride_y = stride[0],
              .stride_x = stride[1],
              .top = padding[0],
              .left = padding[1]};
  for (int i = 0; i < 2; ++i) {
    require(stride[i] >= 1 && stride[i] <= kMostStep, "stride is " + std::to_string(stride[i]));
    require(padding[i] >= -kMostStep && padding[i] <= kMostStep, "padding is " + std::to_string(padding[i]));
  }
  const Planes &p = op.x.planes, &q = op.y.planes;
  require_shape(q, times(p.channels, stride[0] * stride[1]), p.images, q.height, q.width, "y");
  require(q.height <= kHuge / kMostStep / 2 && q.width <= kHuge / kMostStep / 2, "y is too large");
  add("phases", name, op, kernels_.phases, times(q.channels, q.pixels()));
}

void Program::copy(int64_t source, int64_t target, std::vector<Axis> axes, int64_t source_start, int64_t target_start,
                   const std::string& name) {
  begin();
  CopyOp op{.source = readable(source, "source"), .target = writable(target, "target")};
  require(axes.size() <= CopyOp::kAxes, "copy has at most 8 axes");
  std::vector<int64_t> sizes, from, to;
  int64_t work = 1;
  for (const Axis& axis : axes) {
    sizes.push_back(axis.size);
    from.push_back(axis.from);
    to.push_back(axis.to);
    require(axis.to != 0 || axis.size == 1, "a stride of the target is 0");
  }
  inside(op.source, source_start, sizes, from, "source");
  inside(op.target, target_start, sizes, to, "target");
  for (const int64_t size : sizes) work = times(work, size);
  require(work <= extent(op.target), "the target is written to more than once");

  std::erase_if(axes, [](const Axis& axis) { return axis.size == 1; });
  for (Axis& axis : axes)
    if (axis.to < 0) {
      source_start += (axis.size - 1) * axis.from;
      target_start += (axis.size - 1) * axis.to;
      axis.from = -axis.from;
      axis.to = -axis.to;
    }
  std::stable_sort(axes.begin(), axes.end(), [](const Axis& a, const Axis& b) { return a.to > b.to; });
  for (size_t i = 1; i < axes.size();) {  // axes that follow upon each other on both sides are one
    const Axis outer = axes[i - 1], inner = axes[i];
    if (outer.to == inner.to * inner.size && outer.from == inner.from * inner.size) {
      axes[i].size *= outer.size;
      axes.erase(axes.begin() + static_cast<std::ptrdiff_t>(i) - 1);
    } else {
      ++i;
    }
  }
  // The source's run stands beside the target's: then the two are transposed by tiles.
  if (axes.size() > 2 && axes.back().from != 1)
    for (size_t i = 0; i + 2 < axes.size(); ++i)
      if (axes[i].from == 1) {
        std::rotate(axes.begin() + static_cast<std::ptrdiff_t>(i), axes.begin() + static_cast<std::ptrdiff_t>(i) + 1,
                    axes.end() - 1);
        break;
      }
  while (axes.size() < 2) axes.insert(axes.begin(), Axis{1, 0, 0});
  if (axes.size() == 2 && axes[0].size == 1 && axes[1].size >= 1 << 15) {
    // one long run: cut, so that threads can share it
    const int64_t size = axes[1].size, piece = 1 << 14;
    if (size % piece == 0) axes = {Axis{size / piece, axes[1].from * piece, axes[1].to * piece}, {piece, axes[1].from, axes[1].to}};
  }
  op.axes = static_cast<int>(axes.size());
  for (size_t i = 0; i < axes.size(); ++i) {
    op.sizes[i] = axes[i].size;
    op.from[i] = axes[i].from;
    op.to[i] = axes[i].to;
  }
  op.source_start = source_start;
  op.target_start = target_start;
  add("copy", name, op, kernels_.copy, work);
}

void Program::embedding(int64_t index, int64_t y, const float* table, int64_t rows, int64_t features, int64_t offset,
                        int64_t image_stride, int64_t row_stride, int64_t pixel_stride, const std::string& name) {
  begin();
  require(index >= 0 && index < static_cast<int64_t>(inputs_.size()) && inputs_[static_cast<size_t>(index)].ids,
          "input " + std::to_string(index) + " is no int64 input");
  EmbeddingOp op{.index = static_cast<int32_t>(index),
                 .y = writable(y, "y"),
                 .table = nullptr,
                 .rows = rows,
                 .offset = offset,
                 .image_stride = image_stride,
                 .row_stride = row_stride,
                 .pixel_stride = pixel_stride};
  const Planes& q = op.y.planes;
  require(rows >= 1, "the table has no rows");
  require(features == q.channels, "the table has " + std::to_string(features) + " columns, y " +
                                      std::to_string(q.channels) + " channels");
  Value ids;
  ids.memory = Memory::kInput;
  ids.index = op.index;
  inside(ids, offset, {q.images, q.height, q.width}, {image_stride, row_stride, pixel_stride}, "ids");
  op.table = keep(table, times(rows, features));
  add("embedding", name, op, kernels_.embedding, times(q.channels, q.pixels()));
  id_checks_.push_back({op.index, rows, offset, {q.images, q.height, q.width}, {image_stride, row_stride, pixel_stride}, name});
}

namespace {

// Where along one axis an output position is taken from, as torch computes it (in float).
struct Taken {
  std::vector<int32_t> first, second;
  std::vector<float> weight;
};

Taken taken(int64_t from, int64_t to, bool bilinear, bool align_corners, float scale) {
  Taken t;
  const float size = static_cast<float>(from), out = static_cast<float>(to);
  const float step = scale > 0.0f ? 1.0f / scale : size / out;
  for (int64_t i = 0; i < to; ++i) {
    const float at = static_cast<float>(i);
    float place = 0.0f;
    if (!bilinear)
      place = std::floor(at * step);
    else if (align_corners)
      place = to > 1 ? at * ((size - 1.0f) / (out - 1.0f)) : 0.0f;
    else
      place = std::max((at + 0.5f) * step - 0.5f, 0.0f);
    const int64_t first = std::min(static_cast<int64_t>(std::min(place, size)), from - 1);
    t.first.push_back(static_cast<int32_t>(first));
    t.second.push_back(static_cast<int32_t>(std::min(first + 1, from - 1)));
    t.weight.push_back(std::clamp(place - static_cast<float>(first), 0.0f, 1.0f));
  }
  return t;
}

}  // namespace

void Program::upsample(int64_t x, int64_t y, bool bilinear, bool align_corners, const float* scale,
                       const std::string& name) {
  begin();
  UpsampleOp op{.x = readable(x, "x"), .y = writable(y, "y"), .bilinear = bilinear, .row0 = {}, .row1 = {}, .column0 = {},
                .column1 = {}, .row_weight = {}, .column_weight = {}};
  const Planes &p = op.x.planes, &q = op.y.planes;
  require_shape(q, p.channels, p.images, q.height, q.width, "y");
  for (const int64_t size : {p.height, p.width, q.height, q.width})
    require(size <= int64_t{1} << 24, "a plane of " + std::to_string(size) + " rows or columns is too large");
  for (int i = 0; scale != nullptr && i < 2; ++i)
    require(std::isfinite(scale[i]) && scale[i] > 0.0f, "scale is not a positive number");
  const Taken rows = taken(p.height, q.height, bilinear, align_corners, scale != nullptr ? scale[0] : 0.0f);
  const Taken columns = taken(p.width, q.width, bilinear, align_corners, scale != nullptr ? scale[1] : 0.0f);
  const auto indices = [&](const std::vector<int32_t>& of) {
    static_assert(sizeof(int32_t) == sizeof(float));
    return reinterpret_cast<const int32_t*>(keep(reinterpret_cast<const float*>(of.data()), static_cast<int64_t>(of.size())));
  };
  op.row0 = indices(rows.first);
  op.row1 = indices(rows.second);
  op.column0 = indices(columns.first);
  op.column1 = indices(columns.second);
  op.row_weight = keep(rows.weight.data(), q.height);
  op.column_weight = keep(columns.weight.data(), q.width);
  op.scratch = bilinear ? p.width : 0;
  add("upsample", name, op, kernels_.upsample, times(bilinear ? 4 : 1, times(q.channels, q.pixels())), op.scratch);
}

}  // namespace rewound
