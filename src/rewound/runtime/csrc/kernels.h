// What one instruction set offers: a table of functions, compiled from kernels.cc for each.
#pragma once

namespace rewound {

struct Kernels {
  const char* name;  // "portable", "avx2", "avx512", "neon"
  int lanes;         // floats in a vector register
};

}  // namespace rewound
