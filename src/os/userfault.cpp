#include "os/userfault.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <cstring>
#include <string>
#include <string_view>

namespace uffda::os {
namespace {

constexpr Address kLowestMapping{64 * 1024};  // vm.mmap_min_addr: below it every range is EINVAL
constexpr int kThisProcess = -10001;          // PIDFD_SELF_THREAD_GROUP, since Linux 6.15
constexpr const char* kDevice = "/dev/userfaultfd";

uffdio_range range_of(Address start, ByteCount length) { return {.start = start.value, .len = length.value}; }

/// The kernel's answer of an ioctl with a result field: bytes done, or the negative errno in the field, or neither
/// touched.
Progress progress_of(int status, int error, std::int64_t field) {
  if (status == 0) return {.done = {static_cast<std::uint64_t>(field)}, .error = 0};
  const std::uint64_t done = field > 0 ? static_cast<std::uint64_t>(field) : 0;
  return {.done = {done}, .error = error};
}

/// Whose memory a userfaultfd traps.
enum class Owner : std::uint8_t { us, others };

class LinuxUserfault final : public Userfault {
 public:
  LinuxUserfault(UniqueFd fd, std::uint64_t features, Owner owner)
      : fd_(std::move(fd)), features_(features), owner_(owner) {}

  [[nodiscard]] int fd() const override { return fd_.get(); }
  [[nodiscard]] std::uint64_t features() const override { return features_; }

  Result<std::size_t> read(std::span<uffd_msg> messages, Wait wait) override {
    iovec buffer{.iov_base = messages.data(), .iov_len = messages.size_bytes()};
    // RWF_NOWAIT, because whoever shares the description can clear O_NONBLOCK.
    ssize_t size = wait == Wait::yes ? ::read(fd_.get(), buffer.iov_base, buffer.iov_len)
                                     : ::preadv2(fd_.get(), &buffer, 1, -1, RWF_NOWAIT);
    // The kernel refuses that for a descriptor that came with a FORK event. Nobody shares it, and adopting it set
    // O_NONBLOCK.
    if (size < 0 && errno == EOPNOTSUPP) size = ::read(fd_.get(), buffer.iov_base, buffer.iov_len);
    if (size >= 0) return static_cast<std::size_t>(size) / sizeof(uffd_msg);
    if (errno == EAGAIN) return 0U;
    if (errno == EINTR) return uffda::fail(Errc::again);
    if (errno == EMFILE || errno == ENFILE)
      return uffda::fail(Errc::no_memory, "no descriptor left to read a fork event", errno);
    return fail_errno(errno, "reading userfaultfd");
  }

  Progress copy(Address to, std::span<const std::byte> from, Wake wake, Protect protect) override {
    uffdio_copy request{};
    request.dst = to.value;
    request.src = reinterpret_cast<std::uintptr_t>(from.data());
    request.len = from.size();
    request.mode = wake == Wake::yes ? 0 : UFFDIO_COPY_MODE_DONTWAKE;
    if (protect == Protect::yes) request.mode |= UFFDIO_COPY_MODE_WP;
    const int status = ::ioctl(fd_.get(), UFFDIO_COPY, &request);
    return progress_of(status, errno, request.copy);
  }

  Progress zeropage(Address start, ByteCount length, Wake wake) override {
    uffdio_zeropage request{};
    request.range = range_of(start, length);
    request.mode = wake == Wake::yes ? 0 : UFFDIO_ZEROPAGE_MODE_DONTWAKE;
    const int status = ::ioctl(fd_.get(), UFFDIO_ZEROPAGE, &request);
    return progress_of(status, errno, request.zeropage);
  }

  Progress continue_run(Address start, ByteCount length, Wake wake, Protect protect) override {
    uffdio_continue request{};
    request.range = range_of(start, length);
    request.mode = wake == Wake::yes ? 0 : UFFDIO_CONTINUE_MODE_DONTWAKE;
    if (protect == Protect::yes) request.mode |= UFFDIO_CONTINUE_MODE_WP;
    const int status = ::ioctl(fd_.get(), UFFDIO_CONTINUE, &request);
    return progress_of(status, errno, request.mapped);
  }

  Progress poison(Address start, ByteCount length, Wake wake) override {
    uffdio_poison request{};
    request.range = range_of(start, length);
    request.mode = wake == Wake::yes ? 0 : UFFDIO_POISON_MODE_DONTWAKE;
    const int status = ::ioctl(fd_.get(), UFFDIO_POISON, &request);
    return progress_of(status, errno, request.updated);
  }

  Progress move(Address to, Address from, ByteCount length, Wake wake, SourceHoles holes) override {
    uffdio_move request{};
    request.dst = to.value;
    request.src = from.value;
    request.len = length.value;
    request.mode = wake == Wake::yes ? 0 : UFFDIO_MOVE_MODE_DONTWAKE;
    if (holes == SourceHoles::allow) request.mode |= UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES;
    const int status = ::ioctl(fd_.get(), UFFDIO_MOVE, &request);
    return progress_of(status, errno, request.move);
  }

  int writeprotect(Address start, ByteCount length, Protect protect, Wake wake) override {
    uffdio_writeprotect request{};
    request.range = range_of(start, length);
    request.mode = protect == Protect::yes ? UFFDIO_WRITEPROTECT_MODE_WP : 0;
    if (protect == Protect::no && wake == Wake::no) request.mode |= UFFDIO_WRITEPROTECT_MODE_DONTWAKE;
    return ::ioctl(fd_.get(), UFFDIO_WRITEPROTECT, &request) == 0 ? 0 : errno;
  }

  int wake(Address start, ByteCount length) override {
    uffdio_range request = range_of(start, length);
    return ::ioctl(fd_.get(), UFFDIO_WAKE, &request) == 0 ? 0 : errno;
  }

  [[nodiscard]] bool can_unmap() const override {
    // Whoever reads the event would have to be waited for.
    return owner_ == Owner::us && (features_ & UFFD_FEATURE_EVENT_REMOVE) == 0;
  }

  bool unmap(std::span<const iovec> ranges) override {
    if (!can_unmap()) return false;
    std::size_t length = 0;
    for (const iovec& range : ranges) length += range.iov_len;
    // All with one flush of the TLBs, since Linux 6.16; before 6.13 it was refused.
    const long done = ::syscall(SYS_process_madvise, kThisProcess, ranges.data(), ranges.size(), MADV_DONTNEED, 0U);
    if (done == static_cast<long>(length)) return true;
    bool all = true;
    for (const iovec& range : ranges) all = ::madvise(range.iov_base, range.iov_len, MADV_DONTNEED) == 0 && all;
    return all;
  }

  Result<UffdIoctls> register_range(Address start, ByteCount length, UffdModes modes) override {
    uffdio_register request{};
    request.range = range_of(start, length);
    request.mode = modes.bits();
    if (::ioctl(fd_.get(), UFFDIO_REGISTER, &request) != 0) return fail_errno(errno, "UFFDIO_REGISTER");
    return UffdIoctls::from_bits(request.ioctls);
  }

  Result<void> unregister_range(Address start, ByteCount length) override {
    uffdio_range request = range_of(start, length);
    if (::ioctl(fd_.get(), UFFDIO_UNREGISTER, &request) != 0) return fail_errno(errno, "UFFDIO_UNREGISTER");
    return {};
  }

  bool alive() override {
    // ENOENT (nothing registered there) as long as there is an address space to look in, ESRCH after it has exited.
    return continue_run(kLowestMapping, kPageSize, Wake::no, Protect::no).error != ESRCH;
  }

 private:
  UniqueFd fd_;
  std::uint64_t features_;
  Owner owner_;
};

struct Opened {
  UniqueFd fd;
  int error = 0;
};

Opened open_by_syscall(int flags) {
  const auto fd = static_cast<int>(::syscall(SYS_userfaultfd, flags));
  return {.fd = UniqueFd(fd), .error = fd < 0 ? errno : 0};
}

Opened open_by_device(int flags) {
  const UniqueFd device(::open(kDevice, O_RDWR | O_CLOEXEC));
  if (!device) return {.fd = {}, .error = errno};
  const int fd = ::ioctl(device.get(), USERFAULTFD_IOC_NEW, flags);
  return {.fd = UniqueFd(fd), .error = fd < 0 ? errno : 0};
}

Result<UniqueFd> open_descriptor(const UserfaultOptions& options) {
  const int flags = O_CLOEXEC | (options.blocking ? 0 : O_NONBLOCK);
  Opened opened = open_by_syscall(flags);
  if (opened.error == EPERM) opened = open_by_device(flags);
  if (!opened.fd && options.user_mode_fallback) opened = open_by_syscall(flags | UFFD_USER_MODE_ONLY);
  if (opened.fd) return std::move(opened.fd);
  if (opened.error == ENOSYS)
    return uffda::fail(Errc::unsupported, "this kernel has no userfaultfd: it needs CONFIG_USERFAULTFD", ENOSYS);
  if (opened.error == EPERM || opened.error == EACCES || opened.error == ENOENT) {
    return uffda::fail(Errc::permission_denied,
                       fmt::format("userfaultfd is not permitted: it needs CAP_SYS_PTRACE, or access to {}, or sysctl "
                                   "vm.unprivileged_userfaultfd=1",
                                   kDevice),
                       opened.error);
  }
  return fail_errno(opened.error, "userfaultfd");
}

constexpr std::array<const char*, 17> kFeatureNames{"PAGEFAULT_FLAG_WP",
                                                    "EVENT_FORK",
                                                    "EVENT_REMAP",
                                                    "EVENT_REMOVE",
                                                    "MISSING_HUGETLBFS",
                                                    "MISSING_SHMEM",
                                                    "EVENT_UNMAP",
                                                    "SIGBUS",
                                                    "THREAD_ID",
                                                    "MINOR_HUGETLBFS",
                                                    "MINOR_SHMEM",
                                                    "EXACT_ADDRESS",
                                                    "WP_HUGETLBFS_SHMEM",
                                                    "WP_UNPOPULATED",
                                                    "POISON",
                                                    "WP_ASYNC",
                                                    "MOVE"};

std::string names_of(std::uint64_t features) {
  std::string names;
  for (std::size_t bit = 0; bit < kFeatureNames.size(); ++bit) {
    if ((features >> bit & 1U) == 0) continue;
    if (!names.empty()) names += ", ";
    names += kFeatureNames.at(bit);
  }
  return names;
}

Result<std::uint64_t> handshake(int fd, std::uint64_t features) {
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = features;
  if (::ioctl(fd, UFFDIO_API, &api) != 0) return fail_errno(errno, "UFFDIO_API");
  return api.features;
}

}  // namespace

Result<std::uint64_t> kernel_userfault_features() {
  // The handshake can be done once per descriptor, so asking takes one to throw away.
  const UniqueFd fd = UFFDA_TRY(open_descriptor({.user_mode_fallback = true}));
  return handshake(fd.get(), 0);
}

Result<std::unique_ptr<Userfault>> open_userfault(const UserfaultOptions& options) {
  UniqueFd fd = UFFDA_TRY(open_descriptor(options));
  auto granted = handshake(fd.get(), options.features);
  if (!granted) {
    const std::uint64_t lacking = options.features & ~UFFDA_TRY(kernel_userfault_features());
    if (lacking != 0) {
      return uffda::fail(Errc::unsupported, fmt::format("this kernel's userfaultfd lacks {}", names_of(lacking)),
                         granted.error().sys_errno());
    }
    if (granted.error().sys_errno() == EPERM) {
      return uffda::fail(Errc::permission_denied, "userfaultfd EVENT_FORK needs CAP_SYS_PTRACE", EPERM);
    }
    return std::unexpected(granted.error());
  }
  return std::make_unique<LinuxUserfault>(std::move(fd), options.features, Owner::us);
}

bool reads_never_wait(int fd) {
  std::byte too_small{};  // so that nothing is read: EINVAL
  iovec buffer{.iov_base = &too_small, .iov_len = sizeof too_small};
  return ::preadv2(fd, &buffer, 1, -1, RWF_NOWAIT) >= 0 || errno != EOPNOTSUPP;
}

Result<std::unique_ptr<Userfault>> adopt_userfault(UniqueFd fd, std::uint64_t features) {
  const std::string link = fmt::format("/proc/self/fd/{}", fd.get());
  std::array<char, 64> target{};
  const ssize_t size = ::readlink(link.c_str(), target.data(), target.size());
  constexpr std::string_view kKind = "anon_inode:[userfaultfd]";
  if (size < 0) return fail_errno(errno, "telling whether a descriptor is a userfaultfd needs /proc, and it");
  if (std::string_view(target.data(), static_cast<std::size_t>(size)) != kKind) {
    return uffda::fail(Errc::invalid_argument, "the descriptor is not a userfaultfd");
  }
  if (::fcntl(fd.get(), F_SETFL, O_NONBLOCK) != 0) return fail_errno(errno, "making the userfaultfd non-blocking");
  return std::make_unique<LinuxUserfault>(std::move(fd), features, Owner::others);
}

void wake_everything(Userfault& userfault) {
  constexpr Address kLowest{64 * 1024};
  for (unsigned bits = 56; bits >= 46; --bits) {  // the largest user address space that this kernel takes
    const Address end{(std::uint64_t{1} << bits) - kPageSize.value};
    if (userfault.wake(kLowest, end - kLowest) != EINVAL) return;
  }
}

}  // namespace uffda::os
