// The one border between Python and the native part.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "dispatch.h"
#include "kernels.h"

namespace nb = nanobind;

NB_MODULE(_native, m) {
  m.doc() = "Sparse kernels and the engine's executor (src/rewound/runtime/csrc).";
  m.def("instruction_set", [] { return std::string(rewound::kernels().name); }, "Name of the kernels in use.");
  m.def("instruction_sets", &rewound::available, "Names of the kernels that this machine can run, the best last.");
  m.def("use_instruction_set", &rewound::use, nb::arg("name"), "Use other kernels from now on (for tests).");
}
