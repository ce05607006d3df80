// Which memory can be registered with userfaultfd: a mapping of each kind, and UFFDIO_REGISTER on it in every mode.
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <sys/statfs.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "os/kernel_abi.h"
#include "os/memory.h"
#include "os/probe.h"
#include "os/probe_internal.h"

#ifndef XFS_SUPER_MAGIC
#define XFS_SUPER_MAGIC 0x58465342
#endif

namespace uffda::os {
namespace {

using probing::errno_text;

constexpr const char* kOlder = "this kernel is older than the mode: the features say which version brought it";

/// What a kind of memory needs to be mapped: its descriptor (-1: none), or why there is none.
struct Candidate {
  std::string name;
  UniqueFd fd;
  int flags = MAP_PRIVATE;
  int protection = PROT_READ | PROT_WRITE;
  ByteCount length = kPageSize;
  std::string found;
  std::string remedy;        ///< not empty: it could not be made
  const char* instead = "";  ///< what to do about the modes that userfaultfd refuses for it
};

struct Mode {
  const char* name;
  UffdMode mode;
  bool async;
};
constexpr std::array<Mode, 4> kModes{{{"missing", UffdMode::missing, false},
                                      {"minor", UffdMode::minor, false},
                                      {"wp", UffdMode::wp, false},
                                      {"wp-async", UffdMode::wp, true}}};
constexpr std::uint64_t kKnownIoctls =
    Flags<UffdIoctl>{UffdIoctl::copy,         UffdIoctl::zeropage,  UffdIoctl::move,
                     UffdIoctl::writeprotect, UffdIoctl::continue_, UffdIoctl::poison}
        .bits();

ModeCheck try_mode(const Mode& mode, const MappedMemory& memory) {
  ModeCheck check{.mode = mode.name, .yes = false, .ioctls = {}, .error = 0};
  const probing::Opened opened = probing::any_userfaultfd();
  check.error = opened.error;
  if (opened.fd) check.error = probing::handshake(opened.fd.get(), mode.async ? UFFD_FEATURE_WP_ASYNC : 0);
  if (check.error != 0) return check;
  uffdio_register request{};
  request.range = {.start = memory.address().value, .len = memory.bytes().size()};
  request.mode = static_cast<std::uint64_t>(mode.mode);
  if (::ioctl(opened.fd.get(), UFFDIO_REGISTER, &request) != 0) {
    check.error = errno;
    return check;
  }
  check.yes = true;
  check.ioctls = UffdIoctls::from_bits(request.ioctls & kKnownIoctls);
  return check;  // closing the userfaultfd unregisters
}

MemoryCheck try_memory(const Candidate& candidate) {
  MemoryCheck check{
      .name = candidate.name, .mapped = false, .found = candidate.found, .remedy = candidate.remedy, .modes = {}};
  if (!candidate.remedy.empty()) return check;
  auto memory = map_memory(candidate.length, candidate.protection, candidate.flags, candidate.fd.get());
  if (!memory) {
    check.found = errno_text(memory.error().sys_errno());
    check.remedy = "this kernel maps no such memory for this process";
    return check;
  }
  check.mapped = true;
  for (const Mode& mode : kModes) {
    check.modes.push_back(try_mode(mode, *memory));
    if (check.modes.back().yes) continue;
    check.remedy = check.modes.back().error == EINVAL ? candidate.instead : "no userfaultfd: see its rows";
  }
  return check;
}

Candidate anonymous() {
  return {.name = std::string(kAnonymousRow),
          .fd = {},
          .flags = MAP_PRIVATE | MAP_ANONYMOUS,
          .found = {},
          .remedy = {},
          .instead = "minor needs a page cache: use shmem"};
}

Candidate shmem(std::string name, int flags) {
  Candidate candidate{
      .name = std::move(name), .fd = {}, .flags = flags, .found = "memfd", .remedy = {}, .instead = kOlder};
  candidate.fd.reset(::memfd_create("uffda-probe", MFD_CLOEXEC));
  if (!candidate.fd || ::ftruncate(candidate.fd.get(), static_cast<off_t>(kPageSize.value)) != 0) {
    candidate.found = errno_text(errno);
    candidate.remedy = "boot a kernel with CONFIG_SHMEM=y";
  }
  return candidate;
}

/// The mapping reserves no pages, so that it can be tried on a machine with an empty pool.
Candidate hugetlb(std::string name, unsigned size_flag, ByteCount page, int flags) {
  Candidate candidate{.name = std::move(name),
                      .fd = {},
                      .flags = flags | MAP_NORESERVE,
                      .length = page,
                      .found = "memfd",
                      .remedy = {},
                      .instead = kOlder};
  candidate.fd.reset(::memfd_create("uffda-probe", MFD_CLOEXEC | MFD_HUGETLB | size_flag));
  if (!candidate.fd || ::ftruncate(candidate.fd.get(), static_cast<off_t>(page.value)) != 0) {
    candidate.found = errno_text(errno);
    candidate.remedy = "this machine has no pages of this size: it needs CONFIG_HUGETLBFS=y and a CPU that has them";
  }
  return candidate;
}

std::string filesystem_name(int fd) {
  struct statfs status{};
  if (::fstatfs(fd, &status) != 0) return "unknown file system";
  switch (static_cast<unsigned long>(status.f_type)) {
    case EXT4_SUPER_MAGIC:
      return "ext4";
    case XFS_SUPER_MAGIC:
      return "xfs";
    case BTRFS_SUPER_MAGIC:
      return "btrfs";
    case OVERLAYFS_SUPER_MAGIC:
      return "overlayfs";
    case TMPFS_MAGIC:
      return "tmpfs";
    default:
      return fmt::format("file system 0x{:x}", static_cast<unsigned long>(status.f_type));
  }
}

/// A file of a disk: this program's own, because it is there and readable.
Candidate disk_file() {
  Candidate candidate{.name = "file",
                      .fd = {},
                      .protection = PROT_READ,
                      .found = {},
                      .remedy = {},
                      .instead = "uffda shows a file as shmem: file:PATH"};
  candidate.fd.reset(::open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
  if (candidate.fd) {
    candidate.found = filesystem_name(candidate.fd.get());
  } else {
    candidate.found = errno_text(errno);
    candidate.remedy = "mount /proc";
  }
  return candidate;
}

Candidate guest_memfd() {
  Candidate candidate{.name = "guest_memfd",
                      .fd = {},
                      .flags = MAP_SHARED,
                      .found = "/dev/kvm",
                      .remedy = {},
                      .instead = "populate it before the guest runs"};
  const UniqueFd kvm(::open("/dev/kvm", O_RDWR | O_CLOEXEC));
  if (!kvm) {
    candidate.found = "/dev/kvm: " + errno_text(errno);
    candidate.remedy =
        errno == EACCES ? "add this user to group kvm" : "needs a CPU with virtualisation, and the kvm module";
    return candidate;
  }
  const UniqueFd machine(::ioctl(kvm.get(), KVM_CREATE_VM, 0));
  kvm_create_guest_memfd request{};
  request.size = kPageSize.value;
  request.flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED;
  if (machine) candidate.fd.reset(::ioctl(machine.get(), KVM_CREATE_GUEST_MEMFD, &request));
  if (!candidate.fd) {
    candidate.found = errno_text(errno);
    candidate.remedy = "a guest_memfd that can be mapped needs Linux 6.18 with CONFIG_KVM_GUEST_MEMFD=y";
  }
  return candidate;
}

Candidate secret_memory() {
  Candidate candidate{.name = "memfd_secret",
                      .fd = {},
                      .flags = MAP_SHARED,
                      .found = {},
                      .remedy = {},
                      .instead = "populate it before use"};
  candidate.fd.reset(static_cast<int>(::syscall(SYS_memfd_secret, O_CLOEXEC)));
  if (!candidate.fd || ::ftruncate(candidate.fd.get(), static_cast<off_t>(kPageSize.value)) != 0) {
    candidate.found = errno_text(errno);
    candidate.remedy = "boot with secretmem.enable=1 on a kernel with CONFIG_SECRETMEM=y";
  }
  return candidate;
}

}  // namespace

std::vector<MemoryCheck> probe_memory() {
  return {try_memory(anonymous()),
          try_memory(shmem(std::string(kShmemRow), MAP_SHARED)),
          try_memory(shmem("shmem, private", MAP_PRIVATE)),
          try_memory(hugetlb("hugetlb 2 MiB", MFD_HUGE_2MB, 2_MiB, MAP_SHARED)),
          try_memory(hugetlb("hugetlb 2 MiB, private", MFD_HUGE_2MB, 2_MiB, MAP_PRIVATE)),
          try_memory(hugetlb("hugetlb 1 GiB", MFD_HUGE_1GB, 1_GiB, MAP_SHARED)),
          try_memory(hugetlb("hugetlb 1 GiB, private", MFD_HUGE_1GB, 1_GiB, MAP_PRIVATE)),
          try_memory(disk_file()),
          try_memory(guest_memfd()),
          try_memory(secret_memory())};
}

}  // namespace uffda::os
