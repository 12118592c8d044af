// Compiled once for every instruction set, with REWOUND_TARGET its name.
#include "kernels.h"

#ifndef REWOUND_TARGET
#define REWOUND_TARGET portable
#endif
#define REWOUND_NAME2(x) #x
#define REWOUND_NAME(x) REWOUND_NAME2(x)
#define REWOUND_TABLE2(x) table_##x
#define REWOUND_TABLE(x) REWOUND_TABLE2(x)

namespace rewound {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

extern const Kernels REWOUND_TABLE(REWOUND_TARGET);
const Kernels REWOUND_TABLE(REWOUND_TARGET) = {REWOUND_NAME(REWOUND_TARGET), kLanes};

}  // namespace rewound
