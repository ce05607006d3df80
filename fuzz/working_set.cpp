// Working set files from anywhere: parsing never crashes, and what was accepted is written and read back the same. The
// header is also made to fit what follows it, or the checksum would keep everything else from being reached.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <vector>

#include "monitors/prefetch_plan.h"
#include "monitors/working_set.h"

namespace {

constexpr std::size_t kHeader = 32;

void require(bool holds) {
  if (!holds) std::abort();
}

std::uint32_t crc32(std::span<const std::byte> bytes) {
  std::uint32_t sum = ~std::uint32_t{0};
  for (const std::byte byte : bytes) {
    sum ^= std::to_integer<std::uint32_t>(byte);
    for (int bit = 0; bit < 8; ++bit) sum = (sum >> 1U) ^ ((sum & 1U) != 0 ? 0xEDB88320U : 0U);
  }
  return ~sum;
}

void check(std::span<const std::byte> bytes) {
  using namespace uffda;
  const auto sets = parse_working_sets(bytes);
  if (!sets) {
    require(!sets.error().context().empty());
    return;
  }
  require(parse_working_sets(working_set_bytes(*sets)) == *sets);
  for (const WorkingSet& set : *sets) {
    const PrefetchTarget target{.size = set.size, .folio_size = kPageSize, .unit = 64_KiB};
    // A run of a huge object makes as many reads as it is long: not here.
    std::uint64_t folios = 0;
    const auto wanted = recorded_folios(set, target);
    for (const FolioRange range : wanted) folios += range.count;
    if (folios > 1'000'000) continue;
    for (const FolioRange read : plan_prefetch(wanted, target)) require(!read.empty());
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  check(bytes);
  if (size < kHeader) return 0;
  std::vector<std::byte> fitting(bytes.begin(), bytes.end());
  const std::uint32_t version = 1;
  const std::uint64_t length = size;
  const std::uint32_t sum = crc32(bytes.subspan(kHeader));
  std::memcpy(fitting.data(), "uffda-ws", 8);
  std::memcpy(fitting.data() + 8, &version, sizeof version);
  std::memcpy(fitting.data() + 16, &length, sizeof length);
  std::memcpy(fitting.data() + 24, &sum, sizeof sum);
  std::memset(fitting.data() + 28, 0, 4);
  check(fitting);
  return 0;
}
