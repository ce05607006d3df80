#include "criu/page_server_wire.h"

#include <fmt/format.h>

#include <cstring>
#include <limits>
#include <utility>

#include "base/log.h"

namespace uffda::criu {
namespace {

struct Narrow {
  std::uint32_t command;
  std::uint32_t pages;
  std::uint64_t address;
  std::uint64_t id;
};
struct Wide {
  std::uint32_t command;
  std::uint32_t reserved;
  std::uint64_t pages;
  std::uint64_t address;
  std::uint64_t id;
};
static_assert(sizeof(Narrow) == std::to_underlying(RecordSize::narrow));
static_assert(sizeof(Wide) == std::to_underlying(RecordSize::wide) && sizeof(Wide) == PageRecord::kMaxSize);

bool is_known(std::uint16_t command) {
  switch (PageCommand{command}) {
    case PageCommand::add:
    case PageCommand::hole:
    case PageCommand::open:
    case PageCommand::open2:
    case PageCommand::parent:
    case PageCommand::add_flags:
    case PageCommand::get:
    case PageCommand::close:
    case PageCommand::force_close:
      return true;
  }
  return false;
}

template <typename Raw>
Result<PageRecord> parse_as(std::span<const std::byte> bytes) {
  Raw raw;
  std::memcpy(&raw, bytes.data(), sizeof raw);
  const auto command = static_cast<std::uint16_t>(raw.command);
  if (!is_known(command))
    return fail(Errc::protocol, fmt::format("a page server record has command {:#x}, which there is not", command));
  return PageRecord{.command = PageCommand{command},
                    .flags = static_cast<std::uint16_t>(raw.command >> 16U),
                    .pages = raw.pages,
                    .address = raw.address,
                    .id = raw.id};
}

}  // namespace

Result<PageRecord> parse_record(std::span<const std::byte> bytes, RecordSize size) {
  UFFDA_ASSERT(bytes.size() == std::to_underlying(size));
  return size == RecordSize::narrow ? parse_as<Narrow>(bytes) : parse_as<Wide>(bytes);
}

std::span<const std::byte> encode_record(const PageRecord& record, RecordSize size,
                                         std::span<std::byte, PageRecord::kMaxSize> into) {
  const std::uint32_t command = std::to_underlying(record.command) | std::uint32_t{record.flags} << 16U;
  if (size == RecordSize::narrow) {
    UFFDA_ASSERT(record.pages <= std::numeric_limits<std::uint32_t>::max());
    const Narrow raw{command, static_cast<std::uint32_t>(record.pages), record.address, record.id};
    std::memcpy(into.data(), &raw, sizeof raw);
  } else {
    const Wide raw{command, 0, record.pages, record.address, record.id};
    std::memcpy(into.data(), &raw, sizeof raw);
  }
  return into.first(std::to_underlying(size));
}

}  // namespace uffda::criu
