#include "sources/overlay_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>

#include "os/memory.h"
#include "sources/pack/checksum.h"

namespace uffda::sources {
namespace {

constexpr std::uint64_t kPage = OverlayFile::kBlock;
static_assert(sizeof(OverlayHeader) == 64);

std::array<std::uint8_t, 16> checksum_of(const OverlayHeader& header) {
  return pack::checksum_of(std::as_bytes(std::span(&header, 1)).first(offsetof(OverlayHeader, checksum))).bytes;
}

/// An io_uring of a process that was killed keeps its files, and their locks, for a moment longer.
Result<void> lock(int fd, int kind, const std::string& name) {
  constexpr Duration kPatience = std::chrono::seconds(2);
  const Deadline deadline = Deadline::after(kPatience);
  while (::flock(fd, kind | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK && errno != EINTR) return fail_errno(errno, name);
    if (deadline.passed())
      return fail(Errc::busy, name + ": somebody has it open: one writes, or several read", EWOULDBLOCK);
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return {};
}

/// Of this start of the machine; 0: it cannot be known.
std::uint64_t this_boot() {
  const os::UniqueFd file(::open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC));
  std::array<std::byte, 36> id{};
  if (!file || ::read(file.get(), id.data(), id.size()) != static_cast<ssize_t>(id.size())) return 0;
  std::uint64_t hash = 0;
  std::memcpy(&hash, pack::checksum_of(id).bytes.data(), sizeof hash);
  return hash;
}

Result<void> create(int fd, const OverlayHeader& header, const std::string& name) {
  std::array<std::byte, kPage> page{};
  std::memcpy(page.data(), &header, sizeof header);
  UFFDA_TRY_VOID(os::write_at(fd, {0}, page));
  if (::fsync(fd) != 0) return fail_errno(errno, name);
  return {};
}

}  // namespace

Result<OverlayHeader> parse_overlay_header(std::span<const std::byte> bytes) {
  OverlayHeader header;
  if (bytes.size() < sizeof header) return fail(Errc::protocol, "too short for an overlay");
  std::memcpy(&header, bytes.data(), sizeof header);
  const OverlayHeader right;
  if (header.magic != right.magic) return fail(Errc::protocol, "no overlay of uffda");
  if (header.version != right.version || header.block != right.block)
    return fail(Errc::protocol, "an overlay of a version that this uffda does not know");
  if (header.checksum != checksum_of(header)) return fail(Errc::protocol, "a damaged overlay: its checksum is wrong");
  if (header.size == 0) return fail(Errc::protocol, "an overlay of nothing");
  return header;
}

void seal(OverlayHeader& header) { header.checksum = checksum_of(header); }

OverlayHeader make_overlay_header(ByteCount size, std::string_view source_version) {
  OverlayHeader header;
  header.size = size.value;
  if (!source_version.empty()) header.source = pack::checksum_of(std::as_bytes(std::span(source_version))).bytes;
  seal(header);
  return header;
}

OverlayFile::OverlayFile(os::UniqueFd fd, std::string name, std::uint64_t blocks)
    : fd_(std::move(fd)),
      name_(std::move(name)),
      blocks_(blocks),
      bytes_(kPage + align_up(align_up(blocks, 8) / 8, kPage)),
      data_(bytes_ + align_up(blocks, kPage)),
      words_(align_up(blocks, 64) / 64),
      changed_(align_up(blocks, kBlocksOfPage) / kBlocksOfPage) {}

OverlayFile::~OverlayFile() { (void)::flock(fd_.get(), LOCK_UN); }

Result<std::unique_ptr<OverlayFile>> OverlayFile::open(const std::string& path, const PageSource& base,
                                                       OpenFor what_for) {
  const bool writes = what_for != OpenFor::reading;
  const std::string name = "overlay " + path;
  os::UniqueFd fd(::open(path.c_str(), (writes ? O_RDWR | O_CREAT : O_RDONLY) | O_CLOEXEC | O_NOCTTY, 0600));
  if (!fd) return fail_errno(errno, name);
  UFFDA_TRY_VOID(lock(fd.get(), writes ? LOCK_EX : LOCK_SH, name));
  const OverlayHeader wanted = make_overlay_header(base.properties().size, base.properties().version);
  struct stat status{};
  if (::fstat(fd.get(), &status) != 0) return fail_errno(errno, name);
  if (!S_ISREG(status.st_mode)) return fail(Errc::invalid_argument, name + ": is no file");
  if (writes && status.st_size == 0) UFFDA_TRY_VOID(create(fd.get(), wanted, name));
  std::array<std::byte, kPage> page{};
  if (const auto read = os::read_at(fd.get(), {0}, page); !read)
    return fail(Errc::protocol, name + ": too short for an overlay");
  const auto header = parse_overlay_header(page);
  if (!header) return std::unexpected(header.error().within(name));
  if (header->size != wanted.size || header->source != wanted.source) {
    return fail(Errc::invalid_argument,
                fmt::format("{}: it lies over {} bytes of another source, or of another version of this one ({}): its "
                            "blocks would not fit",
                            name, header->size, base.name()));
  }
  std::unique_ptr<OverlayFile> file(new OverlayFile(std::move(fd), name, align_up(wanted.size, kBlock) / kBlock));
  if (::fstat(file->fd(), &status) != 0) return fail_errno(errno, name);
  UFFDA_TRY_VOID(file->load_bits(static_cast<std::uint64_t>(status.st_size)));
  if (header->boot == this_boot() && header->boot != 0) {
    UFFDA_TRY_VOID(file->load_bytes());
  } else if (writes) {
    UFFDA_TRY_VOID(file->begin_boot(*header));
  }
  return file;
}

/// What bytes there are is of another start, and means nothing now.
Result<void> OverlayFile::begin_boot(OverlayHeader header) {
  constexpr int kPunch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
  if (::fallocate(fd_.get(), kPunch, static_cast<off_t>(bytes_), static_cast<off_t>(data_ - bytes_)) != 0) {
    const std::vector<std::byte> zeroes(data_ - bytes_);
    UFFDA_TRY_VOID(os::write_at(fd_.get(), {bytes_}, zeroes));
  }
  header.boot = this_boot();
  seal(header);
  return os::write_at(fd_.get(), {0}, std::as_bytes(std::span(&header, 1)));
}

Result<void> OverlayFile::load_bytes() {
  std::array<std::byte, kPage> page{};
  for (auto at = static_cast<off_t>(bytes_);; at += kPage) {
    at = ::lseek(fd_.get(), at, SEEK_DATA);
    if (at < 0 && errno == ENXIO) return {};
    if (at < 0) return fail_errno(errno, name_);
    const std::uint64_t start = align_down(static_cast<std::uint64_t>(at), kPage);
    if (start >= data_) return {};
    at = static_cast<off_t>(start);
    // Short only at the end of the file.
    page.fill({});
    if (::pread(fd_.get(), page.data(), page.size(), at) < 0) return fail_errno(errno, name_);
    for (std::uint64_t i = 0; i < kPage; ++i) {
      const std::uint64_t block = start - bytes_ + i;
      if (page.at(i) != std::byte{0} && block < blocks_) set(block);
    }
  }
}

bool OverlayFile::set(std::uint64_t block) {
  const std::uint64_t bit = std::uint64_t{1} << block % 64;
  if ((words_[block / 64].fetch_or(bit, std::memory_order_acq_rel) & bit) != 0) return false;
  changed_[block / kBlocksOfPage].store(true, std::memory_order_release);
  return true;
}

Result<void> OverlayFile::load_bits(std::uint64_t size) {
  std::vector<std::uint64_t> words(kBlock / sizeof(std::uint64_t));
  // A file that was never flushed ends before its bits.
  for (std::uint64_t page = 0; page < changed_.size() && kPage * (page + 2) <= size; ++page) {
    UFFDA_TRY_VOID(os::read_at(fd_.get(), {kPage * (page + 1)}, std::as_writable_bytes(std::span(words))));
    for (std::size_t i = 0; i < words.size() && page * words.size() + i < words_.size(); ++i)
      words_[page * words.size() + i].store(words[i], std::memory_order_relaxed);
  }
  return {};
}

OverlayFile::Run OverlayFile::run_of(ByteRange range) const {
  const std::uint64_t first = range.start.value / kBlock;
  const std::uint64_t stop = align_up(range.end().value, kBlock) / kBlock;
  const bool written = has(first);
  std::uint64_t end = first + 1;
  while (end < stop && has(end) == written) ++end;
  return {.length = {std::min(end * kBlock, range.end().value) - range.start.value}, .written = written};
}

Result<void> OverlayFile::note_written(ByteRange range) {
  const std::uint64_t first = range.start.value / kBlock;
  const std::uint64_t end = align_up(range.end().value, kBlock) / kBlock;
  bool any_new = false;
  for (std::uint64_t block = first; block < end; ++block) any_new = any_new || !has(block);
  if (!any_new) return {};
  // The bytes first: what this process knows, its successor finds.
  constexpr std::array<std::byte, 64> kOnes = [] {
    std::array<std::byte, 64> ones{};
    ones.fill(std::byte{1});
    return ones;
  }();
  for (std::uint64_t block = first; block < end; block += kOnes.size()) {
    const std::uint64_t count = std::min<std::uint64_t>(kOnes.size(), end - block);
    UFFDA_TRY_VOID(os::write_at(fd_.get(), {bytes_ + block}, std::span(kOnes).first(count)));
  }
  for (std::uint64_t block = first; block < end; ++block) set(block);
  return {};
}

Result<void> OverlayFile::read(ByteOffset offset, std::span<std::byte> bytes) const {
  const Result<void> read = os::read_at(fd_.get(), place_of(offset), bytes);
  if (!read) return fail(Errc::io, name_ + ": a block that was written cannot be read", read.error().sys_errno());
  return {};
}

Result<void> OverlayFile::flush() {
  const MutexLock lock(flush_mutex_);
  constexpr std::size_t kWords = kBlock / sizeof(std::uint64_t);
  struct Page {
    std::uint64_t number;
    std::vector<std::uint64_t> words;
  };
  // Taken before the blocks are made safe: what is written later has its bit in the next flush.
  std::vector<Page> pages;
  for (std::uint64_t number = 0; number < changed_.size(); ++number) {
    if (!changed_[number].exchange(false, std::memory_order_acq_rel)) continue;
    Page page{.number = number, .words = std::vector<std::uint64_t>(kWords)};
    for (std::size_t i = 0; i < kWords && number * kWords + i < words_.size(); ++i)
      page.words[i] = words_[number * kWords + i].load(std::memory_order_acquire);
    pages.push_back(std::move(page));
  }
  const auto write = [&]() -> Result<void> {
    if (::fdatasync(fd_.get()) != 0) return fail_errno(errno, name_ + ": fdatasync");
    if (pages.empty()) return {};
    for (const Page& page : pages)
      UFFDA_TRY_VOID(os::write_at(fd_.get(), {kPage * (page.number + 1)}, std::as_bytes(std::span(page.words))));
    if (::fdatasync(fd_.get()) != 0) return fail_errno(errno, name_ + ": fdatasync");
    return {};
  };
  Result<void> written = write();
  if (!written) {
    for (const Page& page : pages) changed_[page.number].store(true, std::memory_order_release);
  }
  return written;
}

Result<void> OverlayFile::reserve(ByteRange range) {
  const ByteOffset start = place_of(range.start);
  if (::fallocate(fd_.get(), FALLOC_FL_KEEP_SIZE, static_cast<off_t>(start.value),
                  static_cast<off_t>(range.length.value)) == 0 ||
      errno == EOPNOTSUPP)
    return {};
  return fail_errno(errno, fmt::format("{}: space for {} bytes", name_, range.length.value));
}

}  // namespace uffda::sources
