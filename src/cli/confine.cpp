#include "cli/confine.h"

#include <fcntl.h>
#include <sched.h>
#include <seccomp.h>
#include <unistd.h>

#include <memory>
#include <string_view>

namespace uffda::cli {
namespace {

/// Allowed with any arguments. Names, so that a libseccomp that does not know one leaves it out.
constexpr auto kAllowed = {
    // bytes of descriptors that are there
    "read", "readv", "pread64", "preadv", "preadv2", "write", "writev", "pwrite64", "pwritev", "lseek", "close",
    "close_range", "dup", "dup2", "dup3", "fcntl", "fsync", "fdatasync", "ftruncate", "fallocate", "fadvise64",
    "readahead", "splice", "copy_file_range", "sendfile", "sendmsg", "sendto", "recvmsg", "recvfrom", "shutdown",
    "poll", "ppoll", "select", "pselect6", "epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait", "eventfd2",
    "pipe2", "timerfd_create", "timerfd_settime", "timerfd_gettime",
    // what files there are
    "fstat", "newfstatat", "stat", "lstat", "statx", "statfs", "fstatfs", "access", "faccessat", "faccessat2",
    "readlink", "readlinkat", "getdents64", "getcwd",
    // memory
    "mmap", "munmap", "mprotect", "mremap", "madvise", "msync", "mincore", "brk", "mlock", "mlock2", "munlock",
    "memfd_create", "memfd_secret", "membarrier",
    // threads, time, signals of one's own
    "futex", "set_robust_list", "get_robust_list", "rseq", "set_tid_address", "arch_prctl", "sched_yield",
    "sched_getaffinity", "sched_setaffinity", "sched_getparam", "sched_getscheduler", "getcpu", "nanosleep",
    "clock_nanosleep", "clock_gettime", "clock_getres", "gettimeofday", "time", "times", "getrusage", "rt_sigaction",
    "rt_sigprocmask", "rt_sigreturn", "rt_sigtimedwait", "rt_sigsuspend", "sigaltstack", "restart_syscall", "exit",
    "exit_group",
    // questions
    "getpid", "getppid", "gettid", "getuid", "geteuid", "getgid", "getegid", "getrandom", "uname", "sysinfo",
    "getrlimit"};

/// libseccomp's own macros for this are C.
constexpr scmp_arg_cmp when(unsigned argument, scmp_compare how, scmp_datum_t a, scmp_datum_t b = 0) {
  return {.arg = argument, .op = how, .datum_a = a, .datum_b = b};
}

using Filter = std::unique_ptr<void, decltype(&seccomp_release)>;

bool allow(const Filter& filter, std::string_view name) {
  const int number = seccomp_syscall_resolve_name(std::string(name).c_str());
  return number == __NR_SCMP_ERROR || seccomp_rule_add(filter.get(), SCMP_ACT_ALLOW, number, 0) == 0;
}

bool add_rules(const Filter& filter) {
  for (const std::string_view name : kAllowed) {
    if (!allow(filter, name)) return false;
  }
  constexpr scmp_datum_t kWrites = O_ACCMODE | O_CREAT | O_TRUNC | O_APPEND;
  const auto self = static_cast<scmp_datum_t>(::getpid());
  const auto rule = [&](std::uint32_t action, int call, auto... conditions) {
    return seccomp_rule_add(filter.get(), action, call, sizeof...(conditions), conditions...) == 0;
  };
  return rule(SCMP_ACT_ALLOW, SCMP_SYS(open), when(1, SCMP_CMP_MASKED_EQ, kWrites, O_RDONLY)) &&
         rule(SCMP_ACT_ALLOW, SCMP_SYS(openat), when(2, SCMP_CMP_MASKED_EQ, kWrites, O_RDONLY)) &&
         // Threads and no processes. The flags of clone3 are out of sight: the C library then takes clone.
         rule(SCMP_ACT_ALLOW, SCMP_SYS(clone), when(0, SCMP_CMP_MASKED_EQ, CLONE_THREAD, CLONE_THREAD)) &&
         rule(SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3)) &&
         rule(SCMP_ACT_ALLOW, SCMP_SYS(fchmod), when(1, SCMP_CMP_EQ, 0600)) &&  // of its memory
         rule(SCMP_ACT_ALLOW, SCMP_SYS(tgkill), when(0, SCMP_CMP_EQ, self)) &&
         rule(SCMP_ACT_ALLOW, SCMP_SYS(prlimit64), when(2, SCMP_CMP_EQ, 0));
}

}  // namespace

Result<void> confine() {
  const Filter filter(seccomp_init(SCMP_ACT_ERRNO(EPERM)), &seccomp_release);
  if (!filter || seccomp_attr_set(filter.get(), SCMP_FLTATR_CTL_TSYNC, 1) != 0 || !add_rules(filter))
    return fail(Errc::unsupported, "a seccomp filter cannot be made");
  if (const int error = seccomp_load(filter.get()); error != 0) return fail_errno(-error, "loading the seccomp filter");
  return {};
}

}  // namespace uffda::cli
