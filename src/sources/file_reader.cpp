#include "sources/file_reader.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include <fmt/format.h>

namespace uffda::sources {

namespace {

/// One system call reads at most this (the kernel's own limit is just below 2 GiB).
constexpr std::uint64_t kMaxPart = std::uint64_t{1} << 30U;

FileRead::Part part_at(const FileAccess& file, std::uint64_t offset, std::span<std::byte> buffer) noexcept {
  const std::uint64_t length = std::min<std::uint64_t>(buffer.size(), kMaxPart);
  const auto address = reinterpret_cast<std::uintptr_t>(buffer.data());
  const std::uint64_t blocks = align_down(length, file.direct_align);
  const bool direct = file.direct && blocks != 0 && offset % file.direct_align == 0 && address % file.memory_align == 0;
  return {direct, offset, buffer.first(direct ? blocks : length)};
}

}  // namespace

FileRead::Part FileRead::next(const FileAccess& file) const noexcept {
  const ByteRange range = ticket_.range();
  return part_at(file, range.start.value + done_, ticket_.buffer().first(range.length.value).subspan(done_));
}

FileRead::Step FileRead::advance(const FileAccess& file, std::int64_t result) noexcept {
  const ByteRange range = ticket_.range();
  const std::uint64_t offset = range.start.value + done_;
  if (result == 0) {
    fail(Error(Errc::io, fmt::format("{}: the file shrank: nothing at offset {}, it had {} bytes when it was opened",
                                     file.name, offset, file.size.value)));
    return Step::finished;
  }
  if (result < 0 && result != -EINTR && result != -EAGAIN) {
    const auto what = fmt::format("{}: read of {} bytes at {}", file.name, range.length.value - done_, offset);
    const Error cause = Error::from_errno(static_cast<int>(-result), what);
    fail(Error(Errc::io, cause.context(), cause.sys_errno()));
    return Step::finished;
  }
  if (result > 0) done_ += static_cast<std::uint64_t>(result);
  if (done_ == range.length.value) {
    std::move(ticket_).complete(range.length);
    return Step::finished;
  }
  if (ticket_.deadline().passed()) {
    fail(Error(Errc::timed_out, fmt::format("{}: the deadline passed while reading at {}", file.name, offset)));
    return Step::finished;
  }
  return Step::more;
}

void refuse_overload(const FileAccess& file, FetchTicket ticket) noexcept {
  std::move(ticket).fail(Error(Errc::busy, fmt::format("{}: more than {} fetches at once", file.name, kFileParallel)));
}

Result<void> read_now(const FileAccess& file, std::uint64_t offset, std::span<std::byte> buffer) noexcept {
  while (!buffer.empty()) {
    const FileRead::Part part = part_at(file, offset, buffer);
    const int fd = part.direct ? file.direct.get() : file.buffered.get();
    const ssize_t got = ::pread(fd, part.buffer.data(), part.buffer.size(), static_cast<off_t>(offset));
    if (got == 0) return uffda::fail(Errc::io, "file shrank");  // short enough to need no allocation
    if (got < 0) {
      if (errno == EINTR || errno == EAGAIN) continue;
      return uffda::fail(Errc::io, {}, errno);
    }
    buffer = buffer.subspan(static_cast<std::size_t>(got));
    offset += static_cast<std::uint64_t>(got);
  }
  return {};
}

}  // namespace uffda::sources
