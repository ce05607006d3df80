// The first page of a cow+ layer's file, as anybody may have written it: refused, or exactly what it was made as.
//
// Input: a byte of flags and the header. Flag 1: its checksum is put right.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "base/log.h"
#include "sources/overlay_file.h"
#include "sources/pack/checksum.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using uffda::sources::OverlayHeader;
  if (size == 0) return 0;
  const auto input = std::as_bytes(std::span(data, size));
  std::vector<std::byte> bytes(input.begin() + 1, input.end());
  if ((data[0] & 1U) != 0 && bytes.size() >= sizeof(OverlayHeader)) {
    const auto checksum = uffda::pack::checksum_of(std::span(bytes).first(offsetof(OverlayHeader, checksum)));
    std::memcpy(bytes.data() + offsetof(OverlayHeader, checksum), checksum.bytes.data(), checksum.bytes.size());
  }
  const auto header = uffda::sources::parse_overlay_header(bytes);
  if (!header) return 0;
  UFFDA_ASSERT(std::memcmp(&*header, bytes.data(), sizeof *header) == 0);
  UFFDA_ASSERT(header->size != 0 && header->block == 4096);
  return 0;
}
