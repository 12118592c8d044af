// The kernel of products with fixed weights (conv.h), for the instruction set that is being compiled.
#pragma once

#include "conv.h"
#include "ops_math.h"
#include "ops_vector.h"

namespace rewound {
namespace {

#if defined(__AVX512F__)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif

// acc[r][p] += value[r] * x[offset + p], for each tap of a stream.
template <int R, int P>
REWOUND_INLINE void accumulate(const char* entry, int64_t count, const float* x, V (&acc)[R][P]) {
  constexpr int64_t kEntry = 4 * (1 + R);
  for (const char* end = entry + count * kEntry; entry != end; entry += kEntry) {
    int32_t offset;
    std::memcpy(&offset, entry, 4);
    const float* at = reinterpret_cast<const float*>(reinterpret_cast<const char*>(x) + offset);
    if constexpr (R == 1) {
      float value;
      std::memcpy(&value, entry + 4, 4);
      const V v = splat(value);
      for (int p = 0; p < P; ++p) acc[0][p] += v * load(at + p * kLanes);
    } else {
      V pixels[P];
      for (int p = 0; p < P; ++p) pixels[p] = load(at + p * kLanes);
      for (int r = 0; r < R; ++r) {
        float value;
        std::memcpy(&value, entry + 4 + 4 * r, 4);
        const V v = splat(value);
        for (int p = 0; p < P; ++p) acc[r][p] += v * pixels[p];
      }
    }
  }
}

template <int R, int P>
REWOUND_INLINE void conv_rows(const ConvOp& op, const float* x, float* y, const float* residual, int64_t vector, Part rows) {
  const int64_t at = op.begin + vector * kLanes;
  const float* from = x + op.x_shift + at;
  const int32_t* mask = op.mask + vector * kLanes;
  I live[P];
  for (int p = 0; p < P; ++p) std::memcpy(&live[p], mask + p * kLanes, sizeof(I));
  const bool clamp = op.activation.kind == Act::kClamp;
  const V low = splat(op.activation.a), high = splat(op.activation.b);
  for (int64_t block = 0; block < op.blocks; ++block) {
    const bool first = block == 0, last = block + 1 == op.blocks;
    const int64_t* starts = op.starts + block * op.row_blocks;
    for (int64_t row_block = rows.first; row_block < rows.last; ++row_block) {
      const int64_t start = starts[row_block], count = starts[row_block + 1] - start;
      if (count == 0 && !first && !last) continue;
      const int32_t* channel = op.row_of + row_block * R;
      // A block's products are summed from zero and added at the end: one long sum that starts at a large bias or residual
      // would round each small product to its size.
      V acc[R][P] = {};
      accumulate<R, P>(op.entries + start * 4 * (1 + R), count, from, acc);
      for (int r = 0; r < R; ++r) {
        if (channel[r] < 0) continue;
        float* to = y + channel[r] * op.y_stride + at;
        if (first) {
          const V bias = splat(op.bias[row_block * R + r]);
          for (int p = 0; p < P; ++p) acc[r][p] += bias;
          if (residual != nullptr)
            for (int p = 0; p < P; ++p) acc[r][p] += load(residual + channel[r] * op.y_stride + at + p * kLanes);
        } else {
          for (int p = 0; p < P; ++p) acc[r][p] += load(to + p * kLanes);
        }
        if (last && op.activation.kind != Act::kNone) {
          if (clamp) {
            for (int p = 0; p < P; ++p) acc[r][p] = at_most(at_least(acc[r][p], low), high);
          } else {
            for (int p = 0; p < P; ++p) store(to + p * kLanes, acc[r][p]);
            activate(op.activation, to, P * kLanes);
            for (int p = 0; p < P; ++p) acc[r][p] = load(to + p * kLanes);
          }
        }
        if (last)
          for (int p = 0; p < P; ++p) acc[r][p] = floats(bits(acc[r][p]) & live[p]);
        for (int p = 0; p < P; ++p) store(to + p * kLanes, acc[r][p]);
      }
    }
  }
}

// Guards that no tile stores to: before the first and after the last vector of each row of this part.
REWOUND_INLINE void conv_guards(const ConvOp& op, float* y, Part rows) {
  const int64_t end = op.begin + op.count * kLanes;
  for (int64_t i = rows.first * op.rows; i < rows.last * op.rows; ++i) {
    if (op.row_of[i] < 0) continue;
    float* channel = y + op.row_of[i] * op.y_stride;
    for (int64_t j = 0; j < op.begin; ++j) channel[j] = 0.0f;
    const int64_t stop = op.y_stride + (op.row_of[i] + 1 == op.out ? op.y_tail : 0);
    for (int64_t j = end; j < stop; ++j) channel[j] = 0.0f;
  }
}

template <int R, int P>
[[gnu::noinline]] void conv_tile(const ConvOp& op, const float* x, float* y, const float* residual, int64_t vector, Part rows) {
  conv_rows<R, P>(op, x, y, residual, vector, rows);
}

using ConvTile = void (*)(const ConvOp&, const float*, float*, const float*, int64_t, Part);

template <int R, int P>
constexpr ConvTile conv_tile_of() {
  if constexpr (R == 1 ? P + 2 <= kRegisters : R * P + P + 1 <= kRegisters)
    return conv_tile<R, P>;
  else
    return nullptr;
}

template <int R>
REWOUND_INLINE ConvTile conv_tile_of(int vectors) {
  switch (vectors) {
    case 1: return conv_tile_of<R, 1>();
    case 2: return conv_tile_of<R, 2>();
    case 3: return conv_tile_of<R, 3>();
    case 4: return conv_tile_of<R, 4>();
    case 5: return conv_tile_of<R, 5>();
    case 6: return conv_tile_of<R, 6>();
    case 7: return conv_tile_of<R, 7>();
    case 8: return conv_tile_of<R, 8>();
    case 9: return conv_tile_of<R, 9>();
    case 10: return conv_tile_of<R, 10>();
    default: return nullptr;
  }
}

ConvTile conv_tile_for(int rows, int vectors) {
  switch (rows) {
    case 1: return conv_tile_of<1>(vectors);
    case 2: return conv_tile_of<2>(vectors);
    case 4: return conv_tile_of<4>(vectors);
    case 6: return conv_tile_of<6>(vectors);
    default: return nullptr;
  }
}

void conv(const ConvOp& op, const float* x, float* y, const float* residual, int64_t task) {
  const Part rows = part(op.row_blocks, op.row_parts, task / op.tile_parts);
  const Part tiles = part(op.tiles, op.tile_parts, task % op.tile_parts);
  for (int64_t tile = tiles.first; tile < tiles.last; ++tile) {
    const Part vectors = part(op.count, op.tiles, tile);
    conv_tile_for(op.rows, static_cast<int>(vectors.last - vectors.first))(op, x, y, residual, vectors.first, rows);
  }
  if (tiles.first == 0) conv_guards(op, y, rows);
}

// y += the columns [first, last) of a panel times x, by their nonzeros.
REWOUND_INLINE void add_columns(const MatvecOp& op, const int64_t* starts, const float* x, Part columns, float* y) {
  const uint16_t* row = op.rows;
  const float* w = op.values;
  for (int64_t j = columns.first; j < columns.last; ++j) {
    const float value = x[j];
    if (value == 0.0f && op.skip) continue;
    int64_t k = starts[j];
    const int64_t end = starts[j + 1];
    for (; k + 4 <= end; k += 4) {  // rows of a column differ: four at a time do not meet
      const float a = y[row[k]] + w[k] * value, b = y[row[k + 1]] + w[k + 1] * value;
      const float c = y[row[k + 2]] + w[k + 2] * value, d = y[row[k + 3]] + w[k + 3] * value;
      y[row[k]] = a;
      y[row[k + 1]] = b;
      y[row[k + 2]] = c;
      y[row[k + 3]] = d;
    }
    for (; k < end; ++k) y[row[k]] += w[k] * value;
  }
}

// The same for whole columns of `width` floats, four at a time.
REWOUND_INLINE void add_whole_columns(const MatvecOp& op, const float* w, int64_t width, const float* x, Part columns,
                                      int64_t rows, float* y) {
  const float* from[4];
  float value[4];
  int found = 0;
  for (int64_t j = columns.first; j < columns.last || found != 0; ++j) {
    if (j < columns.last) {
      if (x[j] == 0.0f && op.skip) continue;
      from[found] = w + j * width;
      value[found++] = x[j];
    } else {
      for (; found < 4; ++found) from[found] = from[0], value[found] = 0.0f;
    }
    if (found < 4) continue;
    const V v0 = splat(value[0]), v1 = splat(value[1]), v2 = splat(value[2]), v3 = splat(value[3]);
    each_vector(rows, [&](int64_t i, auto at) {
      at.store(y + i, at.load(y + i) + ((v0 * at.load(from[0] + i) + v1 * at.load(from[1] + i)) +
                                        (v2 * at.load(from[2] + i) + v3 * at.load(from[3] + i))));
    });
    found = 0;
  }
}

void matvec(const MatvecOp& op, const float* x, float* y, const float* residual, int64_t task) {
  const int64_t first = task * op.panel, rows = op.out - first < op.panel ? op.out - first : op.panel;
  const int64_t width = (op.panel + 15) / 16 * 16;
  float* to = y + first;
  float sums[kPanel];
  for (int64_t i = 0; i < rows; ++i) to[i] = op.bias[first + i] + (residual != nullptr ? residual[first + i] : 0.0f);
  for (int64_t j = 0; j < op.in; j += kColumns) {  // long sums in two levels: their rounding errors grow more slowly
    const Part columns = {j, j + kColumns < op.in ? j + kColumns : op.in};
    for (int64_t i = 0; i < rows; ++i) sums[i] = 0.0f;
    if (op.starts != nullptr)
      add_columns(op, op.starts + task * op.in, x, columns, sums);
    else
      add_whole_columns(op, op.values + task * op.in * width, width, x, columns, rows, sums);
    for (int64_t i = 0; i < rows; ++i) to[i] += sums[i];
  }
  if (op.activation.kind != Act::kNone) activate(op.activation, to, rows);
}

}  // namespace
}  // namespace rewound
