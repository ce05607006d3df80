// XXH3-128, the checksum of the pack format.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace uffda::pack {

/// In the byte order in which `xxhsum -H2` prints it.
struct Checksum {
  std::array<std::uint8_t, 16> bytes{};
  bool operator==(const Checksum&) const = default;
  [[nodiscard]] bool is_zero() const { return *this == Checksum{}; }
  [[nodiscard]] std::string text() const;
};

Checksum checksum_of(std::span<const std::byte> bytes) noexcept;

/// For hash tables: the first bytes of a checksum are as good as any.
struct ChecksumHash {
  std::size_t operator()(const Checksum& checksum) const noexcept;
};

}  // namespace uffda::pack
