#include "conv.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "checked.h"

namespace rewound {

namespace {

constexpr int64_t kReach = 16384 - 64;     // floats that a masked vector may read beyond a value: Program::kSlack less a vector
constexpr int64_t kCache = 24 * 1024;      // bytes of x that a block keeps in the first-level cache
constexpr double kTaps = 12.0;             // of a row in a block: fewer do not pay for loading and storing the sums
constexpr double kSum = 256.0;             // products in one sum, for the sake of its rounding error

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

  static void split(int64_t at, int64_t stride, int64_t& whole, int64_t& rest) {
    rest = ((at % stride) + stride) % stride;
    whole = (at - rest) / stride;
  }
};

std::string text(int64_t n) { return std::to_string(n); }

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
  const int64_t low_y = -s.padding[0], low_x = -s.padding[1];
  const int64_t high_y = times(s.kernel[0] - 1, s.dilation[0]) - s.padding[0], high_x = times(s.kernel[1] - 1, s.dilation[1]) - s.padding[1];
  int64_t first_y, first_x, last_y, last_x, rest;
  Taps::split(low_y, s.stride[0], first_y, rest);
  Taps::split(low_x, s.stride[1], first_x, rest);
  Taps::split(high_y, s.stride[0], last_y, rest);
  Taps::split(high_x, s.stride[1], last_x, rest);
  const int64_t guard = s.in.pitch - s.in.width;
  // columns: what sticks out to the left or right of x must fall into the guard between two rows
  const int64_t left = -first_x, right = s.out.width - 1 + last_x - (s.in.width - 1);
  require(left <= guard || (s.in.height == 1 && left <= s.in.lead), "a tap looks " + text(left) + " pixels to the left, the guard has " + text(guard));
  require(right <= guard || s.in.height == 1, "a tap looks " + text(right) + " pixels to the right, the guard has " + text(guard));
  const int64_t above = scaled(s.in.pitch, -first_y) - first_x;  // floats before the first pixel
  require(above <= s.in.lead, "a tap looks " + text(above) + " floats before the plane, the guard has " + text(s.in.lead));
  const int64_t end = plus(scaled(s.in.pitch, s.out.height - 1 + last_y), s.out.width - 1 + last_x);  // last position from the first pixel
  const int64_t pixels = times(s.in.height - 1, s.in.pitch) + s.in.width - 1;
  if (end > pixels) {
    // what follows: the rest of this plane, then the next plane's lead
    const int64_t room = s.in.plane - s.in.lead - pixels - 1 + s.in.lead;
    const int64_t tail = s.in.stride - (s.in.images - 1) * s.in.plane - s.in.lead - pixels - 1 + s.in.lead;
    require(end - pixels <= (s.in.images > 1 ? std::min(room, tail) : tail),
            "a tap looks " + text(end - pixels) + " floats behind the plane, the guard has " + text(std::min(room, tail)));
  }
  require(std::abs(first_y * s.in.pitch + first_x) + 64 <= kReach && std::abs(last_y * s.in.pitch + last_x) + 64 <= kReach,
          "taps reach more than " + text(kReach - 64) + " floats");
  require(times(times(s.in.channels, s.in.stride), 4) < (int64_t{1} << 31), "x is larger than 2 GiB");
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

Schedule choose(const ConvSpec& s, const Weight& w, Schedule asked, int lanes, int64_t vectors) {
  const bool wide = lanes == 16;
  const int64_t registers = wide ? 32 : 16;
  Schedule best = asked;
  if (best.rows == 0) {
    // Cycles a place of one row and one vector of pixels, by what is loaded and multiplied..
    const double d = density(w);
    const int64_t each = w.out / s.groups;
    double least = 1e30;
    for (int64_t rows : {1, 2, 4, wide ? 6 : 4}) {
      if (rows > 1 && each < rows) continue;
      const double filled = rows == 1 ? d : occupancy(s, w, rows);
      const double cost = filled * (rows == 1 ? 1.9 : rows == 2 ? 1.45 : rows == 4 ? 1.15 : 1.05);
      if (cost < least) least = cost, best.rows = rows;
    }
  }
  if (best.vectors == 0) {
    int64_t most = best.rows == 1 ? (wide ? 8 : 10) : (registers - 2) / (best.rows + 1);
    most = std::max<int64_t>(most, 1);
    best.vectors = std::min(most, vectors);
  }
  if (best.block == 0) {
    const int64_t window = s.kernel[0] * s.kernel[1];
    const int64_t line = best.vectors * lanes + (s.kernel[0] - 1) * s.in.pitch + s.kernel[1] - 1;  // floats of a channel
    int64_t channels = std::max<int64_t>(kCache / (4 * line), 8);
    if (best.rows == 1) {
      const double taps = density(w) * static_cast<double>(window);
      channels = std::max(channels, static_cast<int64_t>(kTaps / std::max(taps, 1e-6)));
    }
    const int64_t all = w.row / window;
    const double most = kSum / (density(w) * static_cast<double>(window) + 1e-9);
    channels = std::clamp<int64_t>(std::min(channels, static_cast<int64_t>(most)), 1, all);
    const int64_t blocks = (all + channels - 1) / channels;
    best.block = (all + blocks - 1) / blocks * window;
  }
  best.block = std::clamp<int64_t>(best.block, 1, w.row);
  return best;
}

// Whether whole columns, zeros and all, are quicker than the nonzeros: those cost about as much each as a dozen weights that a
// cache holds, or two that memory holds (nanoseconds, measured).
bool columns_pay(const Weight& w) {
  const double bytes = 4.0 * static_cast<double>(w.out) * static_cast<double>(w.row);
  const double each = bytes < 768 * 1024 ? 0.04 : bytes < 16.0 * 1024 * 1024 ? 0.1 : 0.26;
  return bytes / 4 * each < 0.47 * static_cast<double>(w.starts[w.out]);
}

}  // namespace

Conv pack(const ConvSpec& s, const Weight& w, const float* bias, Schedule asked, int lanes) {
  check(s, w);
  check_rows(w);
  Conv made;
  ConvOp& op = made.op;
  op.begin = s.out.images == 1 ? s.out.lead / 16 * 16 : 0;
  const int64_t pixels = (s.out.height - 1) * s.out.pitch + s.out.width;
  const int64_t end = (s.out.images - 1) * s.out.plane + s.out.lead + pixels;
  op.count = (end - op.begin + lanes - 1) / lanes;
  const Schedule schedule = choose(s, w, asked, lanes, op.count);
  made.schedule = schedule;
  const int64_t rows = schedule.rows, each = w.out / s.groups, per = (each + rows - 1) / rows;
  require(rows == 1 || rows == 2 || rows == 4 || rows == 6, "no kernel of " + text(rows) + " rows");
  require(schedule.vectors >= 1 && (rows == 1 ? schedule.vectors + 2 : rows * schedule.vectors + schedule.vectors + 1) <= (lanes == 16 ? 32 : 16) && schedule.vectors <= 10,
          "no kernel of " + text(rows) + " rows by " + text(schedule.vectors) + " vectors");
  op.rows = static_cast<int>(rows);
  op.vectors = static_cast<int>(schedule.vectors);
  op.row_blocks = per * s.groups;
  op.blocks = (w.row + schedule.block - 1) / schedule.block;
  op.out = w.out;
  op.tiles = (op.count + schedule.vectors - 1) / schedule.vectors;
  op.y_stride = s.out.stride;
  op.y_tail = s.out.lead;
  op.activation = s.activation;

  const Taps taps(s, w.row);
  int32_t* row_of = allocate<int32_t>(made.memory, made.bytes, op.row_blocks * rows);
  float* biases = allocate<float>(made.memory, made.bytes, op.row_blocks * rows);
  for (int64_t g = 0; g < s.groups; ++g)
    for (int64_t i = 0; i < per * rows; ++i) {
      row_of[g * per * rows + i] = i < each ? static_cast<int32_t>(g * each + i) : -1;
      biases[g * per * rows + i] = i < each && bias != nullptr ? bias[g * each + i] : 0.0f;
    }
  op.row_of = row_of;
  op.bias = biases;

  int32_t* mask = allocate<int32_t>(made.memory, made.bytes, op.count * lanes);
  for (int64_t i = 0; i < s.out.images; ++i)
    for (int64_t v = 0; v < s.out.height; ++v)
      for (int64_t u = 0; u < s.out.width; ++u)
        mask[i * s.out.plane + s.out.lead + v * s.out.pitch + u - op.begin] = -1;
  op.mask = mask;

  // Count, then fill: entries of block b and row block r, places ascending.
  int64_t* starts = allocate<int64_t>(made.memory, made.bytes, op.blocks * op.row_blocks + 1);
  const bool dense = w.starts == nullptr;
  const auto each_place = [&](auto take) {  // take(row block, place, first row): in the order of places within a row block
    std::vector<int64_t> cursor(static_cast<size_t>(rows));
    for (int64_t r = 0; r < op.row_blocks; ++r) {
      const int32_t* of = row_of + r * rows;
      if (dense) {
        for (int64_t p = 0; p < w.row; ++p) take(r, p, cursor);
        continue;
      }
      for (int64_t i = 0; i < rows; ++i) cursor[static_cast<size_t>(i)] = of[i] < 0 ? 0 : w.starts[of[i]];
      for (;;) {
        int64_t place = w.row;
        for (int64_t i = 0; i < rows; ++i)
          if (of[i] >= 0 && cursor[static_cast<size_t>(i)] < w.starts[of[i] + 1])
            place = std::min<int64_t>(place, w.places[cursor[static_cast<size_t>(i)]]);
        if (place == w.row) break;
        take(r, place, cursor);
        for (int64_t i = 0; i < rows; ++i) {
          int64_t& c = cursor[static_cast<size_t>(i)];
          if (of[i] >= 0 && c < w.starts[of[i] + 1] && w.places[c] == place) ++c;
        }
      }
    }
  };
  each_place([&](int64_t r, int64_t place, const std::vector<int64_t>&) { ++starts[place / schedule.block * op.row_blocks + r + 1]; });
  for (int64_t i = 0; i < op.blocks * op.row_blocks; ++i) starts[i + 1] += starts[i];
  const int64_t total = starts[op.blocks * op.row_blocks], size = 4 * (1 + rows);
  char* entries = allocate<char>(made.memory, made.bytes, total * size);
  std::vector<int64_t> next(starts, starts + op.blocks * op.row_blocks);
  each_place([&](int64_t r, int64_t place, const std::vector<int64_t>& cursor) {
    char* entry = entries + next[static_cast<size_t>(place / schedule.block * op.row_blocks + r)]++ * size;
    const int64_t group = r / per;
    const int32_t offset = static_cast<int32_t>(4 * taps.offset(group, place));
    std::memcpy(entry, &offset, 4);
    for (int64_t i = 0; i < rows; ++i) {
      const int32_t o = row_of[r * rows + i];
      float value = 0.0f;
      if (o >= 0 && dense) value = w.values[o * w.row + place];
      if (o >= 0 && !dense) {
        const int64_t c = cursor[static_cast<size_t>(i)];
        if (c < w.starts[o + 1] && w.places[c] == place) value = w.values[c];
      }
      std::memcpy(entry + 4 + 4 * i, &value, 4);
    }
  });
  op.starts = starts;
  op.entries = entries;
  made.macs = (dense ? w.out * w.row : w.starts[w.out]) * s.out.pixels();

  // Tasks: enough for many threads, each with rows enough to use the pixels it has brought into its cache.
  op.tile_parts = op.tiles;
  op.row_parts = std::clamp<int64_t>(16 / op.tiles, 1, std::max<int64_t>(1, op.row_blocks * rows / 32));
  if (made.macs < 200000) op.tile_parts = op.row_parts = 1;
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
  return made;
}

}  // namespace rewound
