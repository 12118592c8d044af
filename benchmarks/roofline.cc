// What one core can do with a vector of x that it loads for every R multiply-adds, by where x lies: the bounds of a sparse kernel.
//
// A weight of a sparse convolution meets a tile of pixels: y += w * x, one load a multiply-add (2 operations for 4 bytes, 0.5 a
// byte). Blocks of R rows share the load: R = 2 has 1 a byte, R = 4 has 2. Prints one JSON object.

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef float Vector __attribute__((vector_size(4 * kLanes)));

double Seconds() {
  timespec now;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return now.tv_sec + 1e-9 * now.tv_nsec;
}

// Hides a value from the optimiser, so that work whose result nobody reads is done all the same.
template <typename T>
void Keep(T& value) {
  asm volatile("" : "+m"(value) : : "memory");
}

// Seconds of `body()`: the first decile over about 0.4 s (the very best may be a clock that was set back).
template <typename Body>
double Best(Body body) {
  body();
  std::vector<double> taken;
  for (double end = Seconds() + 0.4; Seconds() < end;) {
    const double start = Seconds();
    body();
    taken.push_back(Seconds() - start);
  }
  std::sort(taken.begin(), taken.end());
  return taken[taken.size() / 10];
}

// GFLOP/s of `kRows` multiply-adds on each of the vectors in `floats` floats of x, again and again.
template <int kRows, int kTile>
double Loaded(const float* memory, std::size_t floats) {
  constexpr std::size_t kStep = kTile * kLanes;
  const std::size_t steps = floats / kStep;
  const std::size_t passes = std::max<std::size_t>(1, (std::size_t{1} << 21) / floats);
  Vector weights[kRows];
  for (int r = 0; r < kRows; ++r) weights[r] = Vector{} + 1e-3f * (r + 1);
  const double seconds = Best([&] {
    Vector sums[kRows][kTile] = {};
    for (std::size_t pass = 0; pass < passes; ++pass) {
      const float* x = memory;
      for (std::size_t i = 0; i < steps; ++i, x += kStep) {
#pragma GCC unroll 16
        for (int t = 0; t < kTile; ++t) {
          const Vector loaded = *reinterpret_cast<const Vector*>(x + t * kLanes);
#pragma GCC unroll 16
          for (int r = 0; r < kRows; ++r) sums[r][t] += weights[r] * loaded;
        }
      }
    }
    Keep(sums);
  });
  return 2.0 * kRows * kStep * steps * passes / seconds / 1e9;
}

// GFLOP/s of multiply-adds between registers.
double Peak() {
  constexpr int kChains = 12;
  constexpr int kCount = 1 << 16;
  const double seconds = Best([] {
    Vector sums[kChains] = {};
    Vector a = sums[0] + 0.5f, b = sums[0] + 0.25f;
    Keep(a);
    Keep(b);
    for (int i = 0; i < kCount; ++i) {
#pragma GCC unroll 16
      for (int c = 0; c < kChains; ++c) sums[c] = sums[c] * a + b;
    }
    Keep(sums);
  });
  return 2.0 * kLanes * kChains * kCount / seconds / 1e9;
}

}  // namespace

int main() {
  const struct {
    const char* name;
    std::size_t bytes;
  } levels[] = {{"16 KiB", 16u << 10}, {"512 KiB", 512u << 10}, {"8 MiB", 8u << 20}, {"256 MiB", 256u << 20}};
  const std::size_t most = levels[3].bytes;
  float* x = static_cast<float*>(std::aligned_alloc(4096, most));
  std::fill(x, x + most / 4, 1.0f);
  std::printf("{\"lanes\": %d, \"peak\": %.2f, \"levels\": {", kLanes, Peak());
  for (const auto& level : levels) {
    const std::size_t floats = level.bytes / 4;
    std::printf("%s\"%s\": {\"1\": %.2f, \"2\": %.2f, \"4\": %.2f}", &level == levels ? "" : ", ", level.name,
                Loaded<1, 8>(x, floats), Loaded<2, 6>(x, floats), Loaded<4, 4>(x, floats));
    std::fflush(stdout);
  }
  std::printf("}}\n");
  std::free(x);
  return 0;
}
