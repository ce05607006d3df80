// A page server's records, as anybody may have sent them: refused, or what is read is what is written again.
//
// Input: a byte for the size of a record, and records.
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <utility>

#include "base/log.h"
#include "criu/page_server_wire.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  namespace criu = uffda::criu;
  if (size == 0) return 0;
  const criu::RecordSize kind = data[0] % 2 == 0 ? criu::RecordSize::narrow : criu::RecordSize::wide;
  const std::size_t length = std::to_underlying(kind);
  auto rest = std::as_bytes(std::span(data, size)).subspan(1);
  for (; rest.size() >= length; rest = rest.subspan(length)) {
    const auto record = criu::parse_record(rest.first(length), kind);
    if (!record) continue;
    std::array<std::byte, criu::PageRecord::kMaxSize> again{};
    const auto reread = criu::parse_record(criu::encode_record(*record, kind, again), kind);
    UFFDA_ASSERT(reread && *reread == *record);
  }
  return 0;
}
