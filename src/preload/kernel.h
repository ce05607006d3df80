// What the shim asks of the kernel: system calls that leave errno alone, and the numbers that Debian 12's headers lack.
//
// The shim lives inside programs that are not ours, in functions that malloc and the loader call. So: no allocation, no
// stdio, no C++ runtime, no thread-local storage; results are values or negative errno, as the kernel gives them.
#pragma once

#include <errno.h>  // NOLINT(modernize-deprecated-headers): the shim is libc only
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <string_view>

namespace uffda::shim {

inline constexpr uintptr_t kPage = 4096;

inline constexpr int kPopulateRead = 22;  // MADV_POPULATE_READ, Linux 5.14
inline constexpr int kCollapse = 25;      // MADV_COLLAPSE, Linux 6.1

constexpr uint64_t page_up(uint64_t bytes) { return (bytes + kPage - 1) & ~(kPage - 1); }

/// A system call. The kernel's answer, negative errno on error; errno keeps its value.
template <typename... Arguments>
long kernel(long number, Arguments... arguments) {
  const int saved = errno;
  long answer = ::syscall(number, ((long)arguments)...);
  if (answer == -1) {
    answer = -errno;
    errno = saved;
  }
  return answer;
}

/// Hands a negative errno to the program the way libc does: errno and -1.
inline long to_libc(long answer) {
  if (answer >= 0 || answer < -4095) return answer;  // an address may look negative
  errno = (int)-answer;
  return -1;
}

inline bool failed(long answer) { return answer < 0 && answer >= -4095; }

/// One line on standard error, at most once in this process for each `said`.
void say_once(bool& said, std::string_view text);

}  // namespace uffda::shim
