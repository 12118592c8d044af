// A program: operators over one arena, built call by call, each call checked, then run many times.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "checked.h"
#include "conv.h"
#include "kernels.h"

namespace rewound {

// Memory of floats on a cache line, zeroed.
class Floats {
 public:
  explicit Floats(int64_t count);
  ~Floats();
  Floats(const Floats&) = delete;
  Floats& operator=(const Floats&) = delete;
  float* data() const { return data_; }

 private:
  void* memory_;
  float* data_;
};

// One array of a user: its type and its elements in one group of images.
struct Port {
  bool ids;  // int64, else float32
  int64_t elements;
};

struct Operator {
  std::string kind, name;
  int64_t tasks = 1;
  int64_t scratch = 0;  // floats for each thread
  int64_t bytes = 0;    // weights
  int64_t macs = 0;
  std::vector<int64_t> schedule;
  bool whole = false;  // task -1 is all tasks at once, and quicker than one after the other
  std::function<void(const Frame&, int64_t task)> run;
};

// An id that is in no table: what the Python side sees as an IndexError.
struct Outside : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Program {
 public:
  // Zeroed floats before and behind the arena, so that vector reads of what is masked afterwards stay inside.
  static constexpr int64_t kSlack = 16384;

  Program(int64_t arena, std::vector<Port> inputs, std::vector<Port> outputs);
  ~Program();
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  // Every method below throws Refused, and then changes nothing.
  int64_t value(int64_t offset, const Planes& planes);
  int64_t constant(const float* data, int64_t count, const Planes& planes);
  int64_t port(Memory memory, int64_t index, int64_t offset, const Planes& planes);

  // Elementwise (program_elementwise.cc).
  void unary(int64_t x, int64_t y, Activation activation, const std::string& name);
  void affine(int64_t x, int64_t y, const std::vector<float>& scale, const std::vector<float>& shift,
              Activation activation, const std::string& name);
  void scalar(int64_t x, int64_t y, Kind kind, float number, bool reverse, Activation activation,
              const std::string& name);
  void binary(int64_t a, int64_t b, int64_t y, Kind kind, Activation activation, const std::string& name);
  void clear(int64_t value, bool everything, const std::string& name);
  void fill(int64_t value, float number, const std::string& name);

  // Moving (program_move.cc).
  void phases(int64_t x, int64_t y, const int64_t (&stride)[2], const int64_t (&padding)[2], const std::string& name);
  struct Axis {
    int64_t size, from, to;
  };
  void copy(int64_t source, int64_t target, std::vector<Axis> axes, int64_t source_start, int64_t target_start,
            const std::string& name);
  void embedding(int64_t index, int64_t y, const float* table, int64_t rows, int64_t features, int64_t offset,
                 int64_t image_stride, int64_t row_stride, int64_t pixel_stride, const std::string& name);
  void upsample(int64_t x, int64_t y, bool bilinear, bool align_corners, const float* scale, const std::string& name);

  // Over pixels or channels (program_pool.cc).
  struct Window {
    int64_t kernel[2], stride[2], padding[4], dilation[2];  // padding: top, left, bottom, right
  };
  void pool(int64_t x, int64_t y, bool max, const Window& window, bool count_padding, const std::string& name);
  void adaptive_pool(int64_t x, int64_t y, bool max, const std::string& name);
  void reduce(int64_t x, int64_t y, Combine combine, const std::string& name);
  void norm(int64_t x, int64_t y, int64_t groups, bool pixels, bool rms, float eps, const std::vector<float>& scale,
            const std::vector<float>& shift, const std::string& name);
  void softmax(int64_t x, int64_t y, Over over, int64_t groups, bool log, const std::string& name);

  // Products with fixed weights (program_weights.cc). residual: -1 for none.
  void conv(int64_t x, int64_t y, int64_t residual, ConvSpec spec, const Weight& weight, const float* bias,
            Schedule schedule, const std::string& name);
  void matvec(int64_t x, int64_t y, int64_t residual, const Weight& weight, const float* bias, Activation activation,
              const std::string& name);

  // Products of values (program_product.cc).
  void attention(int64_t q, int64_t k, int64_t v, int64_t y, int64_t heads, int64_t kv_heads, float scale, bool causal,
                 int64_t mask, const std::string& name);  // mask: -1 for none
  struct Product {
    int64_t sizes[3], a[2], b[2], y[2], starts[3];
    std::vector<int64_t> batch, a_batch, b_batch, y_batch;
    float factor;
  };
  void matmul(int64_t a, int64_t b, int64_t y, const Product& product, const std::string& name);

  // Run `groups` groups; nanoseconds of each operator are added up where asked for (one group then).
  void run(const std::vector<const void*>& inputs, const std::vector<void*>& outputs, int64_t groups, int threads,
           std::vector<int64_t>* nanoseconds = nullptr);
  void trim();

  const std::vector<Port>& inputs() const { return inputs_; }
  const std::vector<Port>& outputs() const { return outputs_; }
  const std::vector<Operator>& operators() const { return operators_; }
  const Kernels& kernels() const { return kernels_; }
  int64_t weight_bytes() const;
  int64_t arena_bytes() const { return (arena_ + 2 * kSlack) * static_cast<int64_t>(sizeof(float)); }

 private:
  struct Runtime;  // arenas and threads
  struct IdCheck {
    int32_t input;
    int64_t rows, offset;
    int64_t sizes[3], strides[3];
    std::string name;
  };

  const Value& readable(int64_t id, const char* role) const;
  const Value& writable(int64_t id, const char* role) const;
  // Elements that a value's own memory has, from its first on.
  int64_t extent(const Value& value) const;
  // Refuse unless start + sum(index * stride) stays in the value for all indices below the sizes.
  void inside(const Value& value, int64_t start, const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides,
              const char* role) const;
  const float* keep(const float* data, int64_t count);
  const float* keep_per_channel(const std::vector<float>& data, int64_t channels, const char* role);
  // `work`: about how many floats are touched; small operators are one task. Takes over what `keep` has kept.
  template <class Op>
  void add(const char* kind, const std::string& name, Op op, void (*kernel)(const Op&, const Frame&, int64_t),
           int64_t work, int64_t scratch = 0);
  void zero_guards(const Value& y, const std::string& name);
  void elementwise(ElementwiseOp op, const std::string& name);
  void open() const;  // refuses when frozen
  void begin();       // of a call that adds an operator
  Runtime& runtime();
  void check_ids(const std::vector<const void*>& inputs, int64_t groups) const;

  const Kernels& kernels_;
  int64_t arena_;
  std::vector<Port> inputs_, outputs_;
  std::vector<Value> values_;
  std::vector<Operator> operators_;
  std::vector<IdCheck> id_checks_;
  std::vector<std::unique_ptr<Floats>> kept_, pending_;  // pending: of the call that is being checked
  int64_t constant_bytes_ = 0, pending_bytes_ = 0;
  std::atomic<Runtime*> runtime_{nullptr};
  std::atomic<bool> frozen_{false};
};

// How many parts an operator is split into that touches so many floats; and how many floats a part has from now on (tests).
int64_t parts(int64_t work);
void use_task_size(int64_t floats);

template <class Op>
void Program::add(const char* kind, const std::string& name, Op op, void (*kernel)(const Op&, const Frame&, int64_t),
                  int64_t work, int64_t scratch) {
  op.tasks = parts(work);
  Operator added;
  added.kind = kind;
  added.name = name;
  added.tasks = op.tasks;
  added.scratch = scratch;
  added.bytes = pending_bytes_;
  added.run = [op, kernel](const Frame& frame, int64_t task) { kernel(op, frame, task); };
  operators_.push_back(std::move(added));
  for (auto& memory : pending_) kept_.push_back(std::move(memory));
  pending_.clear();
  pending_bytes_ = 0;
}

// Geometry.
inline bool same_place(const Planes& a, const Planes& b) {  // pixels of an image stand alike
  return a.images == b.images && a.height == b.height && a.width == b.width && a.pitch == b.pitch && a.lead == b.lead &&
         a.plane == b.plane;
}
inline bool has_guards(const Planes& p) {
  return p.lead > 0 || p.pitch > p.width || p.plane > p.height * p.pitch || p.stride > p.images * p.plane;
}
void require_shape(const Planes& p, int64_t channels, int64_t images, int64_t height, int64_t width, const char* role);

// How to walk y, a and perhaps b (broadcast to y) together. whole_planes: runs may cover guards.
Walk walk(const Value& y, const Value& a, const Value* b, bool join, bool whole_planes);

}  // namespace rewound
