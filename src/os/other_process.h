// Another process, seen from outside: its descriptors, and what of its memory userfaultfd traps.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "os/fd.h"
#include "uffda/result.h"
#include "uffda/units.h"

namespace uffda::os {

/// A process that stays this one, though its pid may come again.
struct ProcessHandle {
  pid_t pid = 0;
  UniqueFd pidfd;
};
/// Errors: not_found (there is no such process).
Result<ProcessHandle> open_process(pid_t pid);
/// The same again, if the process of that pid is still the one that identity_of() was asked of. Errors: not_found.
Result<ProcessHandle> open_process_again(pid_t pid, std::uint64_t identity);
/// No other process has the same, before the machine is started again. Linux before 6.9: all have.
[[nodiscard]] std::uint64_t identity_of(const ProcessHandle& process);
/// Who made the other end of a connected socket. Errors: as open_process.
Result<ProcessHandle> open_peer(int socket);
/// SIGKILL. Errors: gone (it has exited), permission_denied.
Result<void> kill_process(int pidfd);

/// A copy of descriptor `fd` of a process. Errors: not_found (no such process or descriptor), permission_denied (with
/// the right that is missing).
Result<UniqueFd> take_descriptor(pid_t pid, int fd);

/// What /proc tells of a userfaultfd.
struct UserfaultInfo {
  std::uint64_t features = 0;   ///< UFFD_FEATURE_* that it was opened with
  std::uint64_t waiting = 0;    ///< threads that wait for a fault to be resolved
  std::uint64_t forgotten = 0;  ///< of these, whose fault was read: nobody is told of it again without a wake
};
/// Of descriptor `fd` of this process. Errors: invalid_argument (it is no userfaultfd).
Result<UserfaultInfo> userfault_info(int fd);
/// The text of its /proc/PID/fdinfo. Nothing: it is none of a userfaultfd.
[[nodiscard]] std::optional<UserfaultInfo> parse_userfault_info(std::string_view text);

/// A mapping that is registered with a userfaultfd, whichever.
struct TrappedRange {
  Address start;
  ByteCount length;
  ByteCount page_size;
  bool minor = false;  ///< registered MINOR: its pages are in a cache that somebody fills
  bool write_protect = false;
  std::string name;  ///< the file, or nothing

  [[nodiscard]] Address end() const { return start + length; }
};
/// By address. Errors: not_found (no such process), permission_denied (with the right that is missing).
Result<std::vector<TrappedRange>> trapped_ranges(pid_t pid);
/// The same of the text of /proc/PID/smaps; lines that it does not know are passed over.
[[nodiscard]] std::vector<TrappedRange> parse_trapped_ranges(std::string_view smaps);

/// The descriptors of a process that are userfaultfds, in order; none if that cannot be seen.
std::vector<int> userfaultfds_of(pid_t pid);

struct Process {
  pid_t pid = 0;
  std::string name;
};
struct Sharers {
  std::vector<Process> processes;  ///< that have it open
  std::size_t unseen = 0;          ///< processes that we may not look into
};
/// Who beside this process and `but` has the file of our descriptor `fd` open. Errors: unsupported (no kcmp(2)).
Result<Sharers> sharers_of(int fd, pid_t but);

}  // namespace uffda::os
