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

typedef float V4 __attribute__((vector_size(16)));
typedef float V8 __attribute__((vector_size(32)));
typedef float V16 __attribute__((vector_size(64)));
typedef double D8 __attribute__((vector_size(32)));
typedef double D16 __attribute__((vector_size(64)));

template <int N>
struct Types;
template <>
struct Types<4> {
  using V = V4;
};
#if defined(__AVX2__)
template <>
struct Types<8> {
  using V = V8;
  REWOUND_INLINE static D8 pairs(double x) { return D8{x, x, x, x}; }
};
#endif
#if defined(__AVX512F__)
template <>
struct Types<16> {
  using V = V16;
  REWOUND_INLINE static D16 pairs(double x) { return D16{x, x, x, x, x, x, x, x}; }
};
#endif

// next: the lanes 1 .. N of a followed by b; previous: the last lane of a, then all but the last of b.
REWOUND_INLINE V4 next(V4 a, V4 b) { return __builtin_shufflevector(a, b, 1, 2, 3, 4); }
REWOUND_INLINE V4 previous(V4 a, V4 b) { return __builtin_shufflevector(a, b, 3, 4, 5, 6); }
#if defined(__AVX2__)
REWOUND_INLINE V8 next(V8 a, V8 b) { return __builtin_shufflevector(a, b, 1, 2, 3, 4, 5, 6, 7, 8); }
REWOUND_INLINE V8 previous(V8 a, V8 b) { return __builtin_shufflevector(a, b, 7, 8, 9, 10, 11, 12, 13, 14); }
REWOUND_INLINE V8 evens(V8 a) { return __builtin_shufflevector(a, a, 0, 0, 2, 2, 4, 4, 6, 6); }
REWOUND_INLINE V8 odds(V8 a) { return __builtin_shufflevector(a, a, 1, 1, 3, 3, 5, 5, 7, 7); }
#endif
#if defined(__AVX512F__)
REWOUND_INLINE V16 next(V16 a, V16 b) {
  return __builtin_shufflevector(a, b, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16);
}
REWOUND_INLINE V16 previous(V16 a, V16 b) {
  return __builtin_shufflevector(a, b, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30);
}
REWOUND_INLINE V16 evens(V16 a) {
  return __builtin_shufflevector(a, a, 0, 0, 2, 2, 4, 4, 6, 6, 8, 8, 10, 10, 12, 12, 14, 14);
}
REWOUND_INLINE V16 odds(V16 a) {
  return __builtin_shufflevector(a, a, 1, 1, 3, 3, 5, 5, 7, 7, 9, 9, 11, 11, 13, 13, 15, 15);
}
#endif

// Vectors of N floats: those of the instruction set, or their halves, for rows of pixels that whole ones do not fit.
template <int N>
struct Lanes {
  using V = typename Types<N>::V;
  typedef int32_t I __attribute__((vector_size(N * sizeof(int32_t))));

  REWOUND_INLINE static V load(const float* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  REWOUND_INLINE static void store(float* p, V v) { std::memcpy(p, &v, sizeof v); }
  REWOUND_INLINE static V splat(float x) { return x - V{}; }
  REWOUND_INLINE static V masked(V v, const int32_t* p) {
    I mask;
    std::memcpy(&mask, p, sizeof mask);
    return reinterpret_cast<V>(reinterpret_cast<I>(v) & mask);
  }
  // NaN of x stays NaN.
  REWOUND_INLINE static V clamped(V x, V low, V high) {
    x = x < low ? low : x;
    return x > high ? high : x;
  }
  // Two neighbouring floats, each in all lanes: one load of both, since loads are what the kernel is short of.
  REWOUND_INLINE static void splat_pair(const char* p, V& a, V& b) {
    if constexpr (N >= 8) {
      double both;  // not an integer: GCC would take it through a general register
      std::memcpy(&both, p, 8);
      const V pairs = reinterpret_cast<V>(Types<N>::pairs(both));
      a = evens(pairs), b = odds(pairs);
    } else {
      float values[2];
      std::memcpy(values, p, 8);
      a = splat(values[0]), b = splat(values[1]);
    }
  }
};

// Streams of entries are short, or too slow for the processor to foresee them: it is told so many bytes ahead.
constexpr int64_t kAhead = 2048;

// acc[r][p] += value[r] * x[offset + p], for each tap of a stream. One row: taps come in pairs.
template <int N, int R, int P>
REWOUND_INLINE void accumulate(const char* entry, int64_t count, const float* x, typename Lanes<N>::V (&acc)[R][P]) {
  using L = Lanes<N>;
  using V = typename L::V;
  const auto pixels = [x](int64_t offset) { return reinterpret_cast<const float*>(reinterpret_cast<const char*>(x) + offset); };
  if constexpr (R == 1) {
    // Few sums would wait for themselves: they are kept twice, a single one four times.
    constexpr bool kTwice = P * N <= 64 && 2 * P + 3 <= kRegisters;
    constexpr int kPairs = P == 1 ? 2 : 1;  // at a time
    V other[2 * kPairs - 1][kTwice ? P : 1] = {};
    const auto pair = [&](const char* at, V* even, V* odd) __attribute__((always_inline)) {
      int64_t offsets;
      std::memcpy(&offsets, at, 8);
      V v, w;
      L::splat_pair(at + 8, v, w);
      const float *here = pixels(static_cast<int32_t>(offsets)), *then = pixels(offsets >> 32);
      for (int p = 0; p < P; ++p) even[p] += v * L::load(here + p * N);
      for (int p = 0; p < P; ++p) odd[p] += w * L::load(then + p * N);
    };
    const char* end = entry + count / 2 * 16;
    if constexpr (kPairs == 2)
      for (; end - entry >= 32; entry += 32) {
        pair(entry, acc[0], other[0]);
        pair(entry + 16, other[1], other[2]);
      }
    for (; entry != end; entry += 16) pair(entry, acc[0], kTwice ? other[0] : acc[0]);
    if (count % 2 != 0) {
      int32_t offset;
      float value;
      std::memcpy(&offset, entry, 4);
      std::memcpy(&value, entry + 4, 4);
      const V v = L::splat(value);
      const float* at = pixels(offset);
      for (int p = 0; p < P; ++p) acc[0][p] += v * L::load(at + p * N);
    }
    if constexpr (kPairs == 2) acc[0][0] += other[1][0], other[0][0] += other[2][0];
    if constexpr (kTwice)
      for (int p = 0; p < P; ++p) acc[0][p] += other[0][p];
  } else {
    constexpr int64_t kEntry = 4 * (1 + R);
    for (const char* end = entry + count * kEntry; entry != end; entry += kEntry) {
      int32_t offset;
      std::memcpy(&offset, entry, 4);
      __builtin_prefetch(entry + kAhead);
      const float* at = pixels(offset);
      V loaded[P];
      for (int p = 0; p < P; ++p) loaded[p] = L::load(at + p * N);
      for (int r = 0; r < R; ++r) {
        float value;
        std::memcpy(&value, entry + 4 + 4 * r, 4);
        const V v = L::splat(value);
        for (int p = 0; p < P; ++p) acc[r][p] += v * loaded[p];
      }
    }
  }
}

// sums[p] = the sum that stands one pixel to the right (left), zero beyond the ends of a row of pixels.
template <int N, int P>
REWOUND_INLINE void from_right(const ConvOp& op, typename Lanes<N>::V (&sums)[P]) {
  for (int p = 0; p < P; ++p) {
    sums[p] = next(sums[p], p + 1 < P ? sums[p + 1] : typename Lanes<N>::V{});
    if (op.wraps) sums[p] = Lanes<N>::masked(sums[p], op.not_last + p * N);
  }
}
template <int N, int P>
REWOUND_INLINE void from_left(const ConvOp& op, typename Lanes<N>::V (&sums)[P]) {
  for (int p = P; p-- > 0;) {
    sums[p] = previous(p > 0 ? sums[p - 1] : typename Lanes<N>::V{}, sums[p]);
    if (op.wraps) sums[p] = Lanes<N>::masked(sums[p], op.not_first + p * N);
  }
}

// The sums of a row block over one block of places. Where taps are grouped by columns (kAligned), each group is summed where
// its pixels lie, on whole vectors, and the sums are moved by a pixel afterwards: a load that is not aligned costs twice.
template <int N, int R, int P, bool kAligned>
REWOUND_INLINE void sum_block(const ConvOp& op, const int64_t* starts, const float* x, typename Lanes<N>::V (&acc)[R][P]) {
  using L = Lanes<N>;
  constexpr int64_t kEntry = 4 * (1 + R);
  const auto group = [&](int g, typename L::V (&sums)[R][P]) {
    accumulate<N, R, P>(op.entries + starts[g] * kEntry, starts[g + 1] - starts[g], x, sums);
  };
  if constexpr (!kAligned) {
    group(0, acc);
  } else {
    if (R > 1 || starts[1] != starts[0]) {  // few taps in a block, and many a group is empty
      group(0, acc);
      for (int r = 0; r < R; ++r) from_right<N, P>(op, acc[r]);
    }
    group(1, acc);
    if constexpr (R == 1 && 2 * P + 3 <= kRegisters) {
      if (starts[3] == starts[2]) return;
      typename L::V more[R][P] = {};
      group(2, more);
      from_left<N, P>(op, more[0]);
      for (int p = 0; p < P; ++p) acc[0][p] += more[0][p];
    } else {  // not registers enough for both
      alignas(64) float kept[R * P * N];
      for (int r = 0; r < R; ++r)
        for (int p = 0; p < P; ++p) L::store(kept + (r * P + p) * N, acc[r][p]), acc[r][p] = typename L::V{};
      asm volatile("" : "+m"(kept));
      group(2, acc);
      for (int r = 0; r < R; ++r) {
        from_left<N, P>(op, acc[r]);
        for (int p = 0; p < P; ++p) acc[r][p] += L::load(kept + (r * P + p) * N);
      }
    }
  }
}

// Vectors [vector, vector + P) of some rows.
template <int N, int R, int P, bool kAligned>
[[gnu::noinline]] void conv_tile(const ConvOp& op, const float* x, float* y, const float* residual, int64_t vector, Part rows) {
  using L = Lanes<N>;
  using V = typename L::V;
  constexpr int64_t kGroups = kAligned ? 3 : 1, kEntry = 4 * (1 + R);
  const int64_t at = op.begin + vector * N;
  const float* from = x + at;
  const int32_t* mask = op.mask + vector * N;
  const bool clamp = op.activation.kind == Act::kClamp;
  for (int64_t block = 0; block < op.blocks; ++block) {
    const bool first = block == 0, last = block + 1 == op.blocks;
    const int64_t* starts = op.starts + block * op.row_blocks * kGroups;
    for (int64_t row_block = rows.first; row_block < rows.last; ++row_block) {
      const int64_t* own = starts + row_block * kGroups;
      if (own[0] == own[kGroups] && !first && !last) continue;
      const int32_t* channel = op.row_of + row_block * R;
      // A block's products are summed from zero and added at the end: one long sum that starts at a large bias or residual
      // would round each small product to its size.
      if constexpr (R == 1)
        for (int64_t i = own[0] * kEntry; i < own[kGroups] * kEntry; i += 64) __builtin_prefetch(op.entries + i + kAhead);
      V acc[R][P] = {};
      sum_block<N, R, P, kAligned>(op, own, from, acc);
      for (int r = 0; r < R; ++r) {
        if (channel[r] < 0) continue;
        float* to = y + channel[r] * op.y_stride + at;
        if (first) {
          const V bias = L::splat(op.bias[row_block * R + r]);
          for (int p = 0; p < P; ++p) acc[r][p] += bias;
          if (residual != nullptr)
            for (int p = 0; p < P; ++p) acc[r][p] += L::load(residual + channel[r] * op.y_stride + at + p * N);
        } else {
          for (int p = 0; p < P; ++p) acc[r][p] += L::load(to + p * N);
        }
        if (last) {
          if (clamp) {
            const V low = L::splat(op.activation.a), high = L::splat(op.activation.b);
            for (int p = 0; p < P; ++p) acc[r][p] = L::clamped(acc[r][p], low, high);
          } else if (op.activation.kind != Act::kNone) {
            for (int p = 0; p < P; ++p) L::store(to + p * N, acc[r][p]);
            activate(op.activation, to, P * N);
            for (int p = 0; p < P; ++p) acc[r][p] = L::load(to + p * N);
          }
          for (int p = 0; p < P; ++p) acc[r][p] = L::masked(acc[r][p], mask + p * N);
        }
        for (int p = 0; p < P; ++p) L::store(to + p * N, acc[r][p]);
      }
    }
  }
}

// Guards that no tile stores to: before the first and after the last vector of each row of this part.
REWOUND_INLINE void conv_guards(const ConvOp& op, float* y, Part rows) {
  const int64_t end = op.begin + op.count * op.lanes;
  for (int64_t i = rows.first * op.rows; i < rows.last * op.rows; ++i) {
    if (op.row_of[i] < 0) continue;
    float* channel = y + op.row_of[i] * op.y_stride;
    for (int64_t j = 0; j < op.begin; ++j) channel[j] = 0.0f;
    const int64_t stop = op.y_stride + (op.row_of[i] + 1 == op.out ? op.y_tail : 0);
    for (int64_t j = end; j < stop; ++j) channel[j] = 0.0f;
  }
}

using ConvTile = void (*)(const ConvOp&, const float*, float*, const float*, int64_t, Part);

template <int N, int R, int P>
REWOUND_INLINE ConvTile conv_tile_of(bool aligned) {
  if constexpr (R == 1 ? P + 2 <= kRegisters : R * P + P + 1 <= kRegisters)
    return aligned ? conv_tile<N, R, P, true> : conv_tile<N, R, P, false>;
  else
    return nullptr;
}

template <int N, int R, int P = 1>
REWOUND_INLINE ConvTile conv_tile_of(int vectors, bool aligned) {
  constexpr int kMost = R == 1 ? 14 : R == 2 ? 8 : R == 4 ? 6 : 4;
  if (vectors == P) return conv_tile_of<N, R, P>(aligned);
  if constexpr (P < kMost)
    return conv_tile_of<N, R, P + 1>(vectors, aligned);
  else
    return nullptr;
}

template <int N>
REWOUND_INLINE ConvTile conv_tile_of(int rows, int vectors, bool aligned) {
  switch (rows) {
    case 1: return conv_tile_of<N, 1>(vectors, aligned);
    case 2: return conv_tile_of<N, 2>(vectors, aligned);
    case 4: return conv_tile_of<N, 4>(vectors, aligned);
    case 6: return conv_tile_of<N, 6>(vectors, aligned);
    default: return nullptr;
  }
}

[[gnu::noinline]] ConvTile conv_tile_for(const ConvOp& op, int vectors) {
#if defined(__AVX512F__)
  if (op.lanes == 16) return conv_tile_of<16>(op.rows, vectors, op.aligned);
#endif
#if defined(__AVX2__)
  return conv_tile_of<8>(op.rows, vectors, op.aligned);
#else
  return conv_tile_of<4>(op.rows, vectors, op.aligned);
#endif
}

void conv(const ConvOp& op, const float* x, float* y, const float* residual, int64_t task) {
  // task -1: all of it
  const Part rows = task < 0 ? Part{0, op.row_blocks} : part(op.row_blocks, op.row_parts, task / op.tile_parts);
  const Part tiles = task < 0 ? Part{0, op.tiles} : part(op.tiles, op.tile_parts, task % op.tile_parts);
  for (int64_t tile = tiles.first; tile < tiles.last; ++tile) {
    const Part units = part(op.count / op.unit, op.tiles, tile);
    conv_tile_for(op, static_cast<int>((units.last - units.first) * op.unit))(op, x, y, residual, units.first * op.unit, rows);
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

// sums = fours of rows times x, whose entry `in` is zero. Entries of x are gathered one by one, which is quicker than the
// processor's own gathering, and multiplied together.
REWOUND_INLINE void sum_fours(const MatvecOp& op, int64_t task, const float* x, float* sums) {
  constexpr int64_t kEntries = 2 * kColumns;
  for (int64_t four = task * op.four_per_task; four < (task + 1) * op.four_per_task; ++four) {
    const uint16_t* place = op.four_places + 4 * op.four_starts[four];
    const float* w = op.four_values + 4 * op.four_starts[four];
    const auto product = [&]() __attribute__((always_inline)) {
      V4 v;
      std::memcpy(&v, w, sizeof v);
      const V4 found = {x[place[0]], x[place[1]], x[place[2]], x[place[3]]};
      place += 4, w += 4;
      return v * found;
    };
    V4 sum = {};
    for (int64_t left = op.four_starts[four + 1] - op.four_starts[four]; left > 0; left -= kEntries) {
      const int64_t count = left < kEntries ? left : kEntries;
      V4 even = {}, odd = {};
      for (int64_t i = 0; i < count / 2; ++i) even += product(), odd += product();
      if (count % 2 != 0) even += product();
      sum += even + odd;
    }
    for (int i = 0; i < 4; ++i)
      if (op.four_rows[4 * four + i] >= 0) sums[op.four_rows[4 * four + i]] = sum[i];
  }
}

// Whether few enough entries of x are not zero that a sum by columns, which skips them, is quicker; x is copied on the way.
REWOUND_INLINE bool mostly_zero(const float* x, int64_t n, float* copy) {
  I zeros = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const V v = load(x + i);
    store(copy + i, v);
    zeros -= v == V{};
  }
  int64_t found = 0;
  for (int lane = 0; lane < kLanes; ++lane) found += zeros[lane];
  for (; i < n; ++i) copy[i] = x[i], found += x[i] == 0.0f;
  return 5 * found > 3 * n;
}

void matvec(const MatvecOp& op, const float* x, float* y, const float* residual, int64_t task) {
  const int64_t first = task * op.panel, rows = op.out - first < op.panel ? op.out - first : op.panel;
  const int64_t width = (op.panel + 15) / 16 * 16;
  float* to = y + first;
  float sums[kPanel];
  for (int64_t i = 0; i < rows; ++i) to[i] = op.bias[first + i] + (residual != nullptr ? residual[first + i] : 0.0f);
  float copy[kGather + 1];
  if (op.four_starts != nullptr && !(mostly_zero(x, op.in, copy) && op.skip)) {
    copy[op.in] = 0.0f;
    sum_fours(op, task, copy, sums);
    for (int64_t i = 0; i < rows; ++i) to[i] += sums[i];
  } else {
    for (int64_t j = 0; j < op.in; j += kColumns) {  // long sums in two levels: their rounding errors grow more slowly
      const Part columns = {j, j + kColumns < op.in ? j + kColumns : op.in};
      for (int64_t i = 0; i < rows; ++i) sums[i] = 0.0f;
      if (op.starts != nullptr)
        add_columns(op, op.starts + task * op.in, x, columns, sums);
      else
        add_whole_columns(op, op.values + task * op.in * width, width, x, columns, rows, sums);
      for (int64_t i = 0; i < rows; ++i) to[i] += sums[i];
    }
  }
  if (op.activation.kind != Act::kNone) activate(op.activation, to, rows);
}

}  // namespace
}  // namespace rewound
