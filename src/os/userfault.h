// userfaultfd: every ioctl and read of it, behind one replaceable interface.
//
// An ioctl that can stop half way returns a Progress; what an errno means is decided by the caller
// (src/mm/resolve.cpp), not here.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <memory>
#include <span>

#include "os/fd.h"
#include "os/kernel_abi.h"
#include "uffda/result.h"
#include "uffda/uffd_ops.h"
#include "uffda/units.h"

namespace uffda::os {

/// How far a resolution got, and the errno that stopped it (0: all done).
struct Progress {
  ByteCount done;
  int error = 0;
};

/// Whether a resolution wakes the threads that wait in its range.
enum class Wake : std::uint8_t { yes, no };
/// Whether a page is write-protected when it is mapped, in a range that is registered for it.
enum class Protect : std::uint8_t { no, yes };
/// What MOVE does with absent pages of its source.
enum class SourceHoles : std::uint8_t { refuse, allow };
/// Whether a read may wait for the first message.
enum class Wait : std::uint8_t { yes, no };

/// One userfaultfd. Threads: any, concurrently.
class Userfault {
 public:
  virtual ~Userfault() = default;

  /// Descriptor to poll or to pass on; owned by this object.
  [[nodiscard]] virtual int fd() const = 0;
  /// The features it was opened with.
  [[nodiscard]] virtual std::uint64_t features() const = 0;

  /// The number of messages read. Wait::no: 0 if there are none. Errors: again (interrupted), no_memory (no descriptor
  /// for a FORK), gone.
  virtual Result<std::size_t> read(std::span<uffd_msg> messages, Wait wait) = 0;

  virtual Progress copy(Address to, std::span<const std::byte> from, Wake wake, Protect protect) = 0;
  virtual Progress zeropage(Address start, ByteCount length, Wake wake) = 0;
  virtual Progress continue_run(Address start, ByteCount length, Wake wake, Protect protect) = 0;
  virtual Progress poison(Address start, ByteCount length, Wake wake) = 0;
  /// Moves anonymous pages of this process, without a copy.
  virtual Progress move(Address to, Address from, ByteCount length, Wake wake, SourceHoles holes) = 0;
  /// Protects the range, or (Protect::no) lifts that and wakes it. 0 or an errno; what lies before the failure is done.
  virtual int writeprotect(Address start, ByteCount length, Protect protect, Wake wake) = 0;
  /// Takes pages of shared mappings of this process out of its page tables: they stay cached, and the next touch
  /// faults. Of a private mapping it would throw copies away. False: not possible here (the userfaultfd is another
  /// process's, or somebody has to hear of it), or not everywhere.
  virtual bool unmap(std::span<const iovec> ranges) = 0;
  /// Whether that is possible at all.
  [[nodiscard]] virtual bool can_unmap() const = 0;
  /// Makes every fault in the range come again. 0 or an errno.
  virtual int wake(Address start, ByteCount length) = 0;

  virtual Result<UffdIoctls> register_range(Address start, ByteCount length, UffdModes modes) = 0;
  virtual Result<void> unregister_range(Address start, ByteCount length) = 0;

  /// False once the address space that it traps has exited.
  [[nodiscard]] virtual bool alive() = 0;
};

struct UserfaultOptions {
  std::uint64_t features = 0;  ///< UFFD_FEATURE_*: all of them are needed
  bool blocking = false;       ///< reads may wait; such a descriptor cannot be polled
  bool user_mode_fallback =
      false;  ///< where the privilege for faults inside system calls is missing, take those of user code alone
};

/// Opens a userfaultfd for this process: the system call, then /dev/userfaultfd, then (if allowed) user mode only.
/// Errors: permission_denied (names the privilege, sysctl and device), unsupported (names the features that this kernel
/// lacks).
Result<std::unique_ptr<Userfault>> open_userfault(const UserfaultOptions& options);

/// Whether reads of a userfaultfd can be kept from waiting whatever is done to its description. Not so for one that
/// came with a FORK event (Linux 6.18): RWF_NOWAIT is refused, and with O_NONBLOCK cleared by somebody who shares it a
/// read would wait.
[[nodiscard]] bool reads_never_wait(int fd);

/// Wraps a userfaultfd of another process, on which UFFDIO_API was done with `features`, and makes it non-blocking.
/// Errors: invalid_argument if it is no userfaultfd.
Result<std::unique_ptr<Userfault>> adopt_userfault(UniqueFd fd, std::uint64_t features);

/// Makes every fault come again that somebody has read and not resolved, wherever it is.
void wake_everything(Userfault& userfault);

/// The features of the running kernel. Errors: as open_userfault.
Result<std::uint64_t> kernel_userfault_features();

}  // namespace uffda::os
