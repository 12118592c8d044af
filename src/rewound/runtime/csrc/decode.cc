#include "decode.h"

#include <bit>
#include <cstring>

namespace rewound {
namespace {

constexpr const char* kTooShort = "it ends too early";
constexpr const char* kTooLong = "it goes on after its last entry";
constexpr const char* kPadding = "its last byte has bits that mean nothing";
constexpr const char* kOutside = "an entry lies outside the weight";
constexpr const char* kMore = "it has more entries than the table says";
constexpr const char* kFewer = "it has fewer entries than the table says";
constexpr const char* kLevel = "an entry lies outside the codebook";

// Little-endian words, also from the last bytes.
uint64_t word_at(const uint8_t* data, int64_t length) {
  uint8_t whole[8] = {};
  std::memcpy(whole, data, static_cast<size_t>(length < 8 ? length : 8));
  uint64_t word = 0;
  if constexpr (std::endian::native == std::endian::little) {
    std::memcpy(&word, whole, 8);
  } else {
    for (int i = 7; i >= 0; --i) word = word << 8 | whole[i];
  }
  return word;
}

// Units of 1 to 16 bits, the first in the lowest bits.
class Units {
 public:
  Units(Bytes bytes, int bits)
      : at_(bytes.data), end_(bytes.data + bytes.size), bits_(bits), mask_((uint64_t{1} << bits) - 1) {}

  // False when less than a unit is left.
  bool next(uint32_t* unit) {
    if (have_ < bits_) {
      fill();
      if (have_ < bits_) return false;
    }
    *unit = static_cast<uint32_t>(held_ & mask_);
    held_ >>= bits_;
    have_ -= bits_;
    return true;
  }

  // What is left after the last unit: less than a byte, and zero.
  const char* finish() const {
    if (end_ - at_ + have_ / 8 != 0) return kTooLong;
    return held_ == 0 ? nullptr : kPadding;
  }

 private:
  void fill() {
    if (end_ - at_ >= 8) {
      // Whole bytes that fit above what is held: at least 48 bits, since a refill comes with less than 16
      // held.
      const int taken = (64 - have_) / 8;
      uint64_t word = word_at(at_, 8);
      if (taken < 8) word &= (uint64_t{1} << (8 * taken)) - 1;
      held_ |= word << have_;
      at_ += taken;
      have_ += 8 * taken;
      return;
    }
    while (at_ < end_ && have_ <= 56) {
      held_ |= uint64_t{*at_++} << have_;
      have_ += 8;
    }
  }

  const uint8_t* at_;
  const uint8_t* end_;
  const int bits_;
  const uint64_t mask_;
  uint64_t held_ = 0;
  int have_ = 0;  // bits held
};

// Takes survivors by their place in the whole weight, in ascending order, and keeps rows' starts.
class Rows {
 public:
  explicit Rows(const Places& out) : out_(out), end_(out.row) { out_.starts[0] = 0; }

  bool full() const { return filled_ == out_.count; }

  // position: below rows * row.
  void put(int64_t position) {
    if (position >= end_) to_row(position / out_.row);
    out_.places[filled_++] = static_cast<int32_t>(position - (end_ - out_.row));
  }

  void finish() { to_row(out_.rows); }

 private:
  void to_row(int64_t row) {
    for (; row_ < row; end_ += out_.row) out_.starts[++row_] = filled_;
  }

  const Places& out_;
  int64_t row_ = 0;
  int64_t end_;  // of the row, as a place in the whole weight
  int64_t filled_ = 0;
};

}  // namespace

const char* decode_bitmap(Bytes bytes, const Places& out) {
  const int64_t size = out.rows * out.row;
  if (bytes.size < (size + 7) / 8) return kTooShort;
  if (bytes.size > (size + 7) / 8) return kTooLong;
  if (size % 8 != 0 && bytes.data[bytes.size - 1] >> (size % 8) != 0) return kPadding;
  // Counted first: then nothing has to be asked of each survivor.
  int64_t count = 0;
  for (int64_t at = 0; at < bytes.size; at += 8)
    count += std::popcount(word_at(bytes.data + at, bytes.size - at));
  if (count != out.count) return count > out.count ? kMore : kFewer;
  Rows rows(out);
  for (int64_t at = 0; at < bytes.size; at += 8)
    for (uint64_t word = word_at(bytes.data + at, bytes.size - at); word != 0; word &= word - 1)
      rows.put(8 * at + std::countr_zero(word));
  rows.finish();
  return nullptr;
}

const char* decode_deltas(Bytes bytes, int bits, const Places& out) {
  const int64_t size = out.rows * out.row;
  const uint32_t go_on = (uint32_t{1} << bits) - 1;
  Units units(bytes, bits);
  Rows rows(out);
  int64_t position = 0;
  while (!rows.full()) {
    uint32_t zeros = 0;
    if (!units.next(&zeros)) return kTooShort;
    position += zeros;
    if (position >= size) return kOutside;
    if (zeros != go_on) rows.put(position++);
  }
  rows.finish();
  return units.finish();
}

const char* decode_codes(Bytes bytes, int bits, const float* codebook, int64_t levels, int64_t count,
                         float* values) {
  Units units(bytes, bits);
  for (int64_t i = 0; i < count; ++i) {
    uint32_t level = 0;
    if (!units.next(&level)) return kTooShort;
    if (level >= levels) return kLevel;
    values[i] = codebook[level];
  }
  return units.finish();
}

}  // namespace rewound
