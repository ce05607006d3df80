// One io_uring: submission of reads and writes and their completions. A ring belongs to the one thread that enabled it;
// creating it elsewhere is allowed, so that a refusal is heard by whoever opens a source and not by its thread.
#pragma once

#include <liburing.h>
#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "uffda/result.h"

namespace uffda::os {

class Ring {
 public:
  /// A ring that takes `entries` submissions at once. Errors: unsupported or permission_denied (the kernel or a seccomp
  /// filter refuses io_uring; the context says so), no_memory.
  static Result<std::unique_ptr<Ring>> create(unsigned entries);
  ~Ring();
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;

  /// Makes the calling thread the owner. Everything below is for the owner only. Call before anything else.
  Result<void> enable() const;

  /// From now on prepare_read's `file` is an index into `fds`. Once.
  Result<void> register_files(std::span<const int> fds);
  /// Pins the buffers, so that reads into them need no look-up of pages. Errors: no_memory (RLIMIT_MEMLOCK). Once.
  Result<void> register_buffers(std::span<const iovec> buffers);

  /// Queues a read; submit_and_wait() hands it to the kernel. `fixed_buffer` is the index of the registered buffer that
  /// `buffer` lies in, or kNotFixed. The completion carries `tag`. False: the submission queue is full, call submit().
  static constexpr int kNotFixed = -1;
  [[nodiscard]] bool prepare_read(int file, std::span<std::byte> buffer, std::uint64_t offset, int fixed_buffer,
                                  std::uint64_t tag);
  /// The same for a write.
  [[nodiscard]] bool prepare_write(int file, std::span<const std::byte> bytes, std::uint64_t offset, int fixed_buffer,
                                   std::uint64_t tag);
  /// A read of a descriptor that was not registered, at its own position (an eventfd).
  [[nodiscard]] bool prepare_stream_read(int fd, std::span<std::byte> buffer, std::uint64_t tag);

  /// Hands over what was prepared. Never waits for completions.
  void submit();
  /// The same, and waits until there is a completion to reap. Returns early if a signal came.
  void submit_and_wait();

  /// Calls `seen(tag, result)` for every completion that is there; `result` is bytes or -errno. Returns how many.
  template <typename Seen>
  unsigned reap(Seen&& seen) {
    unsigned count = 0;
    io_uring_cqe* completion = nullptr;
    while (io_uring_peek_cqe(&ring_, &completion) == 0) {
      const std::uint64_t tag = completion->user_data;
      const std::int32_t result = completion->res;
      // Handed back before the call, so that the queue has room however long the call takes.
      io_uring_cqe_seen(&ring_, completion);
      seen(tag, result);
      ++count;
    }
    return count;
  }

 private:
  Ring() = default;

  io_uring ring_{};
  bool files_registered_ = false;
};

}  // namespace uffda::os
