// Products of two values: attention by blocks of queries, and matrices of any strides.
#pragma once

#include "ops_norm.h"

namespace rewound {
namespace {

// out[r][p] (+)= sum_k a[r * a_row + k * a_k] * b[k * P vectors + p], in registers.
template <int R, int P>
REWOUND_INLINE void product_tile(float* out, const float* a, int64_t a_row, int64_t a_k, const float* b, int64_t depth,
                                 bool add) {
  constexpr int64_t kWide = P * kLanes;
  V sums[R][P] = {};
  for (int64_t k = 0; k < depth; ++k) {
    V row[P];
    for (int p = 0; p < P; ++p) row[p] = load(b + k * kWide + p * kLanes);
    for (int r = 0; r < R; ++r) {
      const V factor = splat(a[r * a_row + k * a_k]);
      for (int p = 0; p < P; ++p) sums[r][p] += factor * row[p];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int p = 0; p < P; ++p) {
      float* to = out + r * kWide + p * kLanes;
      store(to, add ? load(to) + sums[r][p] : sums[r][p]);
    }
}

// Rows whose sums stay in registers, of which there are 32 or 16.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTileRows = 6;
#else
constexpr int kTileRows = 2;
#endif

// out [rows][P vectors] = a [rows x depth, any strides] * b [depth][P vectors]. Sums of kDepth terms are added up.
template <int P>
[[gnu::noinline]] void product(float* out, const float* a, int64_t a_row, int64_t a_k, const float* b, int64_t rows,
                               int64_t depth) {
  constexpr int64_t kDepth = 256, kWide = P * kLanes;
  if (depth == 0) set(out, rows * kWide, 0.0f);
  for (int64_t k = 0; k < depth; k += kDepth) {
    const int64_t n = depth - k < kDepth ? depth - k : kDepth;
    const float* from = a + k * a_k;
    int64_t r = 0;
    for (; r + kTileRows <= rows; r += kTileRows)
      product_tile<kTileRows, P>(out + r * kWide, from + r * a_row, a_row, a_k, b + k * kWide, n, k > 0);
    for (; r < rows; ++r)
      product_tile<1, P>(out + r * kWide, from + r * a_row, a_row, a_k, b + k * kWide, n, k > 0);
  }
}

// The first element of a feature of an image.
REWOUND_INLINE const float* feature(const Value& value, const Frame& frame, int64_t channel, int64_t image) {
  const Planes& p = value.planes;
  return value.read(frame) + channel * p.stride + image * p.plane + p.lead;
}

// Queries [t, t + n) of one head, n <= P vectors. Scores stand [keys][queries], so that softmax and both products run along
// vectors of queries.
template <int P>
void attention_block(const AttentionOp& op, const Frame& frame, int64_t image, int64_t head, int64_t t, int64_t n) {
  constexpr int64_t kWide = P * kLanes;
  float* queries = frame.scratch;
  float* scores = queries + op.depth * kWide;
  float* out = scores + op.keys * kWide;
  const Planes &pq = op.q.planes, &pk = op.k.planes, &pv = op.v.planes, &py = op.y.planes;
  const int64_t other = head / op.shared;
  const float* q = feature(op.q, frame, head * op.depth, image) + t;
  for (int64_t j = 0; j < op.depth; ++j) {
    for (int64_t i = 0; i < n; ++i) queries[j * kWide + i] = q[j * pq.stride + i] * op.scale;
    set(queries + j * kWide + n, kWide - n, 0.0f);
  }
  const int64_t keys = op.causal && t + n < op.keys ? t + n : op.keys;  // those that any query of the block sees
  product<P>(scores, feature(op.k, frame, other * op.depth, image), 1, pk.stride, queries, keys, op.depth);
  if (op.masked) {
    const Planes& pm = op.mask.planes;
    const float* mask = feature(op.mask, frame, pm.channels == 1 ? 0 : head, pm.images == 1 ? 0 : image);
    for (int64_t i = 0; i < n; ++i) {
      const float* row = mask + (pm.height == 1 ? 0 : (t + i) * pm.pitch);
      for (int64_t s = 0; s < keys; ++s) scores[s * kWide + i] += row[s];
    }
  }
  if (op.causal)
    for (int64_t s = t + 1; s < keys; ++s)
      for (int64_t i = 0; i < n && t + i < s; ++i) scores[s * kWide + i] = -kInfinity;
  V factor[P];
  for (int p = 0; p < P; ++p) {
    float* column = scores + p * kLanes;
    V most = splat(-kInfinity);
    for (int64_t s = 0; s < keys; ++s) most = larger(most, load(column + s * kWide));
    const I nothing = most == -kInfinity;  // a query that sees no key: its result is zero, as in torch
    most = select(nothing, V{}, most);
    V sum = {};
    for (int64_t s = 0; s < keys; ++s) {
      const V e = exponential(load(column + s * kWide) - most);
      store(column + s * kWide, e);
      sum += e;
    }
    factor[p] = select(nothing, V{}, 1.0f / sum);
  }
  product<P>(out, feature(op.v, frame, other * op.width, image), pv.stride, 1, scores, op.width, keys);
  float* y = op.y.write(frame) + head * op.width * py.stride + image * py.plane + py.lead + t;
  for (int64_t j = 0; j < op.width; ++j)
    for (int p = 0; p < P; ++p) {
      const int64_t left = n - p * kLanes;
      const V v = load(out + j * kWide + p * kLanes) * factor[p];
      float* to = y + j * py.stride + p * kLanes;
      if (left >= kLanes)
        store(to, v);
      else if (left > 0)
        store(to, v, left);
    }
}

constexpr int64_t kQueries = 4 * kLanes;

void attention(const AttentionOp& op, const Frame& frame, int64_t task) {
  const int64_t blocks = (op.queries + kQueries - 1) / kQueries;
  const Part units = part(op.y.planes.images * op.heads * blocks, op.tasks, task);
  for (int64_t unit = units.first; unit < units.last; ++unit) {
    const int64_t t = unit % blocks * kQueries, head = unit / blocks % op.heads, image = unit / blocks / op.heads;
    const int64_t n = op.queries - t < kQueries ? op.queries - t : kQueries;
    switch ((n + kLanes - 1) / kLanes) {
      case 1: attention_block<1>(op, frame, image, head, t, n); break;
      case 2: attention_block<2>(op, frame, image, head, t, n); break;
      case 3: attention_block<3>(op, frame, image, head, t, n); break;
      default: attention_block<4>(op, frame, image, head, t, n); break;
    }
  }
}

// Columns [column, column + n), n <= P vectors, of one product.
template <int P>
void matmul_block(const MatmulOp& op, float* scratch, const float* a, const float* b, float* y, int64_t n) {
  constexpr int64_t kWide = P * kLanes, kRows = 24;
  float* packed = scratch;
  float* out = packed + op.k * kWide;
  for (int64_t k = 0; k < op.k; ++k) {
    for (int64_t j = 0; j < n; ++j) packed[k * kWide + j] = b[k * op.b_k + j * op.b_n];
    set(packed + k * kWide + n, kWide - n, 0.0f);
  }
  for (int64_t r = 0; r < op.m; r += kRows) {
    const int64_t rows = op.m - r < kRows ? op.m - r : kRows;
    product<P>(out, a + r * op.a_m, op.a_m, op.a_k, packed, rows, op.k);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < n; ++j) y[(r + i) * op.y_m + j * op.y_n] = out[i * kWide + j] * op.factor;
  }
}

void matmul(const MatmulOp& op, const Frame& frame, int64_t task) {
  const int64_t blocks = (op.n + kQueries - 1) / kQueries;
  int64_t products = 1;
  for (int i = 0; i < MatmulOp::kBatch; ++i) products *= op.batch[i];
  const Part units = part(products * blocks, op.tasks, task);
  for (int64_t unit = units.first; unit < units.last; ++unit) {
    const int64_t column = unit % blocks * kQueries;
    const float* a = op.a.read(frame) + op.a_start;
    const float* b = op.b.read(frame) + op.b_start + column * op.b_n;
    float* y = op.y.write(frame) + op.y_start + column * op.y_n;
    int64_t rest = unit / blocks;
    for (int i = MatmulOp::kBatch - 1; i >= 0; --i) {
      const int64_t at = rest % op.batch[i];
      rest /= op.batch[i];
      a += at * op.a_batch[i];
      b += at * op.b_batch[i];
      y += at * op.y_batch[i];
    }
    const int64_t n = op.n - column < kQueries ? op.n - column : kQueries;
    switch ((n + kLanes - 1) / kLanes) {
      case 1: matmul_block<1>(op, frame.scratch, a, b, y, n); break;
      case 2: matmul_block<2>(op, frame.scratch, a, b, y, n); break;
      case 3: matmul_block<3>(op, frame.scratch, a, b, y, n); break;
      default: matmul_block<4>(op, frame.scratch, a, b, y, n); break;
    }
  }
}

void upsample(const UpsampleOp& op, const Frame& frame, int64_t task) {
  const Planes &p = op.x.planes, &q = op.y.planes;
  const Part channels = part(p.channels, op.tasks, task);
  const float* x = op.x.read(frame);
  float* y = op.y.write(frame);
  for (int64_t c = channels.first; c < channels.last; ++c)
    for (int64_t i = 0; i < p.images; ++i)
      for (int64_t v = 0; v < q.height; ++v) {
        const float* plane = x + c * p.stride + i * p.plane + p.lead;
        const float* above = plane + op.row0[v] * p.pitch;
        float* to = y + c * q.stride + i * q.plane + q.lead + v * q.pitch;
        if (!op.bilinear) {
          for (int64_t u = 0; u < q.width; ++u) to[u] = above[op.column0[u]];
          continue;
        }
        const float* below = plane + op.row1[v] * p.pitch;
        float* line = frame.scratch;
        const V down = splat(op.row_weight[v]), stay = splat(1.0f - op.row_weight[v]);
        each_vector(p.width, [&](int64_t k, auto part) {
          part.store(line + k, stay * part.load(above + k) + down * part.load(below + k));
        });
        for (int64_t u = 0; u < q.width; ++u) {
          const float over = op.column_weight[u];
          to[u] = (1.0f - over) * line[op.column0[u]] + over * line[op.column1[u]];
        }
      }
  finish(op.y, y, channels);
}

}  // namespace
}  // namespace rewound
