// Which instruction set the kernels use: chosen once, when the module is loaded.
#pragma once

#include <string>
#include <vector>

namespace rewound {

struct Kernels;  // kernels.h: one table of functions for every instruction set

// The table in use. REWOUND_ISA=portable|avx2|avx512|neon in the environment asks for a lesser one.
const Kernels& kernels();
// Names of the tables this machine can run, the best last.
std::vector<std::string> available();
// Use another table from now on (tests); std::invalid_argument names what there is.
void use(const std::string& name);

}  // namespace rewound
