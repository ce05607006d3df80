#include "os/ring.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <string>

#include "base/log.h"

namespace uffda::os {

namespace {

Error refusal(int sys_errno) {
  Error error = Error::from_errno(sys_errno, "io_uring_setup");
  if (sys_errno == ENOMEM) {
    return Error(Errc::no_memory, error.context() + " (a larger RLIMIT_MEMLOCK helps)", sys_errno);
  }
  if (sys_errno == ENOSYS || sys_errno == EPERM || sys_errno == EACCES) {
    error = Error(
        sys_errno == ENOSYS ? Errc::unsupported : Errc::permission_denied,
        error.context() + " (io_uring is off: look at /proc/sys/kernel/io_uring_disabled and the seccomp profile)",
        sys_errno);
  }
  return error;
}

/// Errors of io_uring_enter that say "again"; anything else means that the ring was used wrongly.
bool is_transient(int negative_errno) {
  return negative_errno == -EINTR || negative_errno == -EAGAIN || negative_errno == -EBUSY || negative_errno == -ETIME;
}

}  // namespace

Result<std::unique_ptr<Ring>> Ring::create(unsigned entries) {
  std::unique_ptr<Ring> ring(new Ring);
  // From the best to what every kernel with io_uring takes: completions that wait until the owner looks for them
  // interrupt nobody.
  constexpr unsigned kFlags[] = {
      IORING_SETUP_R_DISABLED | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,
      IORING_SETUP_R_DISABLED | IORING_SETUP_COOP_TASKRUN,
      IORING_SETUP_R_DISABLED,
  };
  int status = 0;
  for (const unsigned flags : kFlags) {
    status = io_uring_queue_init(entries, &ring->ring_, flags);
    if (status == 0) {
      // A child of fork must not write into a ring that it shares with its parent.
      if (const int kept = io_uring_ring_dontfork(&ring->ring_); kept != 0) {
        log(LogLevel::debug, "io_uring: the ring is visible to forked children (errno {})", -kept);
      }
      return ring;
    }
    if (status != -EINVAL) break;
  }
  ring->ring_.ring_fd = -1;
  return std::unexpected(refusal(-status));
}

Ring::~Ring() {
  if (ring_.ring_fd >= 0) io_uring_queue_exit(&ring_);
}

Result<void> Ring::enable() const {
  // liburing 2.3 declares io_uring_enable_rings but does not export it.
  if (::syscall(SYS_io_uring_register, ring_.ring_fd, IORING_REGISTER_ENABLE_RINGS, nullptr, 0) < 0) {
    return fail_errno(errno, "enabling an io_uring");
  }
  return {};
}

Result<void> Ring::register_files(std::span<const int> fds) {
  const int status = io_uring_register_files(&ring_, fds.data(), static_cast<unsigned>(fds.size()));
  if (status < 0) return fail_errno(-status, "io_uring_register_files");
  files_registered_ = true;
  return {};
}

Result<void> Ring::register_buffers(std::span<const iovec> buffers) {
  const int status = io_uring_register_buffers(&ring_, buffers.data(), static_cast<unsigned>(buffers.size()));
  if (status < 0) return fail_errno(-status, "io_uring_register_buffers");
  return {};
}

bool Ring::prepare_read(int file, std::span<std::byte> buffer, std::uint64_t offset, int fixed_buffer,
                        std::uint64_t tag) {
  io_uring_sqe* const entry = io_uring_get_sqe(&ring_);
  if (entry == nullptr) return false;
  const auto length = static_cast<unsigned>(buffer.size());
  if (fixed_buffer == kNotFixed) {
    io_uring_prep_read(entry, file, buffer.data(), length, offset);
  } else {
    io_uring_prep_read_fixed(entry, file, buffer.data(), length, offset, fixed_buffer);
  }
  if (files_registered_) io_uring_sqe_set_flags(entry, IOSQE_FIXED_FILE);
  io_uring_sqe_set_data64(entry, tag);
  return true;
}

bool Ring::prepare_write(int file, std::span<const std::byte> bytes, std::uint64_t offset, int fixed_buffer,
                         std::uint64_t tag) {
  io_uring_sqe* const entry = io_uring_get_sqe(&ring_);
  if (entry == nullptr) return false;
  const auto length = static_cast<unsigned>(bytes.size());
  if (fixed_buffer == kNotFixed) {
    io_uring_prep_write(entry, file, bytes.data(), length, offset);
  } else {
    io_uring_prep_write_fixed(entry, file, bytes.data(), length, offset, fixed_buffer);
  }
  if (files_registered_) io_uring_sqe_set_flags(entry, IOSQE_FIXED_FILE);
  io_uring_sqe_set_data64(entry, tag);
  return true;
}

bool Ring::prepare_stream_read(int fd, std::span<std::byte> buffer, std::uint64_t tag) {
  io_uring_sqe* const entry = io_uring_get_sqe(&ring_);
  if (entry == nullptr) return false;
  io_uring_prep_read(entry, fd, buffer.data(), static_cast<unsigned>(buffer.size()), static_cast<__u64>(-1));
  io_uring_sqe_set_data64(entry, tag);
  return true;
}

void Ring::submit() {
  const int status = io_uring_submit(&ring_);
  UFFDA_ASSERT(status >= 0 || is_transient(status));
}

void Ring::submit_and_wait() {
  const int status = io_uring_submit_and_wait(&ring_, 1);
  UFFDA_ASSERT(status >= 0 || is_transient(status));
}

}  // namespace uffda::os
