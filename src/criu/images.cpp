#include "criu/images.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <cstring>
#include <limits>
#include <string_view>

#include "criu/page_server_wire.h"
#include "images.pb.h"

namespace uffda::criu {
namespace {

constexpr std::uint32_t kImage = 0x54564319;
constexpr std::uint32_t kTasks = 0x50273030;
constexpr std::uint32_t kAddressSpace = 0x57492820;
constexpr std::uint32_t kPagemap = 0x56084025;
constexpr std::uint64_t kHighestAddress = std::uint64_t{1} << 57U;  // no user address of any machine is above
// Of `status`: memory that the kernel makes itself, and is never restored lazily.
constexpr std::uint32_t kVsyscall = 1U << 2U;
constexpr std::uint32_t kVdso = 1U << 3U;
constexpr std::uint32_t kVvar = 1U << 12U;

/// The records of an image, one after the other.
class Records {
 public:
  static Result<Records> open(std::span<const std::byte> image, std::uint32_t magic) {
    Records records(image);
    if (UFFDA_TRY(records.number()) != kImage || UFFDA_TRY(records.number()) != magic)
      return fail(Errc::protocol, "is no image of this kind: its magic number is another one");
    return records;
  }

  [[nodiscard]] bool done() const { return rest_.empty(); }

  template <typename Message>
  Result<Message> next() {
    const std::uint32_t size = UFFDA_TRY(number());
    if (size > rest_.size() || size > static_cast<std::uint32_t>(std::numeric_limits<int>::max()))
      return fail(Errc::protocol, "ends within a record");
    Message message;
    if (!message.ParseFromArray(rest_.data(), static_cast<int>(size)))
      return fail(Errc::protocol, "has a record that is none of this kind");
    rest_ = rest_.subspan(size);
    return message;
  }

 private:
  explicit Records(std::span<const std::byte> image) : rest_(image) {}

  Result<std::uint32_t> number() {
    std::uint32_t value = 0;
    if (rest_.size() < sizeof value) return fail(Errc::protocol, "ends within a number");
    std::memcpy(&value, rest_.data(), sizeof value);
    rest_ = rest_.subspan(sizeof value);
    return value;
  }

  std::span<const std::byte> rest_;
};

/// [start, start + length), which must lie behind `before`.
Result<MemoryRange> checked_range(std::uint64_t start, std::uint64_t length, Address before) {
  const bool aligned = start % kPageSize.value == 0 && length % kPageSize.value == 0 && length != 0;
  const bool possible = start < kHighestAddress && length <= kHighestAddress - start;
  if (!aligned || !possible || start < before.value)
    return fail(Errc::protocol, fmt::format("says that {:#x} bytes are at {:#x}, which cannot be", length, start));
  return MemoryRange{.start = {start}, .length = {length}};
}

bool is_lazy(const wire::Vma& vma) {
  constexpr std::uint32_t kWanted = MAP_PRIVATE | MAP_ANONYMOUS;
  return (vma.flags() & kWanted) == kWanted && (vma.flags() & (MAP_LOCKED | MAP_HUGETLB)) == 0 &&
         (vma.status() & (kVsyscall | kVdso | kVvar)) == 0;
}

PagemapRun::Where where_of(const wire::PagemapEntry& entry) {
  if (entry.in_parent() || (entry.flags() & PageRecord::kInParent) != 0) return PagemapRun::Where::parent;
  const bool elsewhere = (entry.flags() & PageRecord::kLazy) != 0 && (entry.flags() & PageRecord::kPresent) == 0;
  return elsewhere ? PagemapRun::Where::remote : PagemapRun::Where::here;
}

void put_number(std::vector<std::byte>& image, std::uint32_t value) {
  const auto bytes = std::as_bytes(std::span(&value, 1));
  image.insert(image.end(), bytes.begin(), bytes.end());
}

template <typename Message>
void put_record(std::vector<std::byte>& image, const Message& message) {
  const std::string text = message.SerializeAsString();
  put_number(image, static_cast<std::uint32_t>(text.size()));
  const auto bytes = std::as_bytes(std::span(text));
  image.insert(image.end(), bytes.begin(), bytes.end());
}

}  // namespace

Result<std::vector<pid_t>> parse_tasks(std::span<const std::byte> image) {
  Records records = UFFDA_TRY(Records::open(image, kTasks));
  std::vector<pid_t> tasks;
  while (!records.done()) {
    const auto task = UFFDA_TRY(records.next<wire::Task>());
    if (task.pid() == 0 || task.pid() > static_cast<std::uint32_t>(std::numeric_limits<pid_t>::max()))
      return fail(Errc::protocol, fmt::format("has a task {}, which no process can be", task.pid()));
    tasks.push_back(static_cast<pid_t>(task.pid()));
  }
  return tasks;
}

Result<std::vector<MemoryRange>> parse_lazy_memory(std::span<const std::byte> image) {
  Records records = UFFDA_TRY(Records::open(image, kAddressSpace));
  const auto space = UFFDA_TRY(records.next<wire::AddressSpace>());
  std::vector<MemoryRange> ranges;
  Address before;
  for (const wire::Vma& vma : space.vmas()) {
    if (!is_lazy(vma)) continue;
    const std::uint64_t length = vma.end() > vma.start() ? vma.end() - vma.start() : 0;
    ranges.push_back(UFFDA_TRY(checked_range(vma.start(), length, before)));
    before = ranges.back().end();
  }
  return ranges;
}

Result<Pagemap> parse_pagemap(std::span<const std::byte> image) {
  Records records = UFFDA_TRY(Records::open(image, kPagemap));
  Pagemap pagemap{.pages_id = UFFDA_TRY(records.next<wire::PagemapHead>()).pages_id(), .runs = {}};
  Address before;
  while (!records.done()) {
    const auto entry = UFFDA_TRY(records.next<wire::PagemapEntry>());
    const std::uint64_t pages = entry.has_pages() ? entry.pages() : entry.old_pages();
    const std::uint64_t length = pages < kHighestAddress / kPageSize.value ? pages * kPageSize.value : 0;
    pagemap.runs.push_back(
        {.range = UFFDA_TRY(checked_range(entry.address(), length, before)), .where = where_of(entry)});
    before = pagemap.runs.back().range.end();
  }
  return pagemap;
}

std::vector<std::byte> pagemap_beginning(std::uint32_t pages_id) {
  std::vector<std::byte> image;
  put_number(image, kImage);
  put_number(image, kPagemap);
  wire::PagemapHead head;
  head.set_pages_id(pages_id);
  put_record(image, head);
  return image;
}

std::vector<std::byte> pagemap_entry(Address address, std::uint64_t pages, std::uint32_t flags) {
  std::vector<std::byte> bytes;
  wire::PagemapEntry entry;
  entry.set_address(address.value);
  entry.set_old_pages(static_cast<std::uint32_t>(pages));
  entry.set_flags(flags);
  put_record(bytes, entry);
  return bytes;
}

}  // namespace uffda::criu
