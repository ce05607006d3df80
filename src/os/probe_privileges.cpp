// What this process may do beside userfaultfd, and what that means for the commands of uffda.
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/capability.h>
#include <linux/io_uring.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <sstream>

#include "os/kernel_abi.h"
#include "os/probe.h"
#include "os/probe_internal.h"

namespace uffda::os {
namespace {

using probing::errno_text;
using probing::no;
using probing::yes;

Check capability_check(const char* name, unsigned capability, const char* gives, const char* remedy) {
  return probing::has_capability(capability) ? yes(name, gives) : no(name, "not held", remedy);
}

bool write_file(const char* path, const char* text) {
  const UniqueFd fd(::open(path, O_WRONLY | O_CLOEXEC));
  return fd && ::write(fd.get(), text, std::strlen(text)) == static_cast<ssize_t>(std::strlen(text));
}

/// In a child: a mount namespace of its own, inside a user namespace unless this process may mount by itself. 0 or an
/// errno.
int enter_namespace(const char* uid_map, const char* gid_map) {
  const bool privileged = probing::has_capability(CAP_SYS_ADMIN);
  if (::unshare(CLONE_NEWNS | (privileged ? 0 : CLONE_NEWUSER)) != 0) return errno;
  if (privileged) return 0;
  if (!write_file("/proc/self/setgroups", "deny") || !write_file("/proc/self/uid_map", uid_map) ||
      !write_file("/proc/self/gid_map", gid_map)) {
    return errno;
  }
  return 0;
}

/// In a child: what `uffda exec` does with a PATH. Nothing of it is visible outside, and it ends with the child.
int mount_fuse_privately(const char* uid_map, const char* gid_map) {
  if (const int error = enter_namespace(uid_map, gid_map); error != 0) return error;
  if (::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) return errno;
  const UniqueFd device(::open("/dev/fuse", O_RDWR | O_CLOEXEC));
  if (!device) return errno;
  std::array<char, 80> options{};  // no allocation: a child of a process with threads may have inherited a held lock
  fmt::format_to_n(options.data(), options.size() - 1, "fd={},rootmode=40000,user_id=0,group_id=0", device.get());
  // On "/", because a mount there is in nobody's way: lookups start below it.
  return ::mount("uffda-probe", "/", "fuse", MS_NOSUID | MS_NODEV, options.data()) == 0 ? 0 : errno;
}

Check namespace_check() {
  const char* name = "user namespaces";
  const int error = probing::errno_in_child([] { return ::unshare(CLONE_NEWUSER) == 0 ? 0 : errno; });
  if (error == 0) return yes(name, "exec works without root");
  std::string remedy = "sysctl -w user.max_user_namespaces=10000; in a container allow unshare in the seccomp profile";
  if (probing::first_line("/proc/sys/kernel/unprivileged_userns_clone") == "0") {
    remedy = "sysctl -w kernel.unprivileged_userns_clone=1";
  } else if (probing::first_line("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1") {
    remedy = "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile with userns";
  }
  return no(name, errno_text(error), remedy);
}

Check fuse_device_check() {
  const char* name = "/dev/fuse";
  const UniqueFd device(::open("/dev/fuse", O_RDWR | O_CLOEXEC));
  if (device) return yes(name);
  if (errno == EACCES) return no(name, errno_text(errno), "chmod 0666 /dev/fuse (what most distributions have)");
  return no(name, errno_text(errno), "modprobe fuse; in a container pass the device in (--device /dev/fuse)");
}

Check fuse_mount_check() {
  const char* name = "private FUSE mount";
  const std::string uid_map = fmt::format("0 {} 1", ::geteuid());
  const std::string gid_map = fmt::format("0 {} 1", ::getegid());
  const int error = probing::errno_in_child([&] { return mount_fuse_privately(uid_map.c_str(), gid_map.c_str()); });
  if (error == 0) return yes(name, "exec shows PATH to its program alone");
  return no(name, errno_text(error), "needs /dev/fuse, and CAP_SYS_ADMIN or user namespaces: see their rows");
}

Check fusermount_check() {
  const char* name = "fusermount3";
  const char* path = std::getenv("PATH");
  std::istringstream directories(path != nullptr ? path : "/usr/bin:/bin");
  std::string directory;
  while (std::getline(directories, directory, ':')) {
    const std::string file = directory + "/fusermount3";
    struct stat status{};
    if (::stat(file.c_str(), &status) != 0 || ::access(file.c_str(), X_OK) != 0) continue;
    if (::geteuid() == 0 || ((status.st_mode & S_ISUID) != 0 && status.st_uid == 0)) return yes(name, file);
    return no(name, file + " is not set-uid root", "chmod u+s " + file);
  }
  return no(name, "not on PATH", "install it: apt-get install fuse3");
}

Check locked_memory_check() {
  const char* name = "RLIMIT_MEMLOCK";
  constexpr std::uint64_t kEnough = 64ULL << 20U;
  rlimit limit{};
  ::getrlimit(RLIMIT_MEMLOCK, &limit);
  const std::string found =
      limit.rlim_cur == RLIM_INFINITY ? "unlimited" : fmt::format("{} MiB", limit.rlim_cur >> 20U);
  if (limit.rlim_cur >= kEnough) return yes(name, found);
  if (probing::has_capability(CAP_IPC_LOCK)) return yes(name, found + ", CAP_IPC_LOCK overrides it");
  return no(name, found, "ulimit -l 65536: file sources then read into registered buffers (they work without)");
}

Check io_uring_check() {
  const char* name = "io_uring";
  io_uring_params parameters{};
  const UniqueFd ring(static_cast<int>(::syscall(SYS_io_uring_setup, 2, &parameters)));
  if (ring) return yes(name);
  const int error = errno;
  if (error == EPERM) {
    return no(
        name, errno_text(error),
        "sysctl -w kernel.io_uring_disabled=0, or allow io_uring_setup in the seccomp profile (threads read instead)");
  }
  return no(name, errno_text(error), "boot a kernel with CONFIG_IO_URING=y (threads read instead)");
}

bool supports(const Probe& probe, std::string_view memory, std::string_view mode) {
  for (const MemoryCheck& row : probe.memory) {
    if (row.name != memory) continue;
    for (const ModeCheck& check : row.modes) {
      if (check.mode == mode) return check.yes;
    }
  }
  return false;
}

bool has_feature(const Probe& probe, std::string_view name) {
  for (const FeatureCheck& feature : probe.features) {
    if (feature.name == name) return feature.yes;
  }
  return false;
}

}  // namespace

std::vector<Check> probe_privileges() {
  return {capability_check("CAP_SYS_PTRACE", CAP_SYS_PTRACE, "userfaultfd for system calls, EVENT_FORK",
                           "run as root, or setcap cap_sys_ptrace+ep on the program; /dev/userfaultfd serves, too"),
          capability_check("CAP_SYS_ADMIN", CAP_SYS_ADMIN, "mounts without a user namespace",
                           "run as root; a user namespace or fusermount3 serves, too"),
          namespace_check(),
          fuse_device_check(),
          fuse_mount_check(),
          fusermount_check(),
          locked_memory_check(),
          io_uring_check()};
}

std::vector<Check> summarise(const Probe& probe) {
  const bool trap = Probe::is_yes(probe.creation, "system call") || Probe::is_yes(probe.creation, "/dev/userfaultfd");
  const bool memory = supports(probe, kShmemRow, "missing") && supports(probe, kShmemRow, "minor");
  const bool own_mount = Probe::is_yes(probe.privileges, "private FUSE mount");
  const bool helper = Probe::is_yes(probe.privileges, "/dev/fuse") && Probe::is_yes(probe.privileges, "fusermount3");
  const bool everybody =
      helper || (Probe::is_yes(probe.privileges, "/dev/fuse") && Probe::is_yes(probe.privileges, "CAP_SYS_ADMIN"));
  const char* need_trap =
      "a userfaultfd for system calls, too, and shmem with missing and minor (Linux 5.14): see above";
  const char* need_mount = "a private FUSE mount, or /dev/fuse and fusermount3: see above";

  std::vector<Check> checks;
  checks.push_back(own_mount || everybody ? yes("exec", "PATH through FUSE, for every descriptor")
                                          : no("exec", "no way to mount", need_mount));
  checks.push_back(trap && memory
                       ? yes("exec: fast mappings", "mappings through userfaultfd")
                       : no("exec: fast mappings", "mappings go through FUSE, slower and as right", need_trap));
  checks.push_back(everybody ? yes("mount")
                             : no("mount", "no way to mount", "root with /dev/fuse, or fusermount3: see above"));
  checks.push_back(yes("serve", "clients bring their userfaultfd"));
  checks.push_back(trap && memory ? yes("library", "memory in this process")
                                  : no("library", "faults of system calls cannot be served", need_trap));
  checks.push_back(has_feature(probe, "POISON") ? yes("errors as SIGBUS")
                                                : no("errors as SIGBUS", "no POISON", "needs Linux 6.6"));
  return checks;
}

}  // namespace uffda::os
