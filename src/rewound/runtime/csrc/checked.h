// Arithmetic on sizes that come from a file: too large is an error, never a wrapped number.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace rewound {

// What the Python side sees as a ValueError.
using Refused = std::invalid_argument;

inline void require(bool holds, const std::string& otherwise) {
  if (!holds) throw Refused(otherwise);
}

// Sizes and sums of sizes stay below 2^62, far above any memory and far below an overflow of their sums.
constexpr int64_t kHuge = int64_t{1} << 62;

// Both not negative.
inline int64_t times(int64_t a, int64_t b) {
  if (a < 0 || b < 0 || (a != 0 && b > kHuge / a)) throw Refused("sizes are too large or negative");
  return a * b;
}

// Any signs; |a|, |b| <= kHuge is checked.
inline int64_t plus(int64_t a, int64_t b) {
  if (a > kHuge || b > kHuge || a < -kHuge || b < -kHuge || a + b > kHuge || a + b < -kHuge)
    throw Refused("sizes are too large");
  return a + b;
}

// a * b where b may be negative.
inline int64_t scaled(int64_t a, int64_t b) { return b < 0 ? -times(a, b == INT64_MIN ? kHuge : -b) : times(a, b); }

}  // namespace rewound
