#include "sources/file_engine.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include <fmt/format.h>

namespace uffda::sources {

namespace {

/// One system call reads at most this (the kernel's own limit is just below 2 GiB).
constexpr std::uint64_t kMaxPart = std::uint64_t{1} << 30U;

FileTransfer::Part part_at(const FileAccess& file, std::uint64_t offset, std::span<std::byte> buffer) noexcept {
  const std::uint64_t length = std::min<std::uint64_t>(buffer.size(), kMaxPart);
  const auto address = reinterpret_cast<std::uintptr_t>(buffer.data());
  const std::uint64_t blocks = align_down(length, file.direct_align);
  const bool direct = file.direct && blocks != 0 && offset % file.direct_align == 0 && address % file.memory_align == 0;
  return {.direct = direct, .write = false, .offset = offset, .buffer = buffer.first(direct ? blocks : length)};
}

}  // namespace

ByteRange FileTransfer::range() const noexcept {
  return std::visit([](const auto& ticket) { return ticket.range(); }, ticket_);
}

Deadline FileTransfer::deadline() const noexcept {
  return std::visit([](const auto& ticket) { return ticket.deadline(); }, ticket_);
}

void FileTransfer::count_down() noexcept {
  if (under_way_ != nullptr) std::exchange(under_way_, nullptr)->fetch_sub(1, std::memory_order_acq_rel);
}

void FileTransfer::complete() noexcept {
  count_down();
  if (auto* const write = std::get_if<WriteTicket>(&ticket_)) return std::move(*write).complete();
  std::move(std::get<FetchTicket>(ticket_)).complete(range().length);
}

void FileTransfer::fail(Error error) noexcept {
  count_down();
  std::visit([&](auto& ticket) { std::move(ticket).fail(std::move(error)); }, ticket_);
}

void FileTransfer::cancel(const FileAccess& file) noexcept {
  fail(Error(Errc::cancelled, file.name + ": closed while this was queued"));
}

void FileTransfer::refuse(const FileAccess& file) noexcept {
  fail(Error(Errc::busy, fmt::format("{}: more than {} reads and writes at once", file.name, kFileTransfers)));
}

FileTransfer::Part FileTransfer::next(const FileAccess& file) const noexcept {
  const std::uint64_t start = range().start.value;
  std::span<std::byte> buffer;
  if (const auto* const write = std::get_if<WriteTicket>(&ticket_)) {
    buffer = {const_cast<std::byte*>(write->bytes().data()), length_};
  } else {
    buffer = std::get<FetchTicket>(ticket_).buffer().first(length_);
  }
  Part part = part_at(file, start + done_, buffer.subspan(done_));
  part.write = is_write();
  return part;
}

FileTransfer::Step FileTransfer::advance(const FileAccess& file, std::int64_t result) noexcept {
  const std::uint64_t offset = range().start.value + done_;
  if (result == 0 && !is_write() && file.ends_at(offset)) {  // cut off since it was asked for
    std::ranges::fill(std::get<FetchTicket>(ticket_).buffer().first(length_).subspan(done_), std::byte{0});
    complete();
    return Step::finished;
  }
  if (result == 0) {
    fail(is_write() ? Error(Errc::io, fmt::format("{}: nothing could be written at {}", file.name, offset))
                    : Error(Errc::io, fmt::format("{}: the file shrank: nothing at offset {}, it had {} bytes when it "
                                                  "was opened",
                                                  file.name, offset, file.size.value)));
    return Step::finished;
  }
  if (result < 0 && result != -EINTR && result != -EAGAIN) {
    const auto what =
        fmt::format("{}: {} of {} bytes at {}", file.name, is_write() ? "write" : "read", length_ - done_, offset);
    const Error cause = Error::from_errno(static_cast<int>(-result), what);
    fail(Error(Errc::io, cause.context(), cause.sys_errno()));
    return Step::finished;
  }
  if (result > 0) done_ += static_cast<std::uint64_t>(result);
  if (done_ == length_) {
    complete();
    return Step::finished;
  }
  if (deadline().passed()) {
    fail(Error(Errc::timed_out, fmt::format("{}: the deadline passed at {}", file.name, offset)));
    return Step::finished;
  }
  return Step::more;
}

Result<void> read_now(const FileAccess& file, std::uint64_t offset, std::span<std::byte> buffer) noexcept {
  while (!buffer.empty()) {
    const FileTransfer::Part part = part_at(file, offset, buffer);
    const int fd = part.direct ? file.direct.get() : file.buffered.get();
    const ssize_t got = ::pread(fd, part.buffer.data(), part.buffer.size(), static_cast<off_t>(offset));
    if (got == 0 && file.ends_at(offset)) {
      std::ranges::fill(buffer, std::byte{0});
      return {};
    }
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
