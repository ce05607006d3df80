// file:PATH. The bytes of a regular file or a block device.
//
//   1. fetch: what the OS has cached is copied at once, in the calling thread (preadv2 with RWF_NOWAIT), small reads
//   only;
//   2. the rest goes to a FileEngine, which reads without holding up the caller;
//   3. fetch_now: pread in the calling thread;
//   4. writes go the same way as reads; flush is fdatasync, and space is allocated before it is needed.
//
// The size is fixed when the file is opened. A file that grows is not noticed; one that shrinks fails the reads that
// miss bytes (they are never zeroes). Only a file that was opened to grow is larger for us than it is: what lies behind
// its end, which moves by resize() alone, reads as zeroes. O_DIRECT is handled inside: what its alignment rules out
// (the last part of a block) is read through the page cache.
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <thread>

#include <fmt/format.h>

#include "base/log.h"
#include "sources/builtin.h"
#include "sources/file_engine.h"
#include "sources/file_writer.h"

namespace uffda::sources {

namespace {

/// Reads up to this size are first tried in the calling thread. Larger ones would keep it copying for too long.
constexpr ByteCount kMaxInlineRead = 128_KiB;
constexpr std::uint64_t kAssumedDirectAlign = 4096;
constexpr std::size_t kMaxExtents = 256;  ///< in one answer
/// That a file can grow by: two bytes of sparse memory for each page.
constexpr Duration kWriteWait = std::chrono::seconds(30);
constexpr ByteCount kGrowth{std::uint64_t{64} << 30U};

std::string_view kind_name(mode_t mode) {
  switch (mode & S_IFMT) {
    case S_IFDIR:
      return "a directory";
    case S_IFIFO:
      return "a pipe";
    case S_IFSOCK:
      return "a socket";
    case S_IFCHR:
      return "a character device";
    default:
      return "neither a file nor a block device";
  }
}

Result<ByteCount> size_of(int fd, const std::string& name, bool may_be_empty) {
  struct stat status{};
  if (::fstat(fd, &status) != 0) return fail_errno(errno, name);
  std::uint64_t size = 0;
  if (S_ISREG(status.st_mode)) {
    size = static_cast<std::uint64_t>(status.st_size);
  } else if (S_ISBLK(status.st_mode)) {
    if (::ioctl(fd, BLKGETSIZE64, &size) != 0) return fail_errno(errno, name + ": size of the block device");
  } else {
    return fail(Errc::invalid_argument,
                fmt::format("{}: is {}; a file or a block device is needed", name, kind_name(status.st_mode)));
  }
  if (size == 0 && !may_be_empty) return fail(Errc::invalid_argument, name + ": is empty; there is nothing to map");
  return ByteCount{size};
}

bool is_regular(int fd) {
  struct stat status{};
  return ::fstat(fd, &status) == 0 && S_ISREG(status.st_mode);
}

std::string version_of(int fd) {
  struct stat status{};
  if (::fstat(fd, &status) != 0 || !S_ISREG(status.st_mode)) return {};
  return fmt::format("{}.{}-{}.{:09}-{}.{:09}", status.st_dev, status.st_ino, status.st_mtim.tv_sec,
                     status.st_mtim.tv_nsec, status.st_ctim.tv_sec, status.st_ctim.tv_nsec);
}

Result<FileAccess> open_buffered(const std::string& path, OpenFor what_for) {
  FileAccess file;
  file.name = "file:" + path;
  if (path.empty()) return fail(Errc::invalid_argument, "file: needs a path, such as file:disk.img");
  // O_NONBLOCK, so that a pipe is refused and not waited for; cleared below, because a ring would give up on reads that
  // wait.
  file.writable = what_for != OpenFor::reading;
  const int access = file.writable ? O_RDWR : O_RDONLY;
  file.buffered.reset(::open(path.c_str(), access | O_CLOEXEC | O_NOCTTY | O_NONBLOCK));
  if (!file.buffered) return fail_errno(errno, file.name);
  file.size = UFFDA_TRY(size_of(file.buffered.get(), file.name, what_for == OpenFor::growing));
  if (what_for == OpenFor::growing && is_regular(file.buffered.get()))
    file.end = std::make_unique<std::atomic<std::uint64_t>>(file.size.value);
  file.version = version_of(file.buffered.get());
  if (::fcntl(file.buffered.get(), F_SETFL, 0) != 0) return fail_errno(errno, file.name);
  return file;
}

/// Opens the same file again with O_DIRECT and finds out its alignment. Errors: unsupported, and what open says.
Result<void> open_direct(FileAccess& file) {
  // Through the descriptor, so that it is the same file whatever happened to the path.
  const std::string self = fmt::format("/proc/self/fd/{}", file.buffered.get());
  const int fd = ::open(self.c_str(), (file.writable ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_DIRECT);
  if (fd < 0) {
    const int why = errno;
    if (why == EINVAL) return fail(Errc::unsupported, file.name + ": this file system does not support O_DIRECT", why);
    return fail_errno(why, file.name + ": opening with O_DIRECT");
  }
  file.direct.reset(fd);
  file.direct_align = kAssumedDirectAlign;
  file.memory_align = kAssumedDirectAlign;
  struct statx status{};
  if (::statx(file.direct.get(), "", AT_EMPTY_PATH, STATX_DIOALIGN, &status) != 0) return {};
  if ((status.stx_mask & STATX_DIOALIGN) == 0) return {};
  if (status.stx_dio_offset_align == 0) {
    file.direct.reset();
    return fail(Errc::unsupported, file.name + ": this file cannot be read with O_DIRECT");
  }
  file.direct_align = status.stx_dio_offset_align;
  file.memory_align = std::max<std::uint64_t>(status.stx_dio_mem_align, 1);
  return {};
}

/// direct=on insists, direct=auto makes do with the page cache and says so.
Result<void> choose_direct(FileAccess& file, std::string_view mode) {
  if (mode == "off") return {};
  const Result<void> opened = open_direct(file);
  if (!opened) {
    file.direct.reset();
    file.direct_align = 1;
    if (mode == "on") {
      const Error& why = opened.error();
      return fail(why.code(), why.context() + "; use direct=auto or direct=off", why.sys_errno());
    }
    log(LogLevel::warning, "{}; reading through the page cache instead", opened.error().context());
  }
  return {};
}

Result<std::unique_ptr<FileEngine>> choose_engine(const FileAccess& file, std::string_view mode) {
  if (mode == "threads") return make_thread_engine(file);
  auto engine = make_ring_engine(file);
  if (engine || mode == "uring") return engine;
  log(LogLevel::warning, "{}: reading with threads instead of io_uring: {}", file.name, engine.error().message());
  return make_thread_engine(file);
}

class FileSource final : public PageSource {
 public:
  static Result<std::unique_ptr<PageSource>> open(const SourceUri& uri) {
    const std::string direct = UFFDA_TRY(uri.choice("direct", {"on", "off", "auto"}, "off"));
    const std::string io = UFFDA_TRY(uri.choice("io", {"uring", "threads", "auto"}, "auto"));
    FileAccess file = UFFDA_TRY(open_buffered(uri.rest(), uri.what_for()));
    if (file.end && direct == "on")
      return fail(Errc::unsupported, file.name + ": a file that grows is not read with O_DIRECT");
    if (!file.end) UFFDA_TRY_VOID(choose_direct(file, direct));
    auto source = std::make_unique<FileSource>(std::move(file));
    source->engine_ = UFFDA_TRY(choose_engine(source->file_, io));
    return source;
  }

  explicit FileSource(FileAccess file) : file_(std::move(file)), try_inline_(!file_.direct) {
    opened(file_.name, {.size = file_.end ? file_.size + kGrowth : file_.size,
                        .block_size = {file_.direct ? file_.direct_align : 1},
                        // Nothing reads ahead of O_DIRECT: large reads are what keeps the device busy.
                        .preferred_read = file_.direct ? 1_MiB : 64_KiB,
                        .parallel = kFileParallel,
                        .writable = file_.writable,
                        .growable = file_.end != nullptr,
                        .length = file_.size,
                        .reserves = file_.writable,
                        .immediate = true,
                        .version = file_.version});
  }

 private:
  void do_fetch(FetchTicket ticket) noexcept override {
    ByteCount done{};
    const ByteCount length = within_file(ticket.range());
    const std::span<std::byte> buffer = ticket.buffer().first(ticket.range().length.value);
    std::ranges::fill(buffer.subspan(length.value), std::byte{0});
    if (try_inline_.load(std::memory_order_relaxed) && length <= kMaxInlineRead)
      done = read_cached(ticket.range().start, buffer.first(length.value));
    if (done == length) {
      std::move(ticket).complete({buffer.size()});
    } else {
      engine_->start({std::move(ticket), done, length});
    }
  }

  /// How much of the range lies before the end of the file.
  [[nodiscard]] ByteCount within_file(ByteRange range) const noexcept {
    const std::uint64_t end = end_of_file();
    return {range.start.value >= end ? 0 : std::min(range.length.value, end - range.start.value)};
  }

  /// Copies what the OS has cached at the start of the range. 0 also where that is impossible or fails: the reader
  /// finds out why.
  ByteCount read_cached(ByteOffset offset, std::span<std::byte> bytes) noexcept {
    if (bytes.empty()) return {};
    const iovec buffer{bytes.data(), bytes.size()};
    const ssize_t got = ::preadv2(file_.buffered.get(), &buffer, 1, static_cast<off_t>(offset.value), RWF_NOWAIT);
    if (got > 0) return {static_cast<std::uint64_t>(got)};
    if (got < 0 && errno == EOPNOTSUPP) try_inline_.store(false, std::memory_order_relaxed);
    return {};
  }

  Result<void> do_fetch_now(ByteOffset offset, std::span<std::byte> buffer) noexcept override {
    const ByteCount length = within_file({offset, {buffer.size()}});
    std::ranges::fill(buffer.subspan(length.value), std::byte{0});
    return read_now(file_, offset.value, buffer.first(length.value));
  }

  [[nodiscard]] std::uint64_t end_of_file() const noexcept {
    return file_.end ? file_.end->load(std::memory_order_acquire) : file_.size.value;
  }

  void do_write_back(WriteTicket ticket) noexcept override {
    // Counted before the end is looked at: who moves it waits for those that may have seen the old one.
    std::atomic<unsigned>& under_way = count_write();
    const ByteCount length = within_file(ticket.range());
    if (length.value == 0) {
      under_way.fetch_sub(1, std::memory_order_acq_rel);
      return std::move(ticket).complete();
    }
    engine_->start({std::move(ticket), length, under_way});
  }

  std::atomic<unsigned>& count_write() noexcept {
    while (true) {
      const unsigned turn = turn_.load(std::memory_order_seq_cst);
      std::atomic<unsigned>& under_way = under_way_.at(turn % 2);
      under_way.fetch_add(1, std::memory_order_seq_cst);
      if (turn_.load(std::memory_order_seq_cst) == turn) return under_way;
      under_way.fetch_sub(1, std::memory_order_acq_rel);
    }
  }

  Result<void> do_resize(ByteCount length) override {
    const std::uint64_t before = end_of_file();
    const auto truncate = [&]() -> Result<void> {
      if (::ftruncate(file_.buffered.get(), static_cast<off_t>(length.value)) == 0) return {};
      return fail_errno(errno, fmt::format("{}: resizing to {} bytes", file_.name, length.value));
    };
    if (length.value >= before) {
      UFFDA_TRY_VOID(truncate());
      file_.end->store(length.value, std::memory_order_release);
      return {};
    }
    // What is written and read from now on ends at the new end; what began before must not make the file longer again.
    file_.end->store(length.value, std::memory_order_seq_cst);
    Result<void> cut = wait_for_writes();
    if (cut) cut = truncate();
    if (!cut) file_.end->store(before, std::memory_order_release);
    return cut;
  }

  /// Returns when no write is under way that began before the call.
  Result<void> wait_for_writes() {
    const Deadline deadline = Deadline::after(kWriteWait);
    const std::atomic<unsigned>& before = under_way_.at(turn_.fetch_add(1, std::memory_order_seq_cst) % 2);
    while (before.load(std::memory_order_acquire) != 0) {
      if (deadline.passed()) return uffda::fail(Errc::timed_out, file_.name + ": writes do not end");
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
    return {};
  }

  Result<void> do_flush() override {
    if (::fdatasync(file_.buffered.get()) != 0) return fail_errno(errno, file_.name + ": fdatasync");
    return {};
  }

  Result<void> do_reserve(ByteRange range) override {
    const auto start = static_cast<off_t>(range.start.value);
    range.length = within_file(range);
    if (range.length.value == 0) return {};
    if (::fallocate(file_.buffered.get(), FALLOC_FL_KEEP_SIZE, start, static_cast<off_t>(range.length.value)) == 0)
      return {};
    // A block device has its space, and where a file system cannot tell, the write will.
    if (errno == EOPNOTSUPP || errno == ENODEV || errno == ENOSYS) return {};
    return fail_errno(errno, fmt::format("{}: space for {} bytes at {}", file_.name, range.length.value, start));
  }

  /// Holes are zeroes. Where the file system, or a block device, cannot tell, all of it is data.
  Result<std::vector<Extent>> do_extents(ByteRange range) override {
    std::vector<Extent> extents;
    const int fd = file_.buffered.get();
    for (ByteOffset at = range.start; at < range.end() && extents.size() < kMaxExtents;) {
      const auto from = static_cast<off_t>(at.value);
      const off_t data = ::lseek(fd, from, SEEK_DATA);
      // ENXIO: no data up to the end, be it that the file shrank; then reading it has to fail.
      const bool hole = data > from || (data < 0 && errno == ENXIO && still_whole());
      if (data < 0 && !hole) return std::vector{Extent{.range = range}};
      const off_t found = hole ? data : ::lseek(fd, from, SEEK_HOLE);
      ByteOffset end = range.end();
      if (found > from) end = std::min(end, ByteOffset{static_cast<std::uint64_t>(found)});
      extents.push_back({.range = {at, end - at}, .kind = hole ? Extent::Kind::zero : Extent::Kind::data});
      at = end;
    }
    return extents;
  }

  [[nodiscard]] bool still_whole() const {
    struct stat status{};
    return ::fstat(file_.buffered.get(), &status) == 0 && static_cast<std::uint64_t>(status.st_size) >= end_of_file();
  }

  void do_set_arena(std::span<std::byte> arena) override { engine_->set_arena(arena); }

  const FileAccess file_;
  std::atomic<unsigned> turn_{0};                   // of the counters: a new one for each time the end comes nearer
  std::array<std::atomic<unsigned>, 2> under_way_;  // writes
  std::atomic<bool> try_inline_;
  std::unique_ptr<FileEngine> engine_;  // last: it uses the file until it is gone
};

}  // namespace

SourceScheme file_scheme() {
  return {.name = "file",
          .syntax = "file:PATH",
          .help = "a file or a block device",
          .parameters = {{"direct", "on, off or auto: read past the page cache with O_DIRECT (default off)"},
                         {"io", "uring, threads or auto: how reads are done (default auto)"}},
          .open = FileSource::open,
          .parameters_of = nullptr,
          .create = create_file};
}

}  // namespace uffda::sources
