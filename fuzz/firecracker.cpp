// What a VMM says at Firecracker's socket: it is refused, or it names regions that are apart, in whole pages, and that
// end before the address space does.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/log.h"
#include "server/firecracker_handshake.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  namespace firecracker = uffda::firecracker;
  if (size > firecracker::kMaxHandshake) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto handshake = firecracker::parse_handshake(text);
  if (!handshake) return 0;
  UFFDA_ASSERT(firecracker::is_whole(text) && !handshake->regions.empty());
  const std::uint64_t page = handshake->page_size.value;
  UFFDA_ASSERT(page == uffda::kPageSize.value || page == uffda::ByteCount{2U << 20U}.value);
  std::uint64_t last_end = 0;
  for (const firecracker::Region& region : handshake->regions) {
    UFFDA_ASSERT(region.start.value >= last_end && region.length.value != 0);
    UFFDA_ASSERT(region.start.value % page == 0 && region.length.value % page == 0 && region.offset.value % page == 0);
    UFFDA_ASSERT(region.offset.value + region.length.value > region.offset.value);
    last_end = region.start.value + region.length.value;
    UFFDA_ASSERT(last_end > region.start.value);
  }
  return 0;
}
