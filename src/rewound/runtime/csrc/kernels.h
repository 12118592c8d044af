// What one instruction set offers: a table of functions, compiled from kernels.cc for each.
#pragma once

#include "conv.h"
#include "ops.h"

namespace rewound {

struct Kernels {
  const char* name;  // "portable", "avx2", "avx512", "neon"
  int lanes;         // floats in a vector register

  // Part `task` of an operator.
  void (*conv)(const ConvOp&, const float* x, float* y, const float* residual, int64_t task);
  void (*matvec)(const MatvecOp&, const float* x, float* y, const float* residual, int64_t task);
  void (*elementwise)(const ElementwiseOp&, const Frame&, int64_t task);
  void (*fill)(const FillOp&, const Frame&, int64_t task);
  void (*copy)(const CopyOp&, const Frame&, int64_t task);
  void (*phases)(const PhasesOp&, const Frame&, int64_t task);
  void (*embedding)(const EmbeddingOp&, const Frame&, int64_t task);
  void (*pool)(const PoolOp&, const Frame&, int64_t task);
  void (*adaptive_pool)(const AdaptivePoolOp&, const Frame&, int64_t task);
  void (*reduce)(const ReduceOp&, const Frame&, int64_t task);
  void (*norm)(const NormOp&, const Frame&, int64_t task);
  void (*softmax)(const SoftmaxOp&, const Frame&, int64_t task);
  void (*attention)(const AttentionOp&, const Frame&, int64_t task);
  void (*matmul)(const MatmulOp&, const Frame&, int64_t task);
  void (*upsample)(const UpsampleOp&, const Frame&, int64_t task);
};

}  // namespace rewound
