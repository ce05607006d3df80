#include "os/probe.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/capability.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "os/kernel_abi.h"
#include "os/probe_internal.h"

namespace uffda::os {
namespace probing {

Opened userfaultfd_by_syscall(int flags) {
  const auto fd = static_cast<int>(::syscall(SYS_userfaultfd, flags | O_CLOEXEC | O_NONBLOCK));
  return {.fd = UniqueFd(fd), .error = fd < 0 ? errno : 0};
}

Opened userfaultfd_by_device(int flags) {
  const UniqueFd device(::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC));
  if (!device) return {.fd = {}, .error = errno};
  const int fd = ::ioctl(device.get(), USERFAULTFD_IOC_NEW, flags | O_CLOEXEC | O_NONBLOCK);
  return {.fd = UniqueFd(fd), .error = fd < 0 ? errno : 0};
}

Opened any_userfaultfd() {
  Opened opened = userfaultfd_by_syscall(0);
  if (!opened.fd) opened = userfaultfd_by_device(0);
  if (!opened.fd) opened = userfaultfd_by_syscall(UFFD_USER_MODE_ONLY);
  return opened;
}

int handshake(int fd, std::uint64_t features, std::uint64_t* offered) {
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = features;
  if (::ioctl(fd, UFFDIO_API, &api) != 0) return errno;
  if (offered != nullptr) *offered = api.features;
  return 0;
}

int errno_in_child(const std::function<int()>& work) {
  const pid_t child = ::fork();
  if (child < 0) return errno;
  if (child == 0) ::_exit(work());
  int status = 0;
  while (::waitpid(child, &status, 0) < 0) {
    if (errno != EINTR) return errno;
  }
  // A child that was killed ran into a filter that kills instead of refusing.
  return WIFEXITED(status) ? WEXITSTATUS(status) : EPERM;
}

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

std::string errno_text(int error) { return fmt::format("{} ({})", ::strerrorname_np(error), ::strerrordesc_np(error)); }

bool has_capability(unsigned capability) {
  __user_cap_header_struct header{.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
  std::array<__user_cap_data_struct, 2> data{};
  if (::syscall(SYS_capget, &header, data.data()) != 0) return false;
  return (data.at(capability / 32).effective >> (capability % 32) & 1U) != 0;
}

}  // namespace probing

namespace {

using probing::errno_text;
using probing::no;
using probing::yes;

struct KnownFeature {
  const char* name;
  const char* since;
};

constexpr std::array<KnownFeature, 17> kFeatures{{{"PAGEFAULT_FLAG_WP", "5.7"},
                                                  {"EVENT_FORK", "4.11"},
                                                  {"EVENT_REMAP", "4.11"},
                                                  {"EVENT_REMOVE", "4.11"},
                                                  {"MISSING_HUGETLBFS", "4.11"},
                                                  {"MISSING_SHMEM", "4.11"},
                                                  {"EVENT_UNMAP", "4.11"},
                                                  {"SIGBUS", "4.14"},
                                                  {"THREAD_ID", "4.14"},
                                                  {"MINOR_HUGETLBFS", "5.13"},
                                                  {"MINOR_SHMEM", "5.14"},
                                                  {"EXACT_ADDRESS", "5.18"},
                                                  {"WP_HUGETLBFS_SHMEM", "5.19"},
                                                  {"WP_UNPOPULATED", "6.4"},
                                                  {"POISON", "6.6"},
                                                  {"WP_ASYNC", "6.7"},
                                                  {"MOVE", "6.8"}}};

/// Why the system call was refused, and what helps. A filter refuses what the privileges would allow.
Check syscall_check(int error) {
  const char* name = "system call";
  if (error == 0) return yes(name, "faults of user code and of system calls");
  if (error == ENOSYS)
    return no(name, errno_text(error),
              "boot a kernel with CONFIG_USERFAULTFD=y, or allow userfaultfd in the seccomp filter");
  if (error == EPERM && probing::has_capability(CAP_SYS_PTRACE)) {
    return no(name, errno_text(error), "allow userfaultfd in the container's seccomp profile");
  }
  return no(name, errno_text(error), "run with CAP_SYS_PTRACE, or set sysctl vm.unprivileged_userfaultfd=1");
}

Check device_check(int error) {
  const char* name = "/dev/userfaultfd";
  if (error == 0) return yes(name, "faults of user code and of system calls");
  if (error == ENOENT)
    return no(name, errno_text(error),
              "needs Linux 6.1; in a container pass the device in (--device /dev/userfaultfd)");
  if (error == EACCES)
    return no(name, errno_text(error), "give this user access: setfacl -m u:USER:rw /dev/userfaultfd");
  return no(name, errno_text(error), "allow the device in the container's device list");
}

Check user_mode_check(int error) {
  const char* name = "user mode only";
  if (error == 0) return yes(name, "without a privilege; system calls on absent pages fail with EFAULT");
  return no(name, errno_text(error), "needs Linux 5.11, and userfaultfd allowed in the seccomp filter");
}

Check sysctl_check() {
  const char* name = "vm.unprivileged_userfaultfd";
  const std::string value = probing::first_line("/proc/sys/vm/unprivileged_userfaultfd");
  if (value == "1") return yes(name, "= 1");
  if (value.empty()) return no(name, "no such sysctl", "needs Linux 5.2");
  return no(name, "= " + value, "sysctl -w vm.unprivileged_userfaultfd=1 gives every user the system call");
}

Check event_fork_check() {
  const char* name = "EVENT_FORK";
  const probing::Opened opened = probing::any_userfaultfd();
  const int error = opened.fd ? probing::handshake(opened.fd.get(), UFFD_FEATURE_EVENT_FORK) : opened.error;
  if (error == 0) return yes(name, "the memory of children can be followed");
  return no(name, errno_text(error), "run with CAP_SYS_PTRACE; without it the exec shim registers children itself");
}

std::uint64_t meminfo(std::string_view key) {
  std::ifstream file("/proc/meminfo");
  std::string line;
  while (std::getline(file, line)) {
    if (!line.starts_with(key) || line.size() <= key.size() || line[key.size()] != ':') continue;
    const std::size_t digits = line.find_first_of("0123456789");
    std::uint64_t kib = 0;
    if (digits != std::string::npos) std::from_chars(line.data() + digits, line.data() + line.size(), kib);
    return kib * 1024;
  }
  return 0;
}

std::uint64_t limit_of(__rlimit_resource resource) {
  rlimit limit{};
  if (::getrlimit(resource, &limit) != 0) return 0;
  return limit.rlim_cur == RLIM_INFINITY ? UINT64_MAX : limit.rlim_cur;
}

std::uint64_t number_in(const std::filesystem::path& path) {
  const std::string line = probing::first_line(path);
  std::uint64_t value = 0;
  std::from_chars(line.data(), line.data() + line.size(), value);
  return value;
}

std::uint64_t offered_features() {
  std::uint64_t offered = 0;
  const probing::Opened opened = probing::any_userfaultfd();
  if (!opened.fd || probing::handshake(opened.fd.get(), 0, &offered) != 0) return 0;
  return offered;
}

}  // namespace

bool Probe::is_yes(const std::vector<Check>& checks, std::string_view name) {
  return std::ranges::any_of(checks, [&](const Check& check) { return check.name == name && check.yes; });
}

Machine probe_machine() {
  utsname name{};
  ::uname(&name);
  return {
      .kernel = fmt::format("{} {}", static_cast<const char*>(name.sysname), static_cast<const char*>(name.release)),
      .architecture = static_cast<const char*>(name.machine),
      .user = fmt::format("uid {}", ::geteuid()),
      .cpus = static_cast<unsigned>(std::max(1L, ::sysconf(_SC_NPROCESSORS_ONLN))),
      .page_size = {static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE))},
      .memory = {meminfo("MemTotal")},
      .memory_available = {meminfo("MemAvailable")},
      .locked_memory_limit = {limit_of(RLIMIT_MEMLOCK)},
      .descriptor_limit = limit_of(RLIMIT_NOFILE)};
}

std::vector<Check> probe_creation() {
  return {
      syscall_check(probing::userfaultfd_by_syscall(0).error), device_check(probing::userfaultfd_by_device(0).error),
      user_mode_check(probing::userfaultfd_by_syscall(UFFD_USER_MODE_ONLY).error), sysctl_check(), event_fork_check()};
}

std::vector<FeatureCheck> probe_features(std::uint64_t offered) {
  std::vector<FeatureCheck> checks;
  for (unsigned bit = 0; bit < kFeatures.size(); ++bit) {
    const KnownFeature& feature = kFeatures.at(bit);
    checks.push_back({.name = feature.name, .bit = bit, .yes = (offered >> bit & 1U) != 0, .since = feature.since});
  }
  return checks;
}

std::vector<HugepagePool> probe_hugepages() {
  const std::uint64_t default_size = meminfo("Hugepagesize");
  std::vector<HugepagePool> pools;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/sys/kernel/mm/hugepages", error)) {
    const std::string name = entry.path().filename();  // hugepages-2048kB
    std::uint64_t kib = 0;
    const std::size_t digits = name.find_first_of("0123456789");
    if (digits == std::string::npos) continue;
    std::from_chars(name.data() + digits, name.data() + name.size(), kib);
    pools.push_back(
        {.page_size = {kib * 1024},
         .total = number_in(entry.path() / "nr_hugepages"),
         .free = number_in(entry.path() / "free_hugepages"),
         .reserved = number_in(entry.path() / "resv_hugepages"),
         .setting = kib * 1024 == default_size ? "/proc/sys/vm/nr_hugepages" : entry.path() / "nr_hugepages"});
  }
  std::ranges::sort(pools, {}, &HugepagePool::page_size);
  return pools;
}

Probe probe() {
  Probe probe;
  const std::uint64_t offered = offered_features();
  probe.machine = probe_machine();
  probe.creation = probe_creation();
  probe.features = probe_features(offered);
  probe.unknown_features = offered >> kFeatures.size() << kFeatures.size();
  probe.memory = probe_memory();
  probe.privileges = probe_privileges();
  probe.hugepages = probe_hugepages();
  probe.summary = summarise(probe);
  return probe;
}

}  // namespace uffda::os
