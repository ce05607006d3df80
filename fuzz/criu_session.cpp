// A dump that somebody sends to `uffda criu page-server --receive`, from its first record to its last, over a socket.
// It ends in words, and what was stored is under names of a dump's images, as many bytes as pages that were said to
// come.
//
// Input: a byte for the size of a record, then records with a byte in front: 1: the command is one that there is; 2:
// the id is the last that was opened; 4: it is of few pages; the next two bits: so many pages of bytes follow; 32: and
// half of one.
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "criu/images.h"
#include "criu/page_server_wire.h"
#include "os/socket.h"
#include "os/tcp.h"
#include "server/criu_page_receiver.h"

namespace {

using namespace uffda;
using criu::PageCommand;
using criu::PageRecord;
using criu::RecordSize;

constexpr std::size_t kMostRecords = 64;  // answers to more would have to be read, or the receiver waits for that
constexpr std::size_t kMostPages = 16;    // of bytes: all of a session has to fit into the socket
constexpr std::array kCommands{PageCommand::open,  PageCommand::open2,     PageCommand::parent, PageCommand::add,
                               PageCommand::close, PageCommand::add_flags, PageCommand::hole,   PageCommand::get};

void require(bool holds) {
  if (!holds) std::abort();
}

/// What stands in front of a record: see above.
struct Mending {
  explicit Mending(std::uint8_t byte)
      : command((byte & 1U) != 0),
        id((byte & 2U) != 0),
        few((byte & 4U) != 0),
        pages(byte >> 3U & 3U),
        half((byte & 32U) != 0) {}
  bool command, id, few;
  std::size_t pages;
  bool half;
};

PageRecord mended(PageRecord record, const Mending& mending, std::uint64_t last_id) {
  if (mending.id) record.id = last_id;
  if (mending.few) record.pages %= 4;
  return record;
}

/// The bytes of a session, made of an input.
std::vector<std::byte> session_of(std::span<const std::byte> input, RecordSize kind) {
  const std::size_t length = std::to_underlying(kind);
  std::vector<std::byte> bytes;
  std::uint64_t last_id = 0;
  std::size_t pages_left = kMostPages;
  for (std::size_t count = 0; input.size() > length && count < kMostRecords; ++count) {
    const Mending mending(std::to_integer<std::uint8_t>(input[0]));
    std::vector<std::byte> raw(input.begin() + 1, input.begin() + 1 + static_cast<std::ptrdiff_t>(length));
    input = input.subspan(1 + length);
    if (mending.command) {
      const auto command =
          static_cast<std::uint16_t>(kCommands.at(std::to_integer<std::size_t>(raw[0]) % kCommands.size()));
      std::memcpy(raw.data(), &command, sizeof command);
    }
    if (auto record = criu::parse_record(raw, kind)) {
      *record = mended(*record, mending, last_id);
      if (record->command == PageCommand::open || record->command == PageCommand::open2) last_id = record->id;
      std::array<std::byte, PageRecord::kMaxSize> again{};
      const auto encoded = criu::encode_record(*record, kind, again);
      raw.assign(encoded.begin(), encoded.end());
    }
    bytes.insert(bytes.end(), raw.begin(), raw.end());
    const std::size_t pages = std::min(mending.pages, pages_left);
    pages_left -= pages;
    bytes.resize(bytes.size() + pages * kPageSize.value + (mending.half ? kPageSize.value / 2 : 0), std::byte{0x5a});
  }
  return bytes;
}

/// The directory of the images, in memory.
class Files {
 public:
  CriuPageReceiver::CreateFile creator() {
    return [this](const std::string& name) -> Result<os::UniqueFd> {
      require(name.find('/') == std::string::npos && name.ends_with(".img") && name.starts_with("page"));
      os::UniqueFd file(::memfd_create("image", MFD_CLOEXEC));
      os::UniqueFd copy(::dup(file.get()));
      if (!file || !copy) return fail(Errc::no_memory, "descriptors");
      if (name.starts_with("pages-")) last_pages_ = name;
      if (name.starts_with("pagemap")) pages_of_[name] = last_pages_;
      files_[name] = std::move(file);
      return copy;
    };
  }

  /// Every pagemap that its reader accepts tells as many pages as are stored for it.
  void check() {
    for (const auto& [name, pages] : pages_of_) {
      const auto pagemap = criu::parse_pagemap(contents(name));
      if (!pagemap) continue;
      std::uint64_t stored = 0;
      for (const criu::PagemapRun& run : pagemap->runs)
        if (run.where == criu::PagemapRun::Where::here) stored += run.range.length.value;
      require(size_of(pages) == stored);
    }
  }

 private:
  std::uint64_t size_of(const std::string& name) {
    struct stat status{};
    require(::fstat(files_.at(name).get(), &status) == 0);
    return static_cast<std::uint64_t>(status.st_size);
  }
  std::vector<std::byte> contents(const std::string& name) {
    std::vector<std::byte> bytes(size_of(name));
    require(::pread(files_.at(name).get(), bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size()));
    return bytes;
  }

  std::map<std::string, os::UniqueFd> files_;
  std::map<std::string, std::string> pages_of_;
  std::string last_pages_;
};

/// True: the other side said that it was done.
bool receive_dump(int socket, RecordSize kind, CriuPageReceiver& receiver) {
  std::array<std::byte, PageRecord::kMaxSize> buffer{};
  const auto header = std::span(buffer).first(std::to_underlying(kind));
  for (;;) {
    if (!os::receive_all(socket, header, Deadline::after(std::chrono::seconds(5)))) return false;
    const auto record = criu::parse_record(header, kind);
    if (!record) return false;
    const auto more = receiver.handle(socket, *record);
    require(more || !more.error().context().empty());
    if (!more) return false;
    if (!*more) return true;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const RecordSize kind = data[0] % 2 == 0 ? RecordSize::narrow : RecordSize::wide;
  const auto bytes = session_of(std::as_bytes(std::span(data, size)).subspan(1), kind);
  auto ends = os::make_stream_pair();
  require(ends.has_value());
  require(::send(ends->first.get(), bytes.data(), bytes.size(), MSG_DONTWAIT | MSG_NOSIGNAL) ==
          static_cast<ssize_t>(bytes.size()));
  require(::shutdown(ends->first.get(), SHUT_WR) == 0);
  Files files;
  CriuPageReceiver receiver(files.creator());
  if (receive_dump(ends->second.get(), kind, receiver)) files.check();
  return 0;
}
