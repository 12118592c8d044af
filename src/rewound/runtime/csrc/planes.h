// Where the pixels of a value stand: planar, with zero guards, so that a shifted pointer is a tap of a convolution.
#pragma once

#include <cstdint>

namespace rewound {

// A value is [channels][images][plane]; element (c, i, y, x) stands at
//     c * stride + i * plane + lead + y * pitch + x       floats after the value's first.
// Everything else in a channel is zero at all times, and so are `lead` floats after the last channel: a tap that looks
// above, below, left or right of a plane finds zeros. Whoever writes a value writes its guards.
struct Planes {
  int64_t channels = 0;
  int64_t images = 1;
  int64_t height = 1;
  int64_t width = 1;
  int64_t pitch = 1;   // from a row to the next: width and its right guard
  int64_t lead = 0;    // guard before the first row
  int64_t plane = 1;   // from an image to the next: at least lead + height * pitch
  int64_t stride = 1;  // from a channel to the next: at least images * plane

  int64_t floats() const { return channels * stride + lead; }
  int64_t pixels() const { return images * height * width; }
};

enum class Act : int32_t {
  kNone, kClamp, kLeakyRelu, kElu, kGelu, kGeluTanh, kQuickGelu, kSilu, kHardSwish, kHardSigmoid, kSigmoid, kTanh,
  kExp, kErf, kSqrt, kRsqrt, kNeg, kAbs, kLog, kSoftplus, kMish, kReciprocal, kSquare, kSin, kCos,
};

// ReLU is a clamp to [0, inf]. a, b: lower and upper bound, slope or alpha.
struct Activation {
  Act kind = Act::kNone;
  float a = 0.0f;
  float b = 0.0f;
};

}  // namespace rewound
