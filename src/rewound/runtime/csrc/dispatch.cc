#include "dispatch.h"

#include <cstdlib>
#include <stdexcept>

#include "kernels.h"

namespace rewound {

extern const Kernels table_portable;
#ifdef REWOUND_HAS_avx2
extern const Kernels table_avx2;
#endif
#ifdef REWOUND_HAS_avx512
extern const Kernels table_avx512;
#endif
#ifdef REWOUND_HAS_neon
extern const Kernels table_neon;
#endif

namespace {

std::vector<const Kernels*> runnable() {
  std::vector<const Kernels*> found = {&table_portable};
#if defined(REWOUND_HAS_avx2)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&table_avx2);
#endif
#if defined(REWOUND_HAS_avx512)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
    found.push_back(&table_avx512);
#endif
#if defined(REWOUND_HAS_neon)
  found.push_back(&table_neon);
#endif
  return found;
}

const Kernels* named(const std::string& name) {
  std::string names;
  for (const Kernels* table : runnable()) {
    if (name == table->name) return table;
    names += (names.empty() ? "" : ", ") + std::string(table->name);
  }
  throw std::invalid_argument("no instruction set '" + name + "' on this machine (there is: " + names + ")");
}

const Kernels*& current() {
  static const Kernels* table = [] {
    const char* asked = std::getenv("REWOUND_ISA");
    return asked != nullptr && *asked != '\0' ? named(asked) : runnable().back();
  }();
  return table;
}

}  // namespace

const Kernels& kernels() { return *current(); }

std::vector<std::string> available() {
  std::vector<std::string> names;
  for (const Kernels* table : runnable()) names.emplace_back(table->name);
  return names;
}

void use(const std::string& name) { current() = named(name); }

}  // namespace rewound
