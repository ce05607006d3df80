#include "sources/pack/checksum.h"

#define XXH_INLINE_ALL
#include <fmt/format.h>
#include <xxhash.h>

#include <cstring>

namespace uffda::pack {

Checksum checksum_of(std::span<const std::byte> bytes) noexcept {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits(bytes.data(), bytes.size()));
  Checksum checksum;
  std::memcpy(checksum.bytes.data(), canonical.digest, checksum.bytes.size());
  return checksum;
}

std::string Checksum::text() const {
  std::string text;
  for (const std::uint8_t byte : bytes) text += fmt::format("{:02x}", byte);
  return text;
}

std::size_t ChecksumHash::operator()(const Checksum& checksum) const noexcept {
  std::size_t hash = 0;
  std::memcpy(&hash, checksum.bytes.data(), sizeof hash);
  return hash;
}

}  // namespace uffda::pack
