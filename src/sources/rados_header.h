// The header object of an image that is stored in pieces in a RADOS pool. docs/formats/rados.md is its specification.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "uffda/result.h"
#include "uffda/units.h"

namespace uffda::sources::rados {

inline constexpr ByteCount kDefaultObjectSize = 4_MiB;
inline constexpr ByteCount kMinObjectSize = 64_KiB;
inline constexpr ByteCount kMaxObjectSize = 64_MiB;  ///< an OSD takes no write of more than 90 MiB
inline constexpr std::uint64_t kMaxPieces = std::uint64_t{1} << 24U;
inline constexpr ByteCount kMaxHeaderBytes = 3_MiB;  ///< more than kMaxPieces pieces need

/// Names the pieces of one `put`: random, so that pieces of two never mix.
using Generation = std::array<std::uint8_t, 16>;

struct Header {
  ByteCount size;  ///< of the image
  ByteCount object_size = kDefaultObjectSize;
  Generation generation{};
  std::vector<std::uint8_t> stored;  ///< a bit a piece, lowest first: 1, there is a piece object; 0, it is all zeroes

  /// Without any piece stored. Errors: invalid_argument (no bytes; more than kMaxPieces pieces).
  static Result<Header> make(ByteCount size, ByteCount object_size, const Generation& generation);

  [[nodiscard]] std::uint64_t pieces() const { return (size.value + object_size.value - 1) / object_size.value; }
  [[nodiscard]] std::uint64_t piece_of(ByteOffset offset) const { return offset.value / object_size.value; }
  [[nodiscard]] ByteRange range_of(std::uint64_t piece) const;
  [[nodiscard]] bool is_stored(std::uint64_t piece) const { return (stored[piece / 8] >> (piece % 8) & 1U) != 0; }
  void set_stored(std::uint64_t piece) { stored[piece / 8] |= static_cast<std::uint8_t>(1U << (piece % 8)); }
  [[nodiscard]] std::string generation_text() const;
  /// The name of the object that has a piece of the image called `image`.
  [[nodiscard]] std::string piece_name(std::string_view image, std::uint64_t piece) const;
};

std::vector<std::byte> encode(const Header& header);

/// Puts the length and the checksum of an encoded header right. Requires: at least 64 bytes.
void seal(std::span<std::byte> header);

/// Whether it starts like one: a damaged header does, an object of something else does not.
bool looks_like_header(std::span<const std::byte> bytes);

/// The inverse of encode; foreign bytes. Errors: invalid_argument, unsupported (of a later version).
Result<Header> parse_header(std::span<const std::byte> bytes);

}  // namespace uffda::sources::rados
