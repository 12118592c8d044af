// Compiled once for every instruction set, with REWOUND_TARGET its name. Nothing here may be shared by the linker between
// instruction sets: everything is in nameless namespaces, and no code of the standard library is instantiated.
#include "kernels.h"

#include "conv_kernels.h"
#include "ops_elementwise.h"
#include "ops_move.h"
#include "ops_norm.h"
#include "ops_pool.h"
#include "ops_product.h"

#ifndef REWOUND_TARGET
#define REWOUND_TARGET portable
#endif
#define REWOUND_NAME2(x) #x
#define REWOUND_NAME(x) REWOUND_NAME2(x)
#define REWOUND_TABLE2(x) table_##x
#define REWOUND_TABLE(x) REWOUND_TABLE2(x)

namespace rewound {

extern const Kernels REWOUND_TABLE(REWOUND_TARGET);
const Kernels REWOUND_TABLE(REWOUND_TARGET) = {
    .name = REWOUND_NAME(REWOUND_TARGET),
    .lanes = kLanes,
    .conv = conv,
    .matvec = matvec,
    .elementwise = elementwise,
    .fill = fill,
    .copy = copy,
    .phases = phases,
    .embedding = embedding,
    .pool = pool,
    .adaptive_pool = adaptive_pool,
    .reduce = reduce,
    .norm = norm,
    .softmax = softmax,
    .attention = attention,
    .matmul = matmul,
    .upsample = upsample,
};

}  // namespace rewound
