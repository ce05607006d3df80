#include "server/lazy_pages_socket.h"

#include <sys/socket.h>

#include <cerrno>
#include <cstring>

#include "os/socket.h"

namespace uffda {
namespace {

constexpr std::int32_t kFinished = 0x52535446;  // RSTF
constexpr std::size_t kPidAt = 0;
constexpr std::size_t kByteAt = 8;

}  // namespace

LazyPagesSocket::LazyPagesSocket(Listener listener, KeptHandshake& handshake)
    : listener_(std::move(listener)), handshake_(handshake) {
  listener_.own_path();
  for (const int fd : os::accepted_at(listener_.fd())) connection_.reset(fd);  // by the server before
  if (finished()) connection_.reset();
  std::int32_t pid = 0;
  std::memcpy(&pid, handshake_.bytes.data() + kPidAt, sizeof pid);
  if (pid == 0) handshake_.clear();  // the server before was about to
}

int LazyPagesSocket::fd() const {
  if (finished()) return -1;
  return connection_ ? connection_.get() : listener_.fd();
}

void LazyPagesSocket::finish(std::uint32_t how) {
  handshake_.finished.store(how);
  connection_.reset();
}

std::optional<std::int32_t> LazyPagesSocket::receive_pid() {
  std::int32_t pid = 0;
  std::byte* const at = handshake_.bytes.data() + kPidAt;
  std::memcpy(&pid, at, sizeof pid);
  if (pid != 0) return pid;
  const ssize_t size = ::recv(connection_.get(), at, sizeof pid, MSG_DONTWAIT);
  if (size < 0 && (errno == EAGAIN || errno == EINTR)) return std::nullopt;
  std::memcpy(&pid, at, sizeof pid);
  if (size == sizeof pid && pid != 0) return pid;
  finish(kCutShort);
  return std::nullopt;
}

Result<bool> LazyPagesSocket::receive_userfault() {
  if (handshake_.descriptor() >= 0) return true;
  iovec byte{.iov_base = handshake_.bytes.data() + kByteAt, .iov_len = 1};
  msghdr message{};
  message.msg_iov = &byte;
  message.msg_iovlen = 1;
  message.msg_control = handshake_.control.data();
  message.msg_controllen = CMSG_SPACE(sizeof(int));
  const ssize_t size = ::recvmsg(connection_.get(), &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (size < 0 && (errno == EAGAIN || errno == EINTR)) return false;
  if (size == 1 && handshake_.descriptor() >= 0) return true;
  const bool no_room = size == 1 && (message.msg_flags & MSG_CTRUNC) != 0;
  finish(kCutShort);
  handshake_.clear();
  if (no_room) return fail(Errc::no_memory, "no descriptor left for a task's userfaultfd (ulimit -n)");
  return false;
}

Result<std::optional<LazyTask>> LazyPagesSocket::next() {
  if (finished()) return std::nullopt;
  if (!connection_) connection_.reset(::accept4(listener_.fd(), nullptr, nullptr, SOCK_CLOEXEC));
  while (!finished() && connection_) {
    const std::optional<std::int32_t> pid = receive_pid();
    if (!pid) return std::nullopt;
    if (*pid == kFinished) {
      finish(kComplete);
    } else if (*pid < 0) {
      handshake_.clear();  // a zombie has no memory
    } else if (UFFDA_TRY(receive_userfault())) {
      return LazyTask{.pid = *pid, .userfault = handshake_.descriptor()};
    } else {
      return std::nullopt;
    }
  }
  return std::nullopt;
}

void LazyPagesSocket::taken() { handshake_.clear(); }

}  // namespace uffda
