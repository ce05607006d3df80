// The header object of an image in a cluster, as anybody may have written it: it is refused, or it names pieces that
// make up the image exactly.
//
// Input: a byte of flags and the header. Flag 1: its magic, length and checksum are put right, so that the interesting
// part is reached.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "base/log.h"
#include "sources/rados_header.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  namespace rados = uffda::sources::rados;
  constexpr std::string_view kMagicAndVersion("uffdaRAD\1\0\0\0", 12);
  constexpr std::size_t kSmallest = 64;
  if (size == 0) return 0;
  const auto input = std::as_bytes(std::span(data, size));
  std::vector<std::byte> bytes(input.begin() + 1, input.end());
  if ((data[0] & 1U) != 0 && bytes.size() >= kSmallest) {
    std::ranges::copy(std::as_bytes(std::span(kMagicAndVersion)), bytes.begin());
    rados::seal(bytes);
  }
  const auto header = rados::parse_header(bytes);
  if (!header) return 0;
  UFFDA_ASSERT(rados::encode(*header) == bytes);
  UFFDA_ASSERT(header->pieces() >= 1 && header->pieces() <= rados::kMaxPieces);
  const std::uint64_t last = header->pieces() - 1;
  UFFDA_ASSERT(header->range_of(last).end().value == header->size.value);
  UFFDA_ASSERT(header->piece_of({header->size.value - 1}) == last);
  (void)header->is_stored(last);
  return 0;
}
