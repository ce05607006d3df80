// The floor of a server of VMs: one thread that waits for the userfaultfds of all of them by epoll, and answers a fault
// by read, pread of the page from a memfd, and UFFDIO_COPY; no states, no lock, no counters, no thread of a VM's own.
//
// It understands Firecracker's message as far as it has to: one region, which begins at the memfd's first byte.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <string>

namespace bench {

/// A process that serves while this lives; it ends with the userfaultfds that it has.
class CopyingFloor {
 public:
  /// Listens at `socket`; `pages` from the first on are there. Whoever faults elsewhere waits for ever.
  CopyingFloor(std::string socket, std::size_t pages);
  CopyingFloor(const CopyingFloor&) = delete;
  CopyingFloor& operator=(const CopyingFloor&) = delete;
  ~CopyingFloor();
  [[nodiscard]] const std::string& socket() const { return socket_; }

 private:
  std::string socket_;
  pid_t pid_ = -1;
};

}  // namespace bench
