// Decoders of an engine's file (codec/places.py and codec/values.py say how it is written). Their bytes come
// from a stranger: whatever the bytes and counts are, nothing is read or written outside the ranges given.
#pragma once

#include <cstdint>

namespace rewound {

struct Bytes {
  const uint8_t* data;
  int64_t size;  // at least 0
};

// The places of `count` survivors in `rows` rows of `row` weights each, as weights.Sparse has them.
struct Places {
  int64_t rows;     // 0 <= rows * row < 2^62
  int64_t row;      // at most 2^31 - 1: places are int32
  int64_t count;    // survivors promised; the capacity of `places`
  int64_t* starts;  // [rows + 1]
  int32_t* places;  // [count], ascending in a row
};

// Each decoder fills its output and returns nullptr, or says what is wrong with the bytes (a string that is
// never freed) and leaves the output half filled. Encodings have one form: what an encoder would not have
// written is refused.

// One bit a weight, the first in the lowest bit of the first byte.
const char* decode_bitmap(Bytes bytes, const Places& out);

// Zeros between survivors, over the rows' borders, in units of `bits` bits (1 to 16): 2^bits - 1 says "that
// many zeros, and go on", anything less "that many zeros, then a survivor".
const char* decode_deltas(Bytes bytes, int bits, const Places& out);

// Shared values: for each of `count` an index of `bits` bits (1 to 16) into the codebook of `levels` floats.
const char* decode_codes(Bytes bytes, int bits, const float* codebook, int64_t levels, int64_t count,
                         float* values);

}  // namespace rewound
