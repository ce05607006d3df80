// What the files of the probe share.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "os/fd.h"
#include "os/probe.h"

namespace uffda::os::probing {

/// A descriptor, or the errno that came instead.
struct Opened {
  UniqueFd fd;
  int error = 0;
};

/// The system call with `flags`; and the device.
Opened userfaultfd_by_syscall(int flags);
Opened userfaultfd_by_device(int flags);
/// By whichever way works, at the end for faults of user code only. For probing what can be registered they are all the
/// same.
Opened any_userfaultfd();
/// UFFDIO_API; the errno, 0 if it succeeded. `offered` is what the kernel has.
int handshake(int fd, std::uint64_t features, std::uint64_t* offered = nullptr);

/// Runs `work` in a child process and returns the errno that it returned (0: success). `work` makes system calls and
/// nothing else.
int errno_in_child(const std::function<int()>& work);

/// The first line of a small file, without its end; empty if it cannot be read.
std::string first_line(const std::string& path);

/// "EPERM (Operation not permitted)".
std::string errno_text(int error);

bool has_capability(unsigned capability);

inline Check yes(std::string name, std::string found = {}) {
  return {.name = std::move(name), .yes = true, .found = std::move(found), .remedy = {}};
}
inline Check no(std::string name, std::string found, std::string remedy) {
  return {.name = std::move(name), .yes = false, .found = std::move(found), .remedy = std::move(remedy)};
}

}  // namespace uffda::os::probing
