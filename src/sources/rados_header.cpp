#include "sources/rados_header.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstring>

#include "sources/pack/checksum.h"

namespace uffda::sources::rados {
namespace {

static_assert(std::endian::native == std::endian::little, "the numbers of the header are little-endian");

constexpr std::array<char, 8> kMagic{'u', 'f', 'f', 'd', 'a', 'R', 'A', 'D'};
constexpr std::uint32_t kVersion = 1;

/// The part of fixed size; behind it the bits of `stored`, then the checksum of both.
struct Fixed {
  std::array<char, 8> magic = kMagic;
  std::uint32_t version = kVersion;
  std::uint32_t header_bytes = 0;  ///< all of the header object
  std::uint64_t size = 0;
  std::uint32_t object_size = 0;
  std::uint32_t reserved = 0;  ///< 0
  Generation generation{};
};
static_assert(sizeof(Fixed) == 48);

using pack::Checksum;  // XXH3-128
using pack::checksum_of;
static_assert(sizeof(Checksum) == 16);

constexpr std::uint64_t header_bytes(std::uint64_t pieces) {
  return sizeof(Fixed) + (pieces + 7) / 8 + sizeof(Checksum);
}
static_assert(header_bytes(kMaxPieces) <= kMaxHeaderBytes.value);

std::unexpected<Error> damaged(std::string_view what) {
  return fail(Errc::invalid_argument, fmt::format("the header is damaged: {}", what));
}

Result<void> check_sizes(ByteCount size, ByteCount object_size) {
  if (!std::has_single_bit(object_size.value) || object_size < kMinObjectSize || object_size > kMaxObjectSize)
    return fail(Errc::invalid_argument, "the size of a piece must be a power of two from 64 KiB to 64 MiB");
  if (size.value == 0) return fail(Errc::invalid_argument, "an image of no bytes");
  if ((size.value - 1) / object_size.value >= kMaxPieces) {
    return fail(Errc::invalid_argument, fmt::format("{} bytes are more than {} pieces of {}: take larger pieces",
                                                    size.value, kMaxPieces, object_size.value));
  }
  return {};
}

}  // namespace

Result<Header> Header::make(ByteCount size, ByteCount object_size, const Generation& generation) {
  UFFDA_TRY_VOID(check_sizes(size, object_size));
  Header header{.size = size, .object_size = object_size, .generation = generation, .stored = {}};
  header.stored.resize((header.pieces() + 7) / 8);
  return header;
}

ByteRange Header::range_of(std::uint64_t piece) const {
  const std::uint64_t start = piece * object_size.value;
  return {{start}, {std::min(object_size.value, size.value - start)}};
}

std::string Header::generation_text() const { return fmt::format("{:02x}", fmt::join(generation, "")); }

std::string Header::piece_name(std::string_view image, std::uint64_t piece) const {
  return fmt::format("{}.{}.{:016x}", image, generation_text(), piece);
}

std::vector<std::byte> encode(const Header& header) {
  const std::uint64_t total = header_bytes(header.pieces());
  const Fixed fixed{.size = header.size.value,
                    .object_size = static_cast<std::uint32_t>(header.object_size.value),
                    .generation = header.generation};
  std::vector<std::byte> bytes(total);
  std::memcpy(bytes.data(), &fixed, sizeof fixed);
  std::memcpy(bytes.data() + sizeof fixed, header.stored.data(), header.stored.size());
  seal(bytes);
  return bytes;
}

void seal(std::span<std::byte> header) {
  const auto total = static_cast<std::uint32_t>(header.size());
  std::memcpy(header.data() + offsetof(Fixed, header_bytes), &total, sizeof total);
  const std::size_t checked = header.size() - sizeof(Checksum);
  const Checksum checksum = checksum_of(header.first(checked));
  std::memcpy(header.data() + checked, &checksum, sizeof checksum);
}

bool looks_like_header(std::span<const std::byte> bytes) {
  return bytes.size() >= kMagic.size() && std::memcmp(bytes.data(), kMagic.data(), kMagic.size()) == 0;
}

Result<Header> parse_header(std::span<const std::byte> bytes) {
  if (!looks_like_header(bytes)) return fail(Errc::invalid_argument, "it is not what uffda put stores");
  if (bytes.size() < sizeof(Fixed) + sizeof(Checksum)) return damaged("it is cut off");
  Fixed fixed;
  std::memcpy(&fixed, bytes.data(), sizeof fixed);
  if (fixed.version != kVersion) {
    return fail(Errc::unsupported,
                fmt::format("it is of version {}, and this uffda reads version {}", fixed.version, kVersion));
  }
  const std::size_t checked = bytes.size() - sizeof(Checksum);
  if (fixed.header_bytes != bytes.size()) return damaged("its length is not the one it states");
  const Checksum checksum = checksum_of(bytes.first(checked));
  if (std::memcmp(bytes.data() + checked, &checksum, sizeof checksum) != 0) return damaged("the checksum differs");

  // What follows was written by somebody who can compute a checksum, which does not make it right.
  if (fixed.reserved != 0) return damaged("a reserved field is not zero");
  Header header = UFFDA_TRY(Header::make({fixed.size}, {fixed.object_size}, fixed.generation));
  if (header_bytes(header.pieces()) != bytes.size()) return damaged("its length is not that of its pieces");
  std::memcpy(header.stored.data(), bytes.data() + sizeof fixed, header.stored.size());
  const unsigned used = header.pieces() % 8;
  if (used != 0 && (header.stored.back() >> used) != 0) return damaged("it has pieces behind the last one");
  return header;
}

}  // namespace uffda::sources::rados
