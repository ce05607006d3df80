// Userfault: a monitor's side of userfaultfd, over any memory that an Engine maps.
//
// The kernel's own userfaultfd knows anonymous memory, shmem and hugetlbfs. This one knows every memory type of uffda,
// also those that the kernel refuses (a file, a compressed snapshot): what is cached raises MINOR faults, what is
// absent MISSING ones, and whatever the monitor did not ask for stays the memory type's ordinary fault.
//
//   auto engine = uffda::Engine::create({.monitors = uffda::UffdFeature::event_remove});
//   auto memory = engine->map("file:disk.img");
//   auto monitor = uffda::Userfault::open(*engine, {});
//   monitor->register_range(address, length, uffda::UffdMode::missing);
//   monitor->read(messages, deadline);            // struct uffd_msg, as from the kernel
//   monitor->copy(page, bytes.data(), length, {});
//
// Arguments, the order in which they are refused, errno values, partial progress and the order of messages are the
// kernel's; where they are not, docs/design/monitors.md says where and why.
#pragma once

#include <linux/userfaultfd.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "uffda/deadline.h"
#include "uffda/flags.h"
#include "uffda/result.h"
#include "uffda/uffd_ops.h"
#include "uffda/uffda.h"
#include "uffda/units.h"

namespace uffda {

/// How a resolution is made; the kernel's UFFDIO_*_MODE_*.
enum class ResolveFlag : std::uint8_t {
  dontwake = 1U << 0U,         ///< who waits sleeps on, until wake()
  wp = 1U << 1U,               ///< COPY, CONTINUE: map write-protected. WRITEPROTECT: protect; without it, lift
  allow_src_holes = 1U << 2U,  ///< MOVE: absent pages of the source count as moved
};
using ResolveFlags = Flags<ResolveFlag>;

/// The outcome of an ioctl.
struct UffdOutcome {
  int error = 0;  ///< 0, or errno
  /// The result field as the kernel would leave it: the bytes done, or -errno. Empty: not touched.
  std::optional<std::int64_t> done;
};

/// Pages that were written.
struct WrittenRange {
  Address start;
  ByteCount length;
};
/// What a search for written pages found.
struct WrittenPages {
  std::size_t ranges = 0;  ///< at the start of the caller's room
  Address end;             ///< looked at up to here: before the end of the range if there was no more room
};
/// Whether the pages that are found are protected again, in the same step: no write between is missed.
enum class Rearm : std::uint8_t { no, yes };

/// Threads: any, for everything. Closing it (its end) unregisters its ranges and lets those who wait there fault again.
class Userfault {
 public:
  /// A monitor of the memory of `engine`. `features` are some of EngineOptions::monitors; sigbus and wp_async are of
  /// all the engine's monitors or of none. Errors: unsupported (the message says which), no_memory.
  static Result<Userfault> open(const Engine& engine, UffdFeatures features);
  Userfault(const Userfault&) = delete;
  Userfault& operator=(const Userfault&) = delete;
  Userfault(Userfault&&) noexcept;
  Userfault& operator=(Userfault&&) noexcept;
  ~Userfault();

  /// Readable while a message waits; for poll and epoll. Owned by this object, not to be read.
  [[nodiscard]] int fd() const;
  /// Takes messages: page faults before events, oldest first. Waits until there is one or `deadline` passes; 0 then.
  Result<std::size_t> read(std::span<uffd_msg> messages, Deadline deadline);

  /// What UFFDIO_REGISTER gives. Errors carry the kernel's errno: EINVAL (alignment, no memory of the engine there, the
  /// type cannot), EPERM (may not be written, and is shared), EBUSY (another monitor's), ENOMEM.
  Result<UffdIoctls> register_range(Address start, ByteCount length, UffdModes modes);
  /// Errors: EINVAL.
  Result<void> unregister_range(Address start, ByteCount length);

  /// Fills absent pages. What is there stays: EEXIST. `from` may be absent memory that somebody else serves.
  UffdOutcome copy(Address to, const void* from, ByteCount length, ResolveFlags flags);
  UffdOutcome zeropage(Address start, ByteCount length, ResolveFlags flags);
  /// Maps cached pages. EFAULT: not cached.
  UffdOutcome continue_(Address start, ByteCount length, ResolveFlags flags);
  UffdOutcome poison(Address start, ByteCount length, ResolveFlags flags);
  UffdOutcome move(Address to, Address from, ByteCount length, ResolveFlags flags);
  /// Has no result field.
  UffdOutcome writeprotect(Address start, ByteCount length, ResolveFlags flags);
  UffdOutcome wake(Address start, ByteCount length);
  /// With wp_async: the pages that were written since they were protected, in order, with their neighbours as one
  /// range; pages that were never protected count as written (the kernel's PAGEMAP_SCAN for PAGE_IS_WRITTEN). Errors:
  /// EINVAL (the range; no room), EPERM (not all of it is registered for wp with wp_async), unsupported (Linux
  /// before 6.7).
  Result<WrittenPages> written(Address start, ByteCount length, std::span<WrittenRange> found, Rearm rearm);

 private:
  struct Impl;
  explicit Userfault(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace uffda
