// Feeds any bytes to the native decoders: whatever comes in, they stay inside their buffers, and what they
// accept is sound.
//
// Inputs found by libFuzzer are in corpus.hex, replayed by replay.cc (test_fuzz.py). To look for more from
// there:
//     mkdir seeds && python -c "import pathlib; [pathlib.Path('seeds', str(i)).write_bytes(bytes.fromhex(x))
//                               for i, x in enumerate(open('tests/runtime/fuzz/corpus.hex'))]"
//     clang++ -std=c++20 -g -O1 -fsanitize=fuzzer,address,undefined -I src/rewound/runtime/csrc
//         tests/runtime/fuzz/decode_fuzz.cc src/rewound/runtime/csrc/decode.cc -o fuzz
//     ./fuzz seeds -max_len=300
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "decode.h"

namespace {

void require(bool sound, const char* what) {
  if (sound) return;
  std::fprintf(stderr, "not sound: %s\n", what);
  std::abort();
}

void require_sound(const rewound::Places& found) {
  require(found.starts[0] == 0 && found.starts[found.rows] == found.count, "starts");
  for (int64_t row = 0; row < found.rows; ++row) {
    const int64_t first = found.starts[row];
    const int64_t last = found.starts[row + 1];
    require(first <= last, "starts go down");
    for (int64_t i = first; i < last; ++i) {
      require(found.places[i] >= 0 && found.places[i] < found.row, "a place outside its row");
      require(i == first || found.places[i - 1] < found.places[i], "places go down");
    }
  }
}

// What an encoder of deltas writes for these places: each code has one form, so that it is what was read.
std::vector<uint8_t> deltas_of(const rewound::Places& found, int bits) {
  const int64_t go_on = (int64_t{1} << bits) - 1;
  std::vector<uint8_t> bytes;
  int64_t filled = 0;
  const auto put = [&](int64_t unit) {
    for (int bit = 0; bit < bits; ++bit, ++filled) {
      if (filled % 8 == 0) bytes.push_back(0);
      bytes.back() = static_cast<uint8_t>(bytes.back() | (unit >> bit & 1) << filled % 8);
    }
  };
  int64_t next = 0;
  for (int64_t row = 0; row < found.rows; ++row)
    for (int64_t i = found.starts[row]; i < found.starts[row + 1]; ++i) {
      int64_t gap = row * found.row + found.places[i] - next;
      next += gap + 1;
      for (; gap >= go_on; gap -= go_on) put(go_on);
      put(gap);
    }
  return bytes;
}

}  // namespace

// decoder, bits, rows (2 bytes), row (2), count (2), then the coded bytes
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr size_t kHead = 8;
  if (size < kHead) return 0;
  const auto number = [data](size_t at) { return int64_t{data[at]} | int64_t{data[at + 1]} << 8; };
  const int decoder = data[0] % 3;
  const int bits = data[1] % 16 + 1;
  const int64_t rows = number(2);
  const int64_t row = number(4);
  // Buffers of exactly what is promised, so that the sanitizer sees the first byte too many.
  const std::vector<uint8_t> coded(data + kHead, data + size);
  const rewound::Bytes in{coded.data(), static_cast<int64_t>(coded.size())};
  if (decoder == 2) {
    const std::vector<float> codebook(static_cast<size_t>(rows % 300), 1.0f);
    const int64_t count = number(6);
    const std::unique_ptr<float[]> values(new float[static_cast<size_t>(count)]);
    const auto levels = static_cast<int64_t>(codebook.size());
    const char* error = rewound::decode_codes(in, bits, codebook.data(), levels, count, values.get());
    for (int64_t i = 0; error == nullptr && i < count; ++i) require(values[i] == 1.0f, "a value of no level");
    return 0;
  }
  const int64_t count = std::min(number(6), rows * row);
  const std::unique_ptr<int64_t[]> starts(new int64_t[static_cast<size_t>(rows) + 1]);
  const std::unique_ptr<int32_t[]> places(new int32_t[static_cast<size_t>(count)]);
  const rewound::Places out{rows, row, count, starts.get(), places.get()};
  const char* error = decoder == 0 ? rewound::decode_bitmap(in, out) : rewound::decode_deltas(in, bits, out);
  if (error != nullptr) return 0;
  require_sound(out);
  if (decoder == 1) require(deltas_of(out, bits) == coded, "two forms of one code");
  return 0;
}
