// Products with fixed weights over planes of pixels: convolutions, and linear layers over tokens or a batch.
//
//   y[o] = activation(sum over the taps of row o of value * x[tap's plane, shifted] + bias[o] + residual[o])
//
// A row's taps are (byte offset, value): with planar values a tap is a pointer shifted by its channel's plane and by its place
// in the window, so one loop serves every kernel size, dilation, stride (x is then split into phase planes) and group.
// The pixels of a tile stay in registers while a stream of taps goes by. Streams are cut into blocks of input channels, so that
// the pixels they read stay in the first-level cache while every row passes over them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "planes.h"

namespace rewound {

// A weight [out, in / groups, kh, kw] by its nonzeros (starts, places, values as in weights.Sparse), or dense (starts null,
// values all of them).
struct Weight {
  int64_t out;
  int64_t row;  // in / groups * kh * kw
  const int64_t* starts;
  const int32_t* places;
  const float* values;
};

struct ConvSpec {
  Planes in, out;
  int64_t groups = 1;
  int64_t kernel[2] = {1, 1}, stride[2] = {1, 1}, padding[2] = {0, 0}, dilation[2] = {1, 1};
  Activation activation;
};

// How a product is computed: rows that share a tap, vectors of pixels in a tile, places of a row in a block, floats in a vector,
// and whether taps are grouped by columns and loaded aligned (1 no, 2 yes). Zeros: chosen.
struct Schedule {
  int64_t rows = 0;
  int64_t vectors = 0;
  int64_t block = 0;
  int64_t lanes = 0;
  int64_t aligned = 0;
};

// A product ready to run (what the kernels read).
struct ConvOp {
  int lanes = 1, rows = 1;
  bool aligned = false;                      // three groups of taps: of the column to the right, the pixel's own, to the left
  bool wraps = false;                        // rows of pixels follow upon each other without a guard
  int64_t blocks = 1, row_blocks = 0, out = 0;
  int64_t begin = 0, count = 0;              // first float of a channel that is computed; vectors from there on
  int64_t unit = 1, tiles = 0;               // vectors that stay together: those of a row of pixels where aligned
  int64_t y_stride = 0, y_tail = 0;          // of y: a channel's floats, and those after the last channel
  const int64_t* starts = nullptr;           // [blocks * row_blocks * (1 or 3 groups) + 1] of entries
  const char* entries = nullptr;             // rows == 1: {int32 byte offsets[2], float[2]}, an odd one {int32, float};
                                             // else {int32, float[rows]}
  const float* bias = nullptr;               // [row_blocks * rows], zeros where there is none
  const int32_t* row_of = nullptr;           // [row_blocks * rows]: output channel, or -1
  const int32_t* mask = nullptr;             // [count * lanes]: all ones at pixels
  const int32_t *not_first = nullptr, *not_last = nullptr;  // the same at all but the first (last) pixel of a row
  Activation activation;
  int64_t row_parts = 1, tile_parts = 1;     // tasks = their product
  int64_t tasks = 1;
};

struct Conv {
  ConvOp op;
  Schedule schedule;
  int64_t bytes = 0, macs = 0;
  std::vector<std::shared_ptr<void>> memory;
};

// Pack a product for kernels whose vectors have `lanes` floats. Throws Refused where taps or geometries do not fit: the pixels
// of x and y stand alike (images, pitch, plane), strides are multiples of 16, and no tap of a pixel leaves the memory of x.
//
// A tap that looks beyond the left or right end of a row needs a guard there, but for windows up to three columns wide (that
// look one pixel to either side) where the pitch and both leads are multiples of 8 (or of `lanes`), and the plane of the pitch:
// then rows may follow upon each other without a guard, and loads are aligned. Best is a pitch of width rounded up to 8 or 16.
// parts: of so many multiply-adds, how many tasks are worth their while.
Conv pack(const ConvSpec& spec, const Weight& weight, const float* bias, Schedule schedule, int lanes,
          int64_t (*parts)(int64_t macs));

constexpr int64_t kPanel = 1024;   // rows of a matrix-vector task: columns as long as that stream well
constexpr int64_t kColumns = 256;  // that are summed before they join the rest

constexpr int64_t kGather = 16384;  // entries of x that fit a task's own copy

// One vector times a fixed matrix: by columns, where entries of x that are zero cost nothing, or by rows, where an entry that is
// not costs half as much. Both forms of a sparse matrix are kept, and x decides.
struct MatvecOp {
  int64_t in = 0, out = 0;
  int64_t panel = 0;                     // rows of a task
  bool skip = true;                      // zeros of x; not where a weight is infinite or NaN
  int64_t tasks = 1;
  const int64_t* starts = nullptr;       // sparse: [tasks * in + 1]; dense: null
  const uint16_t* rows = nullptr;        // within the panel
  const float* values = nullptr;         // dense: [tasks][in][panel rounded up to 16]
  const float* bias = nullptr;           // [out]
  Activation activation;

  // By rows, four at a time, of about one length: null where in > kGather or dense.
  const int64_t* four_starts = nullptr;  // [tasks * four_per_task + 1], in fours of entries
  int64_t four_per_task = 0;
  const uint16_t* four_places = nullptr;  // of x; `in` is a zero that fills up the shorter ones
  const float* four_values = nullptr;
  const int32_t* four_rows = nullptr;     // [tasks * four_per_task * 4], within the panel, or -1
};

struct Matvec {
  MatvecOp op;
  int64_t bytes = 0, macs = 0;
  std::vector<std::shared_ptr<void>> memory;
};

Matvec pack_matvec(const Weight& weight, const float* bias, Activation activation);

}  // namespace rewound
