#include "conv.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "checked.h"

namespace rewound {

namespace {

constexpr int64_t kReach = 16384 - 64;     // floats that a masked vector may read beyond a value: Program::kSlack less a vector
constexpr double kSum = 256.0;             // products in one sum, for the sake of its rounding error
constexpr double kFirstCache = 24e3;        // bytes of the first-level cache that x can have

template <class T>
T* allocate(std::vector<std::shared_ptr<void>>& memory, int64_t& bytes, int64_t count) {
  count = std::max<int64_t>(count, 1);
  std::shared_ptr<T[]> array(new (std::align_val_t(64)) T[static_cast<size_t>(count)](), [](T* p) {
    ::operator delete[](p, std::align_val_t(64));
  });
  bytes += count * static_cast<int64_t>(sizeof(T));
  memory.push_back(array);
  return array.get();
}

// Where a place of a row stands in x, in floats from the output pixel's own position.
struct Taps {
  const ConvSpec& spec;
  int64_t per_group;
  int64_t window;

  explicit Taps(const ConvSpec& s, int64_t row)
      : spec(s), per_group(row / (s.kernel[0] * s.kernel[1])), window(s.kernel[0] * s.kernel[1]) {}

  int64_t offset(int64_t group, int64_t place) const {
    const int64_t channel = group * per_group + place / window;
    const int64_t ky = place % window / spec.kernel[1], kx = place % spec.kernel[1];
    int64_t qy, ry, qx, rx;
    split(ky * spec.dilation[0] - spec.padding[0], spec.stride[0], qy, ry);
    split(kx * spec.dilation[1] - spec.padding[1], spec.stride[1], qx, rx);
    const int64_t plane = (channel * spec.stride[0] + ry) * spec.stride[1] + rx;
    return plane * spec.in.stride + (spec.in.lead - spec.out.lead) + qy * spec.in.pitch + qx;
  }

  // Of a place of a row: how many pixels to the right of the output pixel's own it reads.
  int64_t column(int64_t place) const {
    int64_t whole, rest;
    split(place % spec.kernel[1] * spec.dilation[1] - spec.padding[1], spec.stride[1], whole, rest);
    return whole;
  }

  static void split(int64_t at, int64_t stride, int64_t& whole, int64_t& rest) {
    rest = ((at % stride) + stride) % stride;
    whole = (at - rest) / stride;
  }
};

std::string text(int64_t n) { return std::to_string(n); }

// What the taps reach for, in rows and columns from a pixel's own place.
struct Reach {
  int64_t top, bottom, left, right;

  explicit Reach(const ConvSpec& s) {
    int64_t rest;
    Taps::split(-s.padding[0], s.stride[0], top, rest);
    Taps::split(-s.padding[1], s.stride[1], left, rest);
    Taps::split(times(s.kernel[0] - 1, s.dilation[0]) - s.padding[0], s.stride[0], bottom, rest);
    Taps::split(times(s.kernel[1] - 1, s.dilation[1]) - s.padding[1], s.stride[1], right, rest);
  }
};

// Every tap of every pixel must stay in a guard or a pixel of the plane it reads, and in memory.
void check(const ConvSpec& s, const Weight& w) {
  const int64_t window = times(s.kernel[0], s.kernel[1]);
  require(s.kernel[0] >= 1 && s.kernel[1] >= 1 && s.stride[0] >= 1 && s.stride[1] >= 1 && s.dilation[0] >= 1 &&
              s.dilation[1] >= 1 && s.padding[0] >= 0 && s.padding[1] >= 0,
          "kernel, stride and dilation are at least 1, padding at least 0");
  require(s.groups >= 1 && w.out >= 1 && w.row >= 1, "groups, outputs and inputs are at least 1");
  require(w.out % s.groups == 0, text(w.out) + " outputs do not divide into " + text(s.groups) + " groups");
  require(w.row % window == 0, "a row of " + text(w.row) + " places is no whole number of windows");
  const int64_t channels = times(times(w.row / window, s.groups), times(s.stride[0], s.stride[1]));
  require(s.in.channels == channels, "x has " + text(s.in.channels) + " channels, the weight reads " + text(channels));
  require(s.out.channels == w.out, "y has " + text(s.out.channels) + " channels, the weight writes " + text(w.out));
  require(s.in.images == s.out.images && s.in.pitch == s.out.pitch && (s.in.images == 1 || s.in.plane == s.out.plane),
          "pixels of x and y stand differently (images, pitch or plane)");
  require(s.in.stride % 16 == 0 && s.out.stride % 16 == 0, "strides of x and y are multiples of 16");
  const Reach reach(s);
  require(std::abs(reach.top * s.in.pitch + reach.left) + 64 <= kReach && std::abs(reach.bottom * s.in.pitch + reach.right) + 64 <= kReach,
          "taps reach more than " + text(kReach - 64) + " floats");
  require(times(times(s.in.channels, s.in.stride), 4) < (int64_t{1} << 31), "x is larger than 2 GiB");
}

// Whether every tap of every pixel falls on a pixel or on zeros: empty, or what is wrong. aligned: columns are no matter.
std::string unguarded(const ConvSpec& s, bool aligned) {
  const Reach reach(s);
  const int64_t guard = s.in.pitch - s.in.width;
  const int64_t left = aligned ? 0 : -reach.left, right = aligned ? 0 : s.out.width - 1 + reach.right - (s.in.width - 1);
  if (left > guard && !(s.in.height == 1 && left <= s.in.lead))
    return "a tap looks " + text(left) + " pixels to the left, the guard has " + text(guard);
  if (right > guard && s.in.height > 1) return "a tap looks " + text(right) + " pixels to the right, the guard has " + text(guard);
  // floats before the first pixel, and after the last: there, what follows is the rest of this plane, then the next one's lead
  const int64_t above = plus(times(std::max<int64_t>(-reach.top, 0), s.in.pitch), std::max<int64_t>(left, 0));
  if (above > s.in.lead) return "a tap looks " + text(above) + " floats before the plane, the guard has " + text(s.in.lead);
  const int64_t last = s.out.width - 1 + reach.right;
  const int64_t end = plus(times(std::max<int64_t>(s.out.height - 1 + reach.bottom, 0), s.in.pitch),
                           aligned ? std::min(last, s.in.pitch - 1) : last);
  const int64_t pixels = times(s.in.height - 1, s.in.pitch) + s.in.width - 1;
  const int64_t tail = s.in.stride - (s.in.images - 1) * s.in.plane - pixels - 1;
  const int64_t room = s.in.images > 1 ? std::min(s.in.plane - pixels - 1, tail) : tail;
  if (end - pixels > std::max<int64_t>(room, 0))
    return "a tap looks " + text(end - pixels) + " floats behind the plane, the guard has " + text(room);
  return "";
}

// The vectors of a channel that are computed.
struct Extent {
  int64_t begin, count, unit;

  Extent(const ConvSpec& s, int64_t lanes, bool aligned) {
    const int64_t pixels = (s.out.height - 1) * s.out.pitch + s.out.width;
    const int64_t end = (s.out.images - 1) * s.out.plane + s.out.lead + pixels;
    unit = aligned ? std::max<int64_t>(s.out.pitch / lanes, 1) : 1;
    begin = aligned ? s.out.lead : s.out.images == 1 ? s.out.lead / 16 * 16 : 0;
    count = (end - begin + unit * lanes - 1) / (unit * lanes) * unit;
  }
};

// Whether taps can be grouped by columns, so that whole rows of pixels are loaded and the sums moved by a pixel.
bool alignable(const ConvSpec& s, int64_t lanes) {
  const Reach reach(s);
  if (reach.left < -1 || reach.right > 1 || (reach.left == 0 && reach.right == 0)) return false;
  if (s.in.pitch % lanes != 0 && lanes % s.in.pitch != 0) return false;
  if (s.in.images > 1 && s.out.plane % s.out.pitch != 0) return false;
  const Extent extent(s, lanes, true);
  return extent.begin + extent.count * lanes <= s.out.stride;
}

void check_rows(const Weight& w) {
  if (w.starts == nullptr) return;
  require(w.starts[0] == 0, "the first row starts at " + text(w.starts[0]));
  for (int64_t o = 0; o < w.out; ++o) {
    require(w.starts[o] <= w.starts[o + 1], "row " + text(o) + " ends before it starts");
    for (int64_t i = w.starts[o]; i < w.starts[o + 1]; ++i)
      require(w.places[i] >= 0 && w.places[i] < w.row && (i == w.starts[o] || w.places[i - 1] < w.places[i]),
              "places of row " + text(o) + " are not ascending within 0 .. " + text(w.row - 1));
  }
}

double density(const Weight& w) {
  return w.starts == nullptr ? 1.0 : static_cast<double>(w.starts[w.out]) / (static_cast<double>(w.out) * static_cast<double>(w.row));
}

// Share of blocks of `rows` neighbouring rows and one place that hold a value, among all: what a stream of blocks computes.
double occupancy(const ConvSpec& s, const Weight& w, int64_t rows) {
  if (w.starts == nullptr) return 1.0;
  const int64_t each = w.out / s.groups;
  int64_t found = 0, all = 0;
  std::vector<int64_t> seen(static_cast<size_t>(w.row), -1);
  for (int64_t g = 0, stamp = 0; g < s.groups; ++g)
    for (int64_t first = 0; first < each; first += rows, ++stamp) {
      all += rows * w.row;
      for (int64_t o = g * each + first; o < g * each + std::min(each, first + rows); ++o)
        for (int64_t i = w.starts[o]; i < w.starts[o + 1]; ++i)
          if (seen[static_cast<size_t>(w.places[i])] != stamp) {
            seen[static_cast<size_t>(w.places[i])] = stamp;
            found += rows;
          }
    }
  return static_cast<double>(found) / static_cast<double>(all);
}

int64_t most_vectors(int64_t rows) { return rows == 1 ? 14 : rows == 2 ? 8 : rows == 4 ? 6 : 4; }

bool has_kernel(int64_t rows, int64_t vectors, int64_t registers) {
  if (rows != 1 && rows != 2 && rows != 4 && rows != 6) return false;
  const int64_t used = rows == 1 ? vectors + 2 : rows * vectors + vectors + 1;
  return vectors >= 1 && vectors <= most_vectors(rows) && used <= registers;
}

// Cycles of a schedule, by what it loads, multiplies and stores; a "vector" below is of 16 floats. The constants were measured
// on Zen 4 (benchmarks/kernels.py), and rank schedules on others as well.
struct Cost {
  const ConvSpec& s;
  const Weight& w;
  double filled[7];  // by rows that share a tap
  int64_t window, channels, each;
  double planes = 0.0, below = 0.0;  // of a channel: planes that are read, and floats of them beyond a tile

  Cost(const ConvSpec& spec, const Weight& weight) : s(spec), w(weight) {
    for (int64_t rows : {1, 2, 4, 6}) filled[rows] = rows == 1 ? density(w) : occupancy(s, w, rows);
    window = s.kernel[0] * s.kernel[1];
    channels = w.row / window;
    each = w.out / s.groups;
    for (int64_t ry = 0; ry < s.stride[0]; ++ry)
      for (int64_t rx = 0; rx < s.stride[1]; ++rx) {
        const int64_t rows = span(0, ry), columns = span(1, rx);
        if (rows < 0 || columns < 0) continue;
        planes += 1.0;
        below += static_cast<double>(rows * s.in.pitch + columns);
      }
  }

  // From the first to the last row (column) that taps of one phase look at; -1 where there is no such tap.
  int64_t span(int axis, int64_t phase) const {
    int64_t first = INT64_MAX, last = INT64_MIN;
    for (int64_t k = 0; k < s.kernel[axis]; ++k) {
      int64_t whole, rest;
      Taps::split(k * s.dilation[axis] - s.padding[axis], s.stride[axis], whole, rest);
      if (rest == phase) first = std::min(first, whole), last = std::max(last, whole);
    }
    return first > last ? -1 : last - first;
  }

  // Share of the places of the window whose loads cross cache lines.
  double misaligned(const Schedule& a) const {
    const Taps taps(s, w.row);
    const int64_t begin = Extent(s, a.lanes, a.aligned == 2).begin;
    int64_t shifted = 0;
    for (int64_t place = 0; place < window; ++place) {
      const int64_t at = begin + taps.offset(0, place) - (a.aligned == 2 ? taps.column(place) : 0);
      shifted += at % a.lanes != 0;
    }
    return static_cast<double>(shifted) / static_cast<double>(window);
  }

  double operator()(const Schedule& a) const {
    const Extent extent(s, a.lanes, a.aligned == 2);
    const double rows = static_cast<double>(a.rows), floats = static_cast<double>(a.vectors * a.lanes);
    const double tiles = static_cast<double>((extent.count + a.vectors - 1) / a.vectors);
    const double wide = a.lanes >= 8 ? 1.0 : 3.0;  // four lanes, without a joint multiplication and addition
    const double vectors = wide * static_cast<double>(extent.count * a.lanes) / 16.0 / tiles;
    const double row_blocks = static_cast<double>((each + a.rows - 1) / a.rows);
    const double blocks = static_cast<double>((w.row + a.block - 1) / a.block);
    const double taps = filled[a.rows] * static_cast<double>(w.row) / blocks;  // of a visit: a row block in a block
    const double visits = std::max(1.0, blocks * (1.0 - std::exp(-taps)));
    const double shifted = misaligned(a);
    const double line = 4.0 * (planes * floats + below);
    const double held = std::min(1.0, kFirstCache / (line * static_cast<double>(a.block) / static_cast<double>(window)));
    // What the core does, and what the second cache does meanwhile: pixels that the first has lost, and sums, to and fro.
    const double load = vectors * (1.1 + 0.5 * shifted);
    const double waits = a.vectors == 1 ? 2.4 : a.vectors * a.lanes <= 64 ? 1.6 : 4.0;  // sums for themselves
    const double tap = a.rows == 1 ? std::max(waits, load + 1.2)
                                   : std::max(rows * vectors, std::max(load + 0.55 * rows, 4.0)) + 1.8;
    const double moves = a.aligned != 2 ? 0.0 : a.rows > 1 ? 10.0 : a.vectors <= 11 ? 3.0 : 3.2;
    const double visit = rows * vectors * ((a.rows == 1 ? 2.4 : 5.0) + moves) + (a.rows == 1 ? 15.0 : 30.0);
    const bool near = static_cast<double>(each) * floats * 4.0 < 10e3;
    const double lines = a.lanes == 8 ? 1.07 * std::ceil(vectors) : vectors;
    const double core = blocks * taps * tap + visits * visit;
    const double cache = 2.2 * (blocks * taps * (lines + shifted) * (1.0 - held) +
                                visits * rows * vectors * (near ? 0.2 : blocks == 1.0 ? 0.65 : 1.3));
    const double fill = static_cast<double>(channels) * line / 64.0 * 2.0 / row_blocks;
    const double time = std::max(core, cache) + (a.rows == 1 ? 0.32 : 0.1) * std::min(core, cache) + fill;
    return static_cast<double>(s.groups) * tiles * row_blocks * time;
  }
};

// The best of all schedules that agree with what was asked for.
Schedule choose(const ConvSpec& s, const Weight& w, const Schedule& asked, int64_t lanes) {
  const int64_t registers = lanes == 16 ? 32 : 16;
  const Cost cost(s, w);
  const std::string missing[2] = {unguarded(s, false), unguarded(s, true)};
  require(asked.rows == 0 || has_kernel(asked.rows, 1, registers), "no kernel of " + text(asked.rows) + " rows");
  require(asked.rows == 0 || asked.vectors == 0 || has_kernel(asked.rows, asked.vectors, registers),
          "no kernel of " + text(asked.rows) + " rows by " + text(asked.vectors) + " vectors");
  const auto allowed = [](int64_t wish, int64_t value) { return wish == 0 || wish == value; };
  Schedule best;
  double least = 1e300;
  for (const int64_t n : {lanes, lanes == 16 ? int64_t{8} : int64_t{0}}) {
    if (n == 0 || !allowed(asked.lanes, n)) continue;
    for (const int64_t aligned : {1, 2}) {
      if (!allowed(asked.aligned, aligned) || !missing[aligned - 1].empty() || (aligned == 2 && !alignable(s, n))) continue;
      const Extent extent(s, n, aligned == 2);
      for (const int64_t rows : {1, 2, 4, 6}) {
        if (!allowed(asked.rows, rows) || (rows > 1 && asked.rows == 0 && rows > cost.each)) continue;
        for (int64_t vectors = extent.unit; has_kernel(rows, vectors, registers); vectors += extent.unit) {
          const int64_t wish = std::max(std::min(asked.vectors, extent.count) / extent.unit * extent.unit, extent.unit);
          if (asked.vectors != 0 && vectors != wish) continue;
          if (vectors > extent.count) break;
          int64_t before = 0;
          for (int64_t parts = 1; parts <= cost.channels; parts = parts + 1 + parts / 4) {
            Schedule each{rows, vectors, (cost.channels + parts - 1) / parts * cost.window, n, aligned};
            if (asked.block != 0) each.block = std::clamp<int64_t>(asked.block, 1, w.row);
            if (each.block == before) continue;
            before = each.block;
            const double sum = cost.filled[rows] * static_cast<double>(each.block);
            if (asked.block == 0 && sum > kSum && each.block > cost.window) continue;
            const double cycles = cost(each);
            if (cycles < least) least = cycles, best = each;
            if (asked.block != 0) break;
          }
        }
      }
    }
  }
  if (best.rows == 0) throw Refused(missing[0].empty() ? "no kernel for this schedule" : missing[0]);
  return best;
}

// Whether whole columns, zeros and all, are quicker than the nonzeros: those cost about as much each as six weights that a
// cache holds, or one that memory holds, by rows; twice that by columns (nanoseconds, measured: benchmarks/kernels.py).
bool columns_pay(const Weight& w) {
  const double bytes = 4.0 * static_cast<double>(w.out) * static_cast<double>(w.row);
  const double dense = bytes < 768 * 1024 ? 0.04 : bytes < 16.0 * 1024 * 1024 ? 0.1 : 0.26;
  const double each = w.row <= kGather ? 0.24 : 0.47;
  return bytes / 4 * dense < each * static_cast<double>(w.starts[w.out]);
}

// The rows of a sparse matrix in fours of about one length, the longest first, entries side by side.
void pack_fours(const Weight& w, Matvec& made) {
  MatvecOp& op = made.op;
  const auto length = [&](int64_t o) { return o < w.out ? w.starts[o + 1] - w.starts[o] : 0; };
  op.four_per_task = (op.panel + 3) / 4;
  const int64_t fours = op.tasks * op.four_per_task;
  int64_t* starts = allocate<int64_t>(made.memory, made.bytes, fours + 1);
  int32_t* rows = allocate<int32_t>(made.memory, made.bytes, fours * 4);
  std::fill_n(rows, fours * 4, -1);
  for (int64_t task = 0; task < op.tasks; ++task) {
    const int64_t first = task * op.panel;
    int32_t* order = rows + task * op.four_per_task * 4;
    const int64_t count = std::min(op.panel, w.out - first);
    for (int64_t i = 0; i < count; ++i) order[i] = static_cast<int32_t>(i);
    std::stable_sort(order, order + count, [&](int32_t a, int32_t b) { return length(first + a) > length(first + b); });
    for (int64_t i = 0; i < op.four_per_task; ++i) {
      const int64_t four = task * op.four_per_task + i;
      starts[four + 1] = starts[four] + (order[4 * i] < 0 ? 0 : length(first + order[4 * i]));
    }
  }
  uint16_t* places = allocate<uint16_t>(made.memory, made.bytes, starts[fours] * 4);
  float* values = allocate<float>(made.memory, made.bytes, starts[fours] * 4);
  std::fill_n(places, starts[fours] * 4, static_cast<uint16_t>(w.row));
  for (int64_t i = 0; i < fours * 4; ++i) {
    if (rows[i] < 0) continue;
    const int64_t o = i / 4 / op.four_per_task * op.panel + rows[i];
    for (int64_t k = 0; k < length(o); ++k) {
      const int64_t at = (starts[i / 4] + k) * 4 + i % 4;
      places[at] = static_cast<uint16_t>(w.places[w.starts[o] + k]);
      values[at] = w.values[w.starts[o] + k];
    }
  }
  op.four_starts = starts;
  op.four_rows = rows;
  op.four_places = places;
  op.four_values = values;
}

}  // namespace

Conv pack(const ConvSpec& s, const Weight& w, const float* bias, Schedule asked, int lanes, int64_t (*parts)(int64_t)) {
  check(s, w);
  check_rows(w);
  Conv made;
  ConvOp& op = made.op;
  const Schedule schedule = choose(s, w, asked, lanes);
  made.schedule = schedule;
  const Extent extent(s, schedule.lanes, schedule.aligned == 2);
  const int64_t rows = schedule.rows, each = w.out / s.groups, per = (each + rows - 1) / rows;
  op.lanes = static_cast<int>(schedule.lanes);
  op.rows = static_cast<int>(rows);
  op.aligned = schedule.aligned == 2;
  op.wraps = op.aligned && (s.in.width == s.in.pitch || s.out.width == s.out.pitch);
  op.row_blocks = per * s.groups;
  op.blocks = (w.row + schedule.block - 1) / schedule.block;
  op.out = w.out;
  op.begin = extent.begin, op.count = extent.count, op.unit = extent.unit;
  op.tiles = (op.count + schedule.vectors - 1) / schedule.vectors;
  op.y_stride = s.out.stride;
  op.y_tail = s.out.lead;
  op.activation = s.activation;

  int32_t* row_of = allocate<int32_t>(made.memory, made.bytes, op.row_blocks * rows);
  float* biases = allocate<float>(made.memory, made.bytes, op.row_blocks * rows);
  for (int64_t g = 0; g < s.groups; ++g)
    for (int64_t i = 0; i < per * rows; ++i) {
      row_of[g * per * rows + i] = i < each ? static_cast<int32_t>(g * each + i) : -1;
      biases[g * per * rows + i] = i < each && bias != nullptr ? bias[g * each + i] : 0.0f;
    }
  op.row_of = row_of;
  op.bias = biases;

  int32_t* mask = allocate<int32_t>(made.memory, made.bytes, op.count * schedule.lanes);
  for (int64_t i = 0; i < s.out.images; ++i)
    for (int64_t v = 0; v < s.out.height; ++v)
      for (int64_t u = 0; u < s.out.width; ++u)
        mask[i * s.out.plane + s.out.lead + v * s.out.pitch + u - op.begin] = -1;
  op.mask = mask;
  if (op.wraps) {
    const int64_t tile = schedule.vectors * schedule.lanes;
    int32_t* not_first = allocate<int32_t>(made.memory, made.bytes, tile);
    int32_t* not_last = allocate<int32_t>(made.memory, made.bytes, tile);
    for (int64_t i = 0; i < tile; ++i) {
      not_first[i] = i % s.out.pitch != 0 ? -1 : 0;
      not_last[i] = (i + 1) % s.out.pitch != 0 ? -1 : 0;
    }
    op.not_first = not_first, op.not_last = not_last;
  }

  // Where each place of a row reads, and the block and the group of its column that it belongs to.
  const Taps taps(s, w.row);
  const int64_t groups = op.aligned ? 3 : 1;
  std::vector<int64_t> run_of(static_cast<size_t>(w.row));  // the run of row block 0
  std::vector<int32_t> offset_of(static_cast<size_t>(w.row));
  for (int64_t p = 0; p < w.row; ++p) {
    const int64_t column = op.aligned ? taps.column(p) : 0;
    run_of[static_cast<size_t>(p)] = p / schedule.block * op.row_blocks * groups + (op.aligned ? 1 - column : 0);
    offset_of[static_cast<size_t>(p)] = static_cast<int32_t>(4 * (taps.offset(0, p) - column));
  }
  const int64_t group_bytes = 4 * taps.per_group * s.stride[0] * s.stride[1] * s.in.stride;

  // Count, then fill: the entries of block b, row block r and column group g stand together, places ascending.
  int64_t* starts = allocate<int64_t>(made.memory, made.bytes, op.blocks * op.row_blocks * groups + 1);
  const bool dense = w.starts == nullptr;
  std::vector<int64_t> cursor(static_cast<size_t>(rows));
  const auto each_place = [&](auto take) {  // take(run, row block, place): in the order of places within a row block
    for (int64_t r = 0; r < op.row_blocks; ++r) {
      const int32_t* of = row_of + r * rows;
      const auto found = [&](int64_t place) { take(run_of[static_cast<size_t>(place)] + r * groups, r, place); };
      if (dense) {
        for (int64_t p = 0; p < w.row; ++p) found(p);
        continue;
      }
      for (int64_t i = 0; i < rows; ++i) cursor[static_cast<size_t>(i)] = of[i] < 0 ? 0 : w.starts[of[i]];
      if (rows == 1) {
        for (int64_t& c = cursor[0]; c < w.starts[of[0] + 1]; ++c) found(w.places[c]);
        continue;
      }
      for (;;) {
        int64_t place = w.row;
        for (int64_t i = 0; i < rows; ++i)
          if (of[i] >= 0 && cursor[static_cast<size_t>(i)] < w.starts[of[i] + 1])
            place = std::min<int64_t>(place, w.places[cursor[static_cast<size_t>(i)]]);
        if (place == w.row) break;
        found(place);
        for (int64_t i = 0; i < rows; ++i) {
          int64_t& c = cursor[static_cast<size_t>(i)];
          if (of[i] >= 0 && c < w.starts[of[i] + 1] && w.places[c] == place) ++c;
        }
      }
    }
  };
  const int64_t runs = op.blocks * op.row_blocks * groups;
  each_place([&](int64_t run, int64_t, int64_t) { ++starts[run + 1]; });
  for (int64_t i = 0; i < runs; ++i) starts[i + 1] += starts[i];
  const int64_t total = starts[runs], size = 4 * (1 + rows);
  char* entries = allocate<char>(made.memory, made.bytes, total * size);
  std::vector<int64_t> next(starts, starts + runs);
  each_place([&](int64_t run, int64_t r, int64_t place) {
    const int64_t at = next[static_cast<size_t>(run)]++;
    const int32_t offset = static_cast<int32_t>(offset_of[static_cast<size_t>(place)] + r / per * group_bytes);
    char* entry = entries + at * size;
    char* values = entry + 4;
    if (rows == 1) {
      const int64_t first = starts[run], within = at - first;
      if (within < (starts[run + 1] - first) / 2 * 2) {
        entry = entries + (first + within / 2 * 2) * size + within % 2 * 4;
        values = entry + 8;
      }
    }
    std::memcpy(entry, &offset, 4);
    for (int64_t i = 0; i < rows; ++i) {
      const int32_t o = row_of[r * rows + i];
      float value = 0.0f;
      if (o >= 0 && dense) value = w.values[o * w.row + place];
      if (o >= 0 && !dense) {
        const int64_t c = cursor[static_cast<size_t>(i)];
        if (c < w.starts[o + 1] && w.places[c] == place) value = w.values[c];
      }
      std::memcpy(values + 4 * i, &value, 4);
    }
  });
  op.starts = starts;
  op.entries = entries;
  made.macs = (dense ? w.out * w.row : w.starts[w.out]) * s.out.pixels();

  // Tasks of some microseconds, enough for many threads: by tiles, and by rows, enough of them in a part to use the pixels that
  // it brings into its cache. Cores hand a line over slowly, so smaller products stay on one thread.
  const int64_t worth = parts(made.macs);
  const int64_t least = std::clamp<int64_t>(static_cast<int64_t>(4.0 / std::max(density(w), 0.01)), 16, 64);
  op.tile_parts = std::min(op.tiles, worth);
  op.row_parts = std::clamp<int64_t>(std::min<int64_t>(worth, 16) / op.tile_parts, 1, std::max<int64_t>(1, op.row_blocks * rows / least));
  op.tasks = op.tile_parts * op.row_parts;
  return made;
}

Matvec pack_matvec(const Weight& w, const float* bias, Activation activation) {
  require(w.out >= 1 && w.row >= 1, "outputs and inputs are at least 1");
  check_rows(w);
  Matvec made;
  MatvecOp& op = made.op;
  op.in = w.row;
  op.out = w.out;
  op.activation = activation;
  const bool dense = w.starts == nullptr || columns_pay(w);
  op.panel = std::min<int64_t>(w.out, kPanel);
  op.tasks = (w.out + op.panel - 1) / op.panel;
  float* biases = allocate<float>(made.memory, made.bytes, w.out);
  if (bias != nullptr) std::copy_n(bias, w.out, biases);
  op.bias = biases;
  const int64_t values = w.starts == nullptr ? w.out * w.row : w.starts[w.out];
  for (int64_t i = 0; i < values; ++i) op.skip = op.skip && std::isfinite(w.values[i]);
  made.macs = values;
  if (dense) {
    const int64_t width = (op.panel + 15) / 16 * 16;
    float* columns = allocate<float>(made.memory, made.bytes, op.tasks * w.row * width);
    const auto put = [&](int64_t o, int64_t j, float value) { columns[(o / op.panel * w.row + j) * width + o % op.panel] = value; };
    for (int64_t o = 0; o < w.out; ++o)
      if (w.starts == nullptr)
        for (int64_t j = 0; j < w.row; ++j) put(o, j, w.values[o * w.row + j]);
      else
        for (int64_t i = w.starts[o]; i < w.starts[o + 1]; ++i) put(o, w.places[i], w.values[i]);
    op.values = columns;
    return made;
  }
  int64_t* starts = allocate<int64_t>(made.memory, made.bytes, op.tasks * w.row + 1);
  uint16_t* rows = allocate<uint16_t>(made.memory, made.bytes, values);
  float* sorted = allocate<float>(made.memory, made.bytes, values);
  for (int64_t o = 0; o < w.out; ++o)
    for (int64_t i = w.starts[o]; i < w.starts[o + 1]; ++i) ++starts[o / op.panel * w.row + w.places[i] + 1];
  for (int64_t i = 0; i < op.tasks * w.row; ++i) starts[i + 1] += starts[i];
  std::vector<int64_t> next(starts, starts + op.tasks * w.row);
  for (int64_t o = 0; o < w.out; ++o)
    for (int64_t i = w.starts[o]; i < w.starts[o + 1]; ++i) {
      const int64_t at = next[static_cast<size_t>(o / op.panel * w.row + w.places[i])]++;
      rows[at] = static_cast<uint16_t>(o % op.panel);
      sorted[at] = w.values[i];
    }
  op.starts = starts;
  op.rows = rows;
  op.values = sorted;
  if (w.row <= kGather) pack_fours(w, made);
  return made;
}

}  // namespace rewound
