// The simple operators as data: what the planner describes, checked by program*.cc and run by the kernels (ops_*.h).
#pragma once

#include <cstdint>

#include "planes.h"

#if defined(_MSC_VER)
#define REWOUND_INLINE __forceinline
#else
// Sources compiled for several instruction sets must not share a function with the linker's choice among them.
#define REWOUND_INLINE [[gnu::always_inline]] inline
#endif

namespace rewound {

enum class Memory : int32_t { kArena, kConstant, kInput, kOutput };

// One run of a program as an operator sees it. scratch: this thread's own, of the operator's `scratch` floats.
struct Frame {
  float* arena;
  const void* const* inputs;
  void* const* outputs;
  float* scratch;
};

// A value of a program: a geometry and the memory where it stands.
struct Value {
  Planes planes;
  Memory memory = Memory::kArena;
  int32_t index = 0;                // of the input or output
  int64_t offset = 0;               // floats
  const float* constant = nullptr;  // for kConstant

  // In the arena or constant: everything between the pixels is memory of this value's own, and zero.
  bool guarded() const { return memory == Memory::kArena || memory == Memory::kConstant; }
  REWOUND_INLINE const float* read(const Frame& frame) const {
    switch (memory) {
      case Memory::kArena: return frame.arena + offset;
      case Memory::kConstant: return constant;
      case Memory::kInput: return static_cast<const float*>(frame.inputs[index]) + offset;
      case Memory::kOutput: return static_cast<const float*>(frame.outputs[index]) + offset;
    }
    return nullptr;
  }
  REWOUND_INLINE float* write(const Frame& frame) const {
    return memory == Memory::kArena ? frame.arena + offset
                                    : static_cast<float*>(frame.outputs[index]) + offset;
  }
};

enum class Kind : int32_t { kAdd, kSub, kMul, kDiv, kMaximum, kMinimum, kPow };
enum class Over : int32_t { kChannels, kRows, kPlanes };
enum class Combine : int32_t { kMean, kSum, kMax, kMin };

// How to walk values together: channels (split into tasks), two more axes, then a run of neighbouring floats. Operand 0 is
// what is written. Steps of a broadcast axis are 0; `step` (within the run) is 1 or 0.
struct Walk {
  static constexpr int kMost = 3;
  int64_t channels = 1, outer = 1, inner = 1, run = 1;
  int64_t start[kMost] = {};
  int64_t channel[kMost] = {}, out[kMost] = {}, in[kMost] = {}, step[kMost] = {};
  bool whole = false;   // the runs cover the guards too, and read zeros there
  bool joined = false;  // channels follow upon each other as one long run
};

// Every operator below: `tasks` parts that may run in any order on any thread; the bits do not depend on how many.

struct ElementwiseOp {
  enum class What : int32_t { kUnary, kAffine, kScalar, kBinary } what;
  Value y, a, b;
  Walk walk;
  Kind kind = Kind::kAdd;
  Activation activation = {};
  float number = 0.0f;
  bool reverse = false;                            // number kind x
  const float *scale = nullptr, *shift = nullptr;  // per channel, or null
  bool guards = false;                             // guards of y are to be zeroed
  int64_t tasks = 1;
};

struct FillOp {
  Value y;
  float number = 0.0f;
  bool pixels = false;  // set the pixels to number, else guards only
  int64_t tasks = 1;
};

struct CopyOp {
  static constexpr int kAxes = 8;
  Value source, target;
  int axes = 0;  // outermost first; the last is the target's run, the last but one the source's if the two differ
  int64_t sizes[kAxes] = {}, from[kAxes] = {}, to[kAxes] = {};
  int64_t source_start = 0, target_start = 0;
  int64_t tasks = 1;
};

struct PhasesOp {
  Value x, y;
  int64_t stride_y, stride_x, top, left;
  int64_t tasks = 1;
};

struct EmbeddingOp {
  int32_t index;  // of the int64 input
  Value y;
  const float* table;
  int64_t rows;
  int64_t offset, image_stride, row_stride, pixel_stride;
  int64_t tasks = 1;
};

struct PoolOp {
  Value x, y;
  bool max;
  int64_t kernel_y, kernel_x, stride_y, stride_x, top, left, bottom, right, dilation_y, dilation_x;
  bool count_padding;
  int64_t scratch = 0, tasks = 1;
};

struct AdaptivePoolOp {
  Value x, y;
  bool max;
  int64_t tasks = 1;
};

struct ReduceOp {
  Value x, y;
  Combine combine;
  int64_t group;                 // neighbouring channels that are combined
  bool over_height, over_width;
  int64_t scratch = 0, tasks = 1;
};

struct NormOp {
  Value x, y;
  int64_t group;  // channels in a group
  bool pixels, rms;
  float eps;
  const float *scale, *shift;  // per channel, or null
  Walk walk;
  int64_t scratch = 0, tasks = 1;
};

struct SoftmaxOp {
  Value x, y;
  Over over;
  int64_t group;
  bool log;
  Walk walk;
  int64_t tasks = 1;
};

struct AttentionOp {
  Value q, k, v, mask, y;
  bool masked, causal;
  int64_t heads, shared;  // shared: query heads for one key head
  int64_t depth, width;   // features of a key head, of a value head
  int64_t queries, keys;
  float scale;
  int64_t scratch = 0, tasks = 1;
};

struct MatmulOp {
  static constexpr int kBatch = 4;
  Value a, b, y;
  int64_t m, n, k;
  int64_t a_m, a_k, b_k, b_n, y_m, y_n;
  int64_t batch[kBatch] = {1, 1, 1, 1}, a_batch[kBatch] = {}, b_batch[kBatch] = {}, y_batch[kBatch] = {};
  int64_t a_start, b_start, y_start;
  float factor;
  int64_t scratch = 0, tasks = 1;
};

struct UpsampleOp {
  Value x, y;
  bool bilinear;
  // For each row and column of y: the first of the two it is mixed from (nearest: the one), the second, and its weight.
  const int32_t *row0, *row1, *column0, *column1;
  const float *row_weight, *column_weight;
  int64_t scratch = 0, tasks = 1;
};

// Parts of the work: [first, last) of task `task` of `tasks` over `units`.
struct Part {
  int64_t first, last;
};
REWOUND_INLINE Part part(int64_t units, int64_t tasks, int64_t task) {
  const int64_t each = units / tasks, rest = units % tasks;
  const int64_t first = each * task + (task < rest ? task : rest);
  return {first, first + each + (task < rest ? 1 : 0)};
}

}  // namespace rewound
