// The decoders' Python face: included by bind.cc alone.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <utility>

#include "decode.h"

namespace rewound {

template <typename T>
using Vector = nanobind::ndarray<const T, nanobind::ndim<1>, nanobind::c_contig, nanobind::device::cpu>;

// Memory that numpy will own.
template <typename T>
struct Owned {
  explicit Owned(int64_t size) : size(size), data(new T[static_cast<size_t>(size)]) {}

  nanobind::ndarray<nanobind::numpy, T, nanobind::ndim<1>> release() {
    T* raw = data.release();
    nanobind::capsule owner(raw, [](void* p) noexcept { delete[] static_cast<T*>(p); });
    return {raw, {static_cast<size_t>(size)}, owner};
  }

  int64_t size;
  std::unique_ptr<T[]> data;
};

inline void refuse_decoding(const char* error) {
  if (error != nullptr) throw nanobind::value_error(error);
}

// decode(Places) -> what is wrong or nullptr. Counts are checked before anything is allocated: a caller
// bounds them by what it can afford, this by what can be right.
template <typename Decode>
auto decoded_places(int64_t rows, int64_t row, int64_t count, Decode decode) {
  if (rows < 0 || row < 0 || row > std::numeric_limits<int32_t>::max() || count < 0 ||
      rows > (int64_t{1} << 62) / std::max<int64_t>(row, 1) || count > rows * row)
    throw nanobind::value_error("rows, row and count do not go together");
  Owned<int64_t> starts(rows + 1);
  Owned<int32_t> places(count);
  const char* error = nullptr;
  {
    nanobind::gil_scoped_release release;
    error = decode(Places{rows, row, count, starts.data.get(), places.data.get()});
  }
  refuse_decoding(error);
  return std::make_pair(starts.release(), places.release());
}

inline void require_bits(int bits) {
  if (bits < 1 || bits > 16) throw nanobind::value_error("bits must be 1 to 16");
}

inline void bind_decoders(nanobind::module_& m) {
  namespace nb = nanobind;
  m.def(
      "decode_bitmap",
      [](Vector<uint8_t> bytes, int64_t rows, int64_t row, int64_t count) {
        const Bytes in{bytes.data(), static_cast<int64_t>(bytes.size())};
        const auto decode = [&](const Places& out) { return decode_bitmap(in, out); };
        auto found = decoded_places(rows, row, count, decode);
        return nb::make_tuple(std::move(found.first), std::move(found.second));
      },
      nb::arg("bytes"), nb::arg("rows"), nb::arg("row"), nb::arg("count"), "(starts, places) of a bit map.");
  m.def(
      "decode_deltas",
      [](Vector<uint8_t> bytes, int bits, int64_t rows, int64_t row, int64_t count) {
        require_bits(bits);
        const Bytes in{bytes.data(), static_cast<int64_t>(bytes.size())};
        const auto decode = [&](const Places& out) { return decode_deltas(in, bits, out); };
        auto found = decoded_places(rows, row, count, decode);
        return nb::make_tuple(std::move(found.first), std::move(found.second));
      },
      nb::arg("bytes"), nb::arg("bits"), nb::arg("rows"), nb::arg("row"), nb::arg("count"),
      "(starts, places) of zeros between survivors.");
  m.def(
      "decode_codes",
      [](Vector<uint8_t> bytes, int bits, Vector<float> codebook, int64_t count) {
        require_bits(bits);
        if (count < 0 || count > 8 * static_cast<int64_t>(bytes.size()))
          throw nb::value_error("it ends too early");
        Owned<float> values(count);
        const char* error = nullptr;
        {
          nb::gil_scoped_release release;
          error = decode_codes({bytes.data(), static_cast<int64_t>(bytes.size())}, bits, codebook.data(),
                               static_cast<int64_t>(codebook.size()), count, values.data.get());
        }
        refuse_decoding(error);
        return values.release();
      },
      nb::arg("bytes"), nb::arg("bits"), nb::arg("codebook"), nb::arg("count"), "Values of shared weights.");
}

}  // namespace rewound
