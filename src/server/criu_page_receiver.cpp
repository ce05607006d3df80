#include "server/criu_page_receiver.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <span>

#include "criu/images.h"
#include "os/tcp.h"

namespace uffda {
namespace {

using criu::PageCommand;
using criu::PageRecord;

constexpr Duration kPatience = std::chrono::minutes(1);  // for bytes that were announced
constexpr std::uint64_t kStep = 256;                     // pages stored at once
constexpr std::uint32_t kMostFiles = 1U << 16U;
constexpr const char* kOfNoDump =
    "sends what is of no dump, or of one that builds on another: dump without --prev-images-dir";

Result<void> write_all(int fd, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t done = ::write(fd, bytes.data(), bytes.size());
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) return fail_errno(errno, "storing pages");
    bytes = bytes.subspan(static_cast<std::size_t>(done));
  }
  return {};
}

template <typename Number>
Result<void> answer(int socket, Number number) {
  return os::send_all(socket, std::as_bytes(std::span(&number, 1)), Deadline::after(kPatience));
}

}  // namespace

CriuPageReceiver::CreateFile CriuPageReceiver::files_in(std::string directory) {
  return [directory = std::move(directory)](const std::string& name) -> Result<os::UniqueFd> {
    const std::string path = directory + "/" + name;
    os::UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!fd) return fail_errno(errno, path);
    return fd;
  };
}

Result<bool> CriuPageReceiver::handle(int socket, const PageRecord& record) {
  switch (record.command) {
    case PageCommand::open:
      UFFDA_TRY_VOID(open(record));
      return true;
    case PageCommand::open2:
      UFFDA_TRY_VOID(open(record));
      UFFDA_TRY_VOID(answer(socket, std::uint8_t{0}));  // no parent's pages are here
      return true;
    case PageCommand::parent:
      UFFDA_TRY_VOID(answer(socket, std::int32_t{0}));
      return true;
    case PageCommand::add:
      UFFDA_TRY_VOID(add(socket, record, PageRecord::kPresent));
      return true;
    case PageCommand::add_flags:
      UFFDA_TRY_VOID(add(socket, record, record.flags));
      return true;
    case PageCommand::close:
    case PageCommand::force_close:
      UFFDA_TRY_VOID(store());
      UFFDA_TRY_VOID(answer(socket, std::int32_t{0}));
      return false;
    case PageCommand::hole:
    case PageCommand::get:
      break;
  }
  return fail(Errc::protocol, kOfNoDump);
}

Result<void> CriuPageReceiver::open(const PageRecord& record) {
  UFFDA_TRY_VOID(store());
  constexpr std::uint64_t kOfTask = 1;
  const std::uint64_t number = record.id >> 8U;
  const char* const kind = (record.id & 0xffU) == kOfTask ? "pagemap" : "pagemap-shmem";
  if (number > std::numeric_limits<std::uint32_t>::max() || pages_id_ >= kMostFiles)
    return fail(Errc::protocol, fmt::format("opens the pages of {}, or too many", number));
  id_ = record.id;
  ++pages_id_;
  pages_ = UFFDA_TRY(create_(fmt::format("pages-{}.img", pages_id_)));
  pagemap_ = UFFDA_TRY(create_(fmt::format("{}-{}.img", kind, number)));
  return write_all(pagemap_.get(), criu::pagemap_beginning(pages_id_));
}

Result<void> CriuPageReceiver::add(int socket, const PageRecord& record, std::uint32_t flags) {
  const bool possible = record.pages != 0 && record.pages <= std::numeric_limits<std::uint32_t>::max();
  if (!pagemap_ || record.id != id_ || !possible)
    return fail(Errc::protocol, "sends pages of nothing that is open, or an impossible number");
  // What is neither here nor with the process would be read from here, and move all that follows.
  const bool somewhere = (flags & (PageRecord::kPresent | PageRecord::kLazy)) != 0;
  if ((flags & PageRecord::kInParent) != 0 || !somewhere) return fail(Errc::protocol, kOfNoDump);
  UFFDA_TRY_VOID(write_all(pagemap_.get(), criu::pagemap_entry({record.address}, record.pages, flags)));
  if ((flags & PageRecord::kPresent) == 0) return {};
  const std::uint64_t room = std::min(record.pages, kStep) * kPageSize.value;
  if (buffer_.size() < room) buffer_.resize(room);
  for (std::uint64_t left = record.pages; left != 0;) {
    const std::uint64_t pages = std::min(left, kStep);
    const std::span<std::byte> bytes = std::span(buffer_).first(pages * kPageSize.value);
    UFFDA_TRY_VOID(os::receive_all(socket, bytes, Deadline::after(kPatience)));
    UFFDA_TRY_VOID(write_all(pages_.get(), bytes));
    left -= pages;
  }
  return {};
}

Result<void> CriuPageReceiver::store() {
  for (os::UniqueFd* file : {&pagemap_, &pages_}) {
    if (*file && ::fsync(file->get()) != 0) return fail_errno(errno, "storing pages");
    file->reset();
  }
  return {};
}

}  // namespace uffda
