// The engines behind file: sources. A reader takes a ticket, reads the file into its buffer off the calling thread, and
// answers it.
//
// A caller is often the thread that reads a userfaultfd. It must not submit to a ring itself (the ring's completions
// would interrupt it there), so it queues the ticket and wakes a thread that owns a ring. Waking a thread on another
// CPU costs tens of microseconds on a virtual machine, so there is one such thread per CPU, and the caller's CPU picks
// it: the thread whose fault this is slept there too.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "os/fd.h"
#include "uffda/page_source.h"

namespace uffda::sources {

/// An open file and how it may be read. Constant after it was opened.
struct FileAccess {
  os::UniqueFd buffered;
  os::UniqueFd direct;             ///< the same file with O_DIRECT; none if the file is read through the page cache
  std::uint64_t direct_align = 1;  ///< of offsets and lengths, for `direct`
  std::uint64_t memory_align = 1;  ///< of buffers, for `direct`
  ByteCount size;
  std::string name;     ///< for messages
  std::string version;  ///< of the contents, as far as the file system tells
};

/// One read that is under way: the ticket, how far it is, and what to read next.
class FileRead {
 public:
  struct Part {
    bool direct;
    std::uint64_t offset;
    std::span<std::byte> buffer;
  };
  enum class Step : std::uint8_t { more, finished };

  /// The first `done` bytes are there already.
  FileRead(FetchTicket ticket, ByteCount done) noexcept : ticket_(std::move(ticket)), done_(done.value) {}

  /// What to read next: through O_DIRECT what it can do, the rest (the tail of the file, a buffer that is not aligned)
  /// through the page cache.
  [[nodiscard]] Part next(const FileAccess& file) const noexcept;
  /// Takes the outcome of reading the part: bytes or -errno. Answers the ticket if that was the end of it.
  Step advance(const FileAccess& file, std::int64_t result) noexcept;
  void cancel(std::string why) noexcept { std::move(ticket_).fail(Error(Errc::cancelled, std::move(why))); }

 private:
  void fail(Error error) noexcept { std::move(ticket_).fail(std::move(error)); }

  FetchTicket ticket_;
  std::uint64_t done_;
};

/// pread until `buffer` is full. Async-signal-safe: errors carry errno and at most a few bytes of text.
Result<void> read_now(const FileAccess& file, std::uint64_t offset, std::span<std::byte> buffer) noexcept;

class FileReader {
 public:
  FileReader() = default;
  FileReader(const FileReader&) = delete;
  FileReader& operator=(const FileReader&) = delete;
  /// Answers every ticket: reads that are under way are waited for, queued ones are cancelled.
  virtual ~FileReader() = default;

  /// Threads: any. Never waits for the read.
  virtual void read(FetchTicket ticket, ByteCount done) noexcept = 0;
  /// Before the first read.
  virtual void set_arena(std::span<std::byte> arena) = 0;
};

/// At most this many reads are under way or queued in one reader.
inline constexpr unsigned kFileParallel = 256;

/// Fails a ticket for which there was no room.
void refuse_overload(const FileAccess& file, FetchTicket ticket) noexcept;

/// io_uring, one ring and thread per CPU. `file` outlives the reader. Errors: unsupported, permission_denied,
/// no_memory.
Result<std::unique_ptr<FileReader>> make_ring_reader(const FileAccess& file);
/// Threads that call pread, where io_uring is refused.
Result<std::unique_ptr<FileReader>> make_thread_reader(const FileAccess& file);

}  // namespace uffda::sources
