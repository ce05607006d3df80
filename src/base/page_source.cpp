#include "uffda/page_source.h"

#include <utility>

namespace uffda {

FetchTicket::FetchTicket(FetchTicket&& other) noexcept
    : owner_(std::exchange(other.owner_, nullptr)),
      request_(other.request_),
      range_(other.range_),
      buffer_(other.buffer_),
      deadline_(other.deadline_) {}

FetchTicket& FetchTicket::operator=(FetchTicket&& other) noexcept {
  if (this == &other) return *this;
  // The ticket that is overwritten is dropped: leaving the scope of `dropped` fails it.
  FetchTicket dropped(std::move(*this));
  owner_ = std::exchange(other.owner_, nullptr);
  request_ = other.request_;
  range_ = other.range_;
  buffer_ = other.buffer_;
  deadline_ = other.deadline_;
  return *this;
}

FetchTicket::~FetchTicket() {
  if (owner_ != nullptr) answer(uffda::fail(Errc::io, "the source dropped the fetch without an answer"));
}

void FetchTicket::complete(ByteCount done) && noexcept {
  if (done > range_.length) {
    answer(uffda::fail(Errc::io, "the source reported more bytes than were asked for"));
    return;
  }
  answer(done);
}

void FetchTicket::fail(Error error) && noexcept { answer(std::unexpected(std::move(error))); }

void FetchTicket::answer(Result<ByteCount> result) noexcept {
  // Cleared first: the owner may free everything that this ticket knows of.
  FetchOwner* const owner = std::exchange(owner_, nullptr);
  if (owner != nullptr) owner->fetched(request_, std::move(result));
}

WriteTicket::WriteTicket(WriteTicket&& other) noexcept
    : owner_(std::exchange(other.owner_, nullptr)),
      request_(other.request_),
      offset_(other.offset_),
      bytes_(other.bytes_),
      deadline_(other.deadline_) {}

WriteTicket& WriteTicket::operator=(WriteTicket&& other) noexcept {
  if (this == &other) return *this;
  WriteTicket dropped(std::move(*this));
  owner_ = std::exchange(other.owner_, nullptr);
  request_ = other.request_;
  offset_ = other.offset_;
  bytes_ = other.bytes_;
  deadline_ = other.deadline_;
  return *this;
}

WriteTicket::~WriteTicket() {
  if (owner_ != nullptr) answer(uffda::fail(Errc::io, "the source dropped the write without an answer"));
}

void WriteTicket::answer(Result<void> result) noexcept {
  WriteOwner* const owner = std::exchange(owner_, nullptr);
  if (owner != nullptr) owner->written_back(request_, std::move(result));
}

bool PageSource::contains(ByteRange range) const noexcept {
  const std::uint64_t size = properties_.size.value;
  const std::uint64_t start = range.start.value;
  const std::uint64_t length = range.length.value;
  return length != 0 && start < size && length <= size - start;
}

bool PageSource::accepts(ByteRange range) const noexcept {
  if (!contains(range)) return false;
  const std::uint64_t mask = properties_.block_size.value - 1;
  const std::uint64_t end = range.end().value;
  return (range.start.value & mask) == 0 && ((end & mask) == 0 || end == properties_.size.value);
}

void PageSource::fetch(FetchTicket ticket) noexcept {
  const ByteRange range = ticket.range();
  if (!accepts(range) || ticket.buffer().size() < range.length.value) {
    std::move(ticket).fail(
        Error(Errc::out_of_range, name_ + ": the fetch is outside of the source or not in whole blocks"));
    return;
  }
  counters_.fetches.fetch_add(1, std::memory_order_relaxed);
  counters_.bytes.fetch_add(range.length.value, std::memory_order_relaxed);
  do_fetch(std::move(ticket));
}

Result<void> PageSource::fetch_now(ByteOffset offset, std::span<std::byte> buffer) noexcept {
  // Errors carry no context here: the caller may be a signal handler, where nothing may allocate.
  if (!properties_.immediate) return uffda::fail(Errc::unsupported);
  const ByteRange range{offset, {buffer.size()}};
  if (!accepts(range)) return uffda::fail(Errc::out_of_range);
  counters_.fetches.fetch_add(1, std::memory_order_relaxed);
  counters_.bytes.fetch_add(range.length.value, std::memory_order_relaxed);
  return do_fetch_now(offset, buffer);
}

void PageSource::write_back(WriteTicket ticket) noexcept {
  const ByteRange range = ticket.range();
  if (!properties_.writable)
    return std::move(ticket).fail(Error(Errc::unsupported, name_ + ": this source can only be read"));
  if (!accepts(range)) {
    return std::move(ticket).fail(
        Error(Errc::out_of_range, name_ + ": the write is outside of the source or not of whole blocks"));
  }
  counters_.writes.fetch_add(1, std::memory_order_relaxed);
  counters_.bytes_written.fetch_add(range.length.value, std::memory_order_relaxed);
  do_write_back(std::move(ticket));
}

Result<void> PageSource::flush() {
  if (!properties_.writable) return uffda::fail(Errc::unsupported, name_ + ": this source can only be read");
  return do_flush();
}

Result<void> PageSource::reserve(ByteRange range) {
  if (!contains(range)) return uffda::fail(Errc::out_of_range, name_ + ": the range is outside of the source");
  if (!properties_.reserves) return {};
  return do_reserve(range);
}

Result<void> PageSource::resize(ByteCount length) {
  if (!properties_.growable) return uffda::fail(Errc::unsupported, name_ + ": this source keeps its size");
  if (length > properties_.size) return uffda::fail(Errc::out_of_range, name_ + ": it can not become that large");
  return do_resize(length);
}

void PageSource::do_write_back(WriteTicket ticket) noexcept {
  std::move(ticket).fail(Error(Errc::unsupported, name_ + ": this source can only be read"));
}
Result<void> PageSource::do_flush() { return {}; }
Result<void> PageSource::do_reserve(ByteRange) { return {}; }
Result<void> PageSource::do_resize(ByteCount) {
  return uffda::fail(Errc::unsupported, name_ + ": this source keeps its size");
}

Result<std::vector<Extent>> PageSource::extents(ByteRange range) {
  if (!contains(range)) return uffda::fail(Errc::out_of_range, name_ + ": the range is outside of the source");
  return do_extents(range);
}

Result<std::vector<Extent>> PageSource::do_extents(ByteRange range) { return std::vector{Extent{.range = range}}; }

Result<std::vector<std::byte>> PageSource::do_working_set() { return std::vector<std::byte>{}; }

Result<void> PageSource::do_fetch_now(ByteOffset, std::span<std::byte>) noexcept {
  return uffda::fail(Errc::unsupported);
}

}  // namespace uffda
