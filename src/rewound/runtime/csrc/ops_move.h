// Operators that only move: strided copies (permutations, slices, concatenation), phase planes, rows of a table.
#pragma once

#include "ops_elementwise.h"

namespace rewound {
namespace {

// to[i * rows_to + j] = from[i + j * columns_from], i < rows, j < columns: tiles that stay in the L1 cache.
REWOUND_INLINE void transpose(float* to, const float* from, int64_t rows, int64_t columns, int64_t rows_to,
                              int64_t columns_from) {
  constexpr int64_t kTile = 16;
  for (int64_t i0 = 0; i0 < rows; i0 += kTile) {
    const int64_t i1 = i0 + kTile < rows ? i0 + kTile : rows;
    for (int64_t j0 = 0; j0 < columns; j0 += kTile) {
      const int64_t j1 = j0 + kTile < columns ? j0 + kTile : columns;
      for (int64_t i = i0; i < i1; ++i)
        for (int64_t j = j0; j < j1; ++j) to[i * rows_to + j] = from[i + j * columns_from];
    }
  }
}

// to[i] = from[i * step], i < n
REWOUND_INLINE void take(float* to, const float* from, int64_t n, int64_t step) {
  int64_t i = 0;
  if (step == 2) {
    for (; i + kLanes < n; i += kLanes) store(to + i, every_second(from + i * 2));
    if (i < n) store(to + i, every_second(from + i * 2, n - i), n - i);
    return;
  }
  for (; i < n; ++i) to[i] = from[i * step];
}

void copy(const CopyOp& op, const Frame& frame, int64_t task) {
  const float* source = op.source.read(frame) + op.source_start;
  float* target = op.target.write(frame) + op.target_start;
  const int last = op.axes - 1;  // at least 2 axes
  // Outer axes but the first, which the tasks share out, count like an odometer; two inner axes are done at once.
  const Part first = part(op.sizes[0], op.tasks, task);
  if (first.first == first.last) return;  // more tasks than there are indices
  int64_t sizes[CopyOp::kAxes];
  for (int i = 0; i < op.axes; ++i) sizes[i] = op.sizes[i];
  source += first.first * op.from[0];
  target += first.first * op.to[0];
  sizes[0] = first.last - first.first;
  const int64_t rows = sizes[last - 1], columns = sizes[last];
  const int64_t rows_from = op.from[last - 1], rows_to = op.to[last - 1];
  const int64_t from = op.from[last], to = op.to[last];
  if (first.first == first.last) return;  // more tasks than the first axis has places
  int64_t at[CopyOp::kAxes] = {};
  for (;;) {
    if (to == 1 && from == 1) {
      for (int64_t i = 0; i < rows; ++i) {
        const float* p = source + i * rows_from;
        float* q = target + i * rows_to;
        each_vector(columns, [&](int64_t j, auto part) { part.store(q + j, part.load(p + j)); });
      }
    } else if (to == 1 && rows_from == 1) {
      transpose(target, source, rows, columns, rows_to, from);
    } else if (to == 1) {
      for (int64_t i = 0; i < rows; ++i) take(target + i * rows_to, source + i * rows_from, columns, from);
    } else {
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < columns; ++j) target[i * rows_to + j * to] = source[i * rows_from + j * from];
    }
    int axis = last - 2;
    for (; axis >= 0; --axis) {
      source += op.from[axis];
      target += op.to[axis];
      if (++at[axis] < sizes[axis]) break;
      source -= sizes[axis] * op.from[axis];
      target -= sizes[axis] * op.to[axis];
      at[axis] = 0;
    }
    if (axis < 0) return;
  }
}

void phases(const PhasesOp& op, const Frame& frame, int64_t task) {
  const Planes &p = op.x.planes, &q = op.y.planes;
  const Part channels = part(p.channels, op.tasks, task);
  const float* x = op.x.read(frame);
  float* y = op.y.write(frame);
  const int64_t sy = op.stride_y, sx = op.stride_x;
  for (int64_t px = 0; px < sx; ++px) {
    // columns u with 0 <= u * sx + shift < width
    const int64_t shift = px - op.left;
    int64_t begin = shift < 0 ? (-shift + sx - 1) / sx : 0;
    int64_t end = shift >= p.width ? 0 : (p.width - 1 - shift) / sx + 1;
    begin = begin < q.width ? begin : q.width;
    end = end < q.width ? end : q.width;
    end = end > begin ? end : begin;
    for (int64_t c = channels.first; c < channels.last; ++c)
      for (int64_t py = 0; py < sy; ++py)
        for (int64_t i = 0; i < p.images; ++i) {
          float* to = y + ((c * sy + py) * sx + px) * q.stride + i * q.plane + q.lead;
          const float* plane = x + c * p.stride + i * p.plane + p.lead;
          for (int64_t v = 0; v < q.height; ++v, to += q.pitch) {
            const int64_t row = v * sy + py - op.top;
            if (row < 0 || row >= p.height) {
              set(to, q.width, 0.0f);
              continue;
            }
            set(to, begin, 0.0f);
            if (end > begin) take(to + begin, plane + row * p.pitch + begin * sx + shift, end - begin, sx);
            set(to + end, q.width - end, 0.0f);
          }
        }
  }
  finish(op.y, y, {channels.first * sy * sx, channels.last * sy * sx});
}

// A batch of ids is shared out by blocks of features, so that each row of the table is read by whole cache lines.
// Ids outside the table are an error of the run (program.cc); should another thread change them after that, row 0 is read.
void embedding(const EmbeddingOp& op, const Frame& frame, int64_t task) {
  constexpr int64_t kFeatures = 16;
  const Planes& q = op.y.planes;
  const int64_t* ids = static_cast<const int64_t*>(frame.inputs[op.index]) + op.offset;
  float* y = op.y.write(frame);
  const Part blocks = part((q.channels + kFeatures - 1) / kFeatures, op.tasks, task);
  for (int64_t block = blocks.first; block < blocks.last; ++block) {
    const int64_t f0 = block * kFeatures, f1 = f0 + kFeatures < q.channels ? f0 + kFeatures : q.channels;
    for (int64_t i = 0; i < q.images; ++i)
      for (int64_t v = 0; v < q.height; ++v)
        for (int64_t u = 0; u < q.width; ++u) {
          const int64_t id = ids[i * op.image_stride + v * op.row_stride + u * op.pixel_stride];
          const float* row = op.table + (id >= 0 && id < op.rows ? id : 0) * q.channels;
          float* to = y + i * q.plane + q.lead + v * q.pitch + u;
          for (int64_t f = f0; f < f1; ++f) to[f * q.stride] = row[f];
        }
    finish(op.y, y, {f0, f1});
  }
}

}  // namespace
}  // namespace rewound
