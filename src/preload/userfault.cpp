#include "preload/userfault.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "preload/config.h"
#include "preload/kernel.h"
#include "preload/mappings.h"
#include "preload/memory_mark.h"

namespace uffda::shim {
namespace {

constexpr int kFlags = O_CLOEXEC | O_NONBLOCK;  // never user-mode-only: write(2) from an absent page must work
constexpr uint64_t kPoisonFeature = 1u << 14;   // UFFD_FEATURE_POISON, Linux 6.6
constexpr uint64_t kNeeded = UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_MISSING_SHMEM |
                             UFFD_FEATURE_MINOR_SHMEM |
                             UFFD_FEATURE_THREAD_ID;  // the server serves a thread from the CPU where it runs
constexpr uint64_t kWriteFeatures = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM;
constexpr int kPreferredNumber = 900;  // above what programs count on, below the usual limit of 1,024

constinit Space g_spaces[kMaxSpaces]{};
constinit int g_count = 0;
constinit bool g_not_permitted = false;  // asked once; the supervisor has said what to do about it

long from_device(int device) { return kernel(SYS_ioctl, device, USERFAULTFD_IOC_NEW, kFlags); }

long make_userfaultfd(Connection& connection) {
  const long direct = kernel(SYS_userfaultfd, kFlags);
  if (!failed(direct)) return direct;
  Descriptor device(kernel(SYS_openat, AT_FDCWD, "/dev/userfaultfd", O_RDWR | O_CLOEXEC));
  if (!device.valid()) {
    const Outcome outcome = connection.device(device);
    if (outcome == Outcome::kRefused) g_not_permitted = true;
    if (outcome != Outcome::kOk) return -EPERM;
  }
  return from_device(device.get());
}

bool negotiate(int fd, uint64_t features) {
  uffdio_api api{.api = UFFD_API, .features = features, .ioctls = 0};
  return kernel(SYS_ioctl, fd, UFFDIO_API, &api) == 0;
}

bool any_writable() {
  for (int i = 0; i < config().map_count; ++i) {
    if (config().maps[i].mode == Mode::kWritable) return true;
  }
  return false;
}

// A userfaultfd takes UFFDIO_API once: a kernel without POISON refuses the first, and the next is asked without.
uint64_t make_negotiated(Connection& connection, Descriptor& userfaultfd) {
  const uint64_t needed = kNeeded | (any_writable() ? kWriteFeatures : 0);
  for (const uint64_t features : {needed | kPoisonFeature, needed}) {
    userfaultfd.reset((int)make_userfaultfd(connection));
    if (!userfaultfd.valid()) return 0;
    if (negotiate(userfaultfd.get(), features)) return features;
  }
  userfaultfd.reset();
  return 0;
}

// Out of the way of programs that count on low numbers: a program that closes 3 to 20 should not close ours.
void move_up(Descriptor& fd) {
  rlimit limit{};
  if (kernel(SYS_prlimit64, 0, RLIMIT_NOFILE, nullptr, &limit) != 0) return;
  const rlim_t lowest = limit.rlim_cur >= 1024 ? kPreferredNumber : limit.rlim_cur / 8 * 7;
  const long moved = kernel(SYS_fcntl, fd.get(), F_DUPFD_CLOEXEC, lowest);
  if (!failed(moved)) fd.reset((int)moved);
}

bool identify(int fd, Space& space) {
  struct stat status;
  const int saved = errno;
  const int answer = fstat(fd, &status);
  errno = saved;
  if (answer != 0) return false;
  space.fd = fd;
  space.device = status.st_dev;
  space.inode = status.st_ino;
  return true;
}

bool intact(const Space& space) {
  Space now{};
  return identify(space.fd, now) && now.device == space.device && now.inode == space.inode;
}

}  // namespace

const Space& space_at(int index) { return g_spaces[index]; }

int current_space(Connection& connection) {
  if (was_copied(Owned::kSpaces)) {
    drop_spaces();
    forget_ranges(0, UINTPTR_MAX);  // no child of such a fork inherits any
  }
  if (g_count > 0 && intact(g_spaces[g_count - 1])) return g_count - 1;
  if (g_not_permitted || g_count == kMaxSpaces || !mark_memory()) return -1;
  Descriptor userfaultfd;
  const uint64_t features = make_negotiated(connection, userfaultfd);
  if (features == 0) return -1;
  move_up(userfaultfd);
  Space& space = g_spaces[g_count];
  if (!identify(userfaultfd.get(), space)) return -1;
  if (connection.attach(space.fd, features, space.token) != Outcome::kOk) return -1;
  (void)userfaultfd.release();
  return g_count++;
}

bool register_range(const Range& range) {
  uint64_t modes = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR;
  if (range.tracked) modes |= UFFDIO_REGISTER_MODE_WP;
  uffdio_register request{.range = {.start = range.start, .len = range.bytes()}, .mode = modes, .ioctls = 0};
  return kernel(SYS_ioctl, g_spaces[range.space].fd, UFFDIO_REGISTER, &request) == 0;
}

void unregister_range(int space, uintptr_t start, uintptr_t length) {
  uffdio_range range{.start = start, .len = length};
  (void)kernel(SYS_ioctl, g_spaces[space].fd, UFFDIO_UNREGISTER, &range);
}

void drop_spaces() {
  for (int i = 0; i < g_count; ++i) {
    if (intact(g_spaces[i])) (void)kernel(SYS_close, g_spaces[i].fd);
  }
  g_count = 0;
}

}  // namespace uffda::shim
