// Building products of two values.
#include <algorithm>
#include <utility>

#include "program.h"

namespace rewound {

namespace {

constexpr int64_t kWidest = 64;  // pixels in a block of any instruction set

}  // namespace

void Program::attention(int64_t q, int64_t k, int64_t v, int64_t y, int64_t heads, int64_t kv_heads, float scale,
                        bool causal, int64_t mask, const std::string& name) {
  begin();
  AttentionOp op{.q = readable(q, "q"), .k = readable(k, "k"), .v = readable(v, "v"), .mask = {}, .y = writable(y, "y"),
                 .masked = mask >= 0, .causal = causal, .heads = heads, .shared = 1, .depth = 0, .width = 0, .queries = 0,
                 .keys = 0, .scale = scale};
  const Planes &pq = op.q.planes, &pk = op.k.planes, &pv = op.v.planes;
  require(heads >= 1 && kv_heads >= 1 && heads % kv_heads == 0,
          std::to_string(heads) + " heads do not share " + std::to_string(kv_heads) + " key heads");
  require(pq.channels % heads == 0 && pk.channels % kv_heads == 0 && pv.channels % kv_heads == 0,
          "channels do not divide into heads");
  op.shared = heads / kv_heads;
  op.depth = pq.channels / heads;
  op.width = pv.channels / kv_heads;
  op.queries = pq.width;
  op.keys = pk.width;
  require_shape(pq, pq.channels, pq.images, 1, op.queries, "q");
  require_shape(pk, times(op.depth, kv_heads), pq.images, 1, op.keys, "k");
  require_shape(pv, pv.channels, pq.images, 1, op.keys, "v");
  require_shape(op.y.planes, times(op.width, heads), pq.images, 1, op.queries, "y");
  if (op.masked) {
    op.mask = readable(mask, "mask");
    const Planes& pm = op.mask.planes;
    require_shape(pm, pm.channels == 1 ? 1 : heads, pm.images == 1 ? 1 : pq.images, pm.height == 1 ? 1 : op.queries, op.keys,
                  "mask");
  }
  op.scratch = times(plus(plus(op.depth, op.width), op.keys), kWidest);
  const int64_t products = times(times(heads, pq.images), times(op.queries, op.keys));
  add("attention", name, op, kernels_.attention, times(products, op.depth + op.width) / 8, op.scratch);
  operators_.back().macs = times(products, op.depth + op.width);
  zero_guards(op.y, name);
}

void Program::matmul(int64_t a, int64_t b, int64_t y, const Product& product, const std::string& name) {
  begin();
  MatmulOp op{.a = readable(a, "a"), .b = readable(b, "b"), .y = writable(y, "y"), .m = product.sizes[0],
              .n = product.sizes[1], .k = product.sizes[2], .a_m = product.a[0], .a_k = product.a[1], .b_k = product.b[0],
              .b_n = product.b[1], .y_m = product.y[0], .y_n = product.y[1], .a_start = product.starts[0],
              .b_start = product.starts[1], .y_start = product.starts[2], .factor = product.factor};
  const size_t axes = product.batch.size();
  require(axes <= MatmulOp::kBatch, "matmul has at most 4 batch axes");
  require(product.a_batch.size() == axes && product.b_batch.size() == axes && product.y_batch.size() == axes,
          "batch strides for other axes than the batch has");
  const auto with = [&](int64_t first, int64_t second, const std::vector<int64_t>& rest) {
    std::vector<int64_t> all = {first, second};
    all.insert(all.end(), rest.begin(), rest.end());
    return all;
  };
  inside(op.a, op.a_start, with(op.m, op.k, product.batch), with(op.a_m, op.a_k, product.a_batch), "a");
  inside(op.b, op.b_start, with(op.k, op.n, product.batch), with(op.b_k, op.b_n, product.b_batch), "b");
  inside(op.y, op.y_start, with(op.m, op.n, product.batch), with(op.y_m, op.y_n, product.y_batch), "y");
  require((op.y_m != 0 || op.m == 1) && (op.y_n != 0 || op.n == 1), "a stride of y is 0");
  require((op.a_k != 0 && op.b_k != 0) || op.k == 1, "a stride along the sum is 0");
  int64_t written = times(op.m, op.n);
  for (size_t i = 0; i < axes; ++i) {
    require(product.y_batch[i] != 0 || product.batch[i] == 1, "a stride of y is 0");
    op.batch[i] = product.batch[i];
    op.a_batch[i] = product.a_batch[i];
    op.b_batch[i] = product.b_batch[i];
    op.y_batch[i] = product.y_batch[i];
    written = times(written, product.batch[i]);
  }
  require(written <= extent(op.y), "y is written to more than once");
  const int64_t products = times(written, op.k);
  if (op.n < 16 && op.m > op.n) {  // the longer side runs along the vectors
    std::swap(op.a, op.b);
    std::swap(op.m, op.n);
    std::swap(op.a_start, op.b_start);
    std::swap(op.y_m, op.y_n);
    std::swap(op.a_batch, op.b_batch);
    std::swap(op.a_m, op.b_n);
    std::swap(op.a_k, op.b_k);
  }
  op.scratch = times(plus(op.k, 24), kWidest);
  add("matmul", name, op, kernels_.matmul, products / 8, op.scratch);
  operators_.back().macs = products;
}

}  // namespace rewound
