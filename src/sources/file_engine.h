// The engines behind file: sources. A FileEngine takes a ticket, reads the file into its buffer (or writes its bytes)
// off the calling thread, and answers it.
//
// A caller is often the thread that reads a userfaultfd. It must not submit to a ring itself (the ring's completions
// would interrupt it there), so it queues the ticket and wakes a thread that owns a ring. Waking a thread on another
// CPU costs tens of microseconds on a virtual machine, so there is one such thread per CPU, and the caller's CPU picks
// it: the thread whose fault this is slept there too.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <variant>

#include "os/fd.h"
#include "uffda/page_source.h"

namespace uffda::sources {

/// An open file and how it may be read. Constant after it was opened.
struct FileAccess {
  os::UniqueFd buffered;
  os::UniqueFd direct;             ///< the same file with O_DIRECT; none if the file is read through the page cache
  std::uint64_t direct_align = 1;  ///< of offsets and lengths, for `direct`
  std::uint64_t memory_align = 1;  ///< of buffers, for `direct`
  ByteCount size;                  ///< when it was opened
  std::string name;                ///< for messages
  std::string version;             ///< of the contents, as far as the file system tells
  bool writable = false;
  /// Of a file that can grow: where it ends, in bytes.
  std::unique_ptr<std::atomic<std::uint64_t>> end;
  [[nodiscard]] bool ends_at(std::uint64_t offset) const noexcept {
    return end != nullptr && offset >= end->load(std::memory_order_acquire);
  }
};

/// One read or write that is under way: the ticket, how far it is, and what to do next.
class FileTransfer {
 public:
  struct Part {
    bool direct;
    bool write;
    std::uint64_t offset;
    std::span<std::byte> buffer;  ///< of a write: nobody changes it
  };
  enum class Step : std::uint8_t { more, finished };

  /// The first `done` bytes are there already, and those behind the first `length`.
  FileTransfer(FetchTicket ticket, ByteCount done, ByteCount length) noexcept
      : ticket_(std::move(ticket)), done_(done.value), length_(length.value) {}
  /// Only the first `length` bytes are written: behind them is the end of the file. `under_way` has been counted up for
  /// it, and is counted down before the answer.
  FileTransfer(WriteTicket ticket, ByteCount length, std::atomic<unsigned>& under_way) noexcept
      : ticket_(std::move(ticket)), length_(length.value), under_way_(&under_way) {}

  [[nodiscard]] ByteCount length() const noexcept { return {length_}; }
  /// What to read or write next: through O_DIRECT what it can do, the rest (the tail of the file, a buffer that is not
  /// aligned) through the page cache.
  [[nodiscard]] Part next(const FileAccess& file) const noexcept;
  /// Takes the outcome of the part: bytes or -errno. Answers the ticket if that was the end of it.
  Step advance(const FileAccess& file, std::int64_t result) noexcept;
  void cancel(const FileAccess& file) noexcept;
  /// There was no room for it.
  void refuse(const FileAccess& file) noexcept;

 private:
  [[nodiscard]] bool is_write() const noexcept { return std::holds_alternative<WriteTicket>(ticket_); }
  [[nodiscard]] ByteRange range() const noexcept;
  [[nodiscard]] Deadline deadline() const noexcept;  // NOLINT(bugprone-exception-escape): never valueless
  void complete() noexcept;
  void count_down() noexcept;
  void fail(Error error) noexcept;

  std::variant<FetchTicket, WriteTicket> ticket_;
  std::uint64_t done_ = 0;
  std::uint64_t length_;
  std::atomic<unsigned>* under_way_ = nullptr;
};

/// pread until `buffer` is full. Async-signal-safe: errors carry errno and at most a few bytes of text.
Result<void> read_now(const FileAccess& file, std::uint64_t offset, std::span<std::byte> buffer) noexcept;

class FileEngine {
 public:
  FileEngine() = default;
  FileEngine(const FileEngine&) = delete;
  FileEngine& operator=(const FileEngine&) = delete;
  /// Answers every ticket: what is under way is waited for, what is queued is cancelled.
  virtual ~FileEngine() = default;

  /// Threads: any. Never waits for the file.
  virtual void start(FileTransfer transfer) noexcept = 0;
  /// Before the first transfer.
  virtual void set_arena(std::span<std::byte> arena) = 0;
};

/// At most this many reads, and as many writes, are under way or queued in one engine.
inline constexpr unsigned kFileParallel = 256;
inline constexpr unsigned kFileTransfers = 2 * kFileParallel;

/// io_uring, one ring and thread per CPU. `file` outlives the engine. Errors: unsupported, permission_denied,
/// no_memory.
Result<std::unique_ptr<FileEngine>> make_ring_engine(const FileAccess& file);
/// Threads that call pread and pwrite, where io_uring is refused.
Result<std::unique_ptr<FileEngine>> make_thread_engine(const FileAccess& file);

}  // namespace uffda::sources
