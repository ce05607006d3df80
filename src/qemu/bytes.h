// Big-endian numbers and counted strings, as QEMU writes them.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace uffda::qemu {

/// Appends to a buffer.
class ByteWriter {
 public:
  explicit ByteWriter(std::vector<std::byte>& out) : out_(out) {}

  template <std::unsigned_integral Number>
  void number(Number value) {
    for (std::size_t i = sizeof value; i-- > 0;) out_.push_back(static_cast<std::byte>(value >> (8 * i)));
  }
  void bytes(std::span<const std::byte> bytes) { out_.insert(out_.end(), bytes.begin(), bytes.end()); }
  /// One byte of length, and the text. Requires: at most 255 bytes.
  void name(std::string_view text) {
    number(static_cast<std::uint8_t>(text.size()));
    bytes(std::as_bytes(std::span(text)));
  }

 private:
  std::vector<std::byte>& out_;
};

/// Takes from the front of bytes that may still grow: nothing if there are too few of them, and from then on nothing at
/// all. So if the last field is there, all are.
class ByteReader {
 public:
  explicit ByteReader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  [[nodiscard]] std::size_t taken() const { return taken_; }

  template <std::unsigned_integral Number>
  std::optional<Number> number() {
    const auto bytes = take(sizeof(Number));
    if (!bytes) return std::nullopt;
    Number value = 0;
    for (const std::byte byte : *bytes) {
      if constexpr (sizeof(Number) > 1) value = static_cast<Number>(value << 8U);
      value = static_cast<Number>(value | std::to_integer<Number>(byte));
    }
    return value;
  }
  std::optional<std::span<const std::byte>> take(std::size_t count) {
    short_ = short_ || bytes_.size() - taken_ < count;
    if (short_) return std::nullopt;
    taken_ += count;
    return bytes_.subspan(taken_ - count, count);
  }
  std::optional<std::string> text(std::size_t count) {
    const auto bytes = take(count);
    if (!bytes) return std::nullopt;
    return std::string(reinterpret_cast<const char*>(bytes->data()), bytes->size());
  }
  /// One byte of length, and the text.
  std::optional<std::string> name() {
    const auto length = number<std::uint8_t>();
    return length ? text(*length) : std::nullopt;
  }

 private:
  std::span<const std::byte> bytes_;
  std::size_t taken_ = 0;
  bool short_ = false;
};

}  // namespace uffda::qemu
