#include "os/socket.h"

#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <string>
#include <utility>

namespace uffda::os {

namespace {

constexpr std::size_t kMaxDescriptors = 8;  // room to see (and close) more than the one that is expected

Error error_of(int error, const char* what) {
  if (error == EPIPE || error == ECONNRESET || error == ENOTCONN)
    return Error(Errc::gone, "the peer closed the connection", error);
  if (error == EAGAIN) return Error(Errc::again, what, error);
  return Error::from_errno(error, what);
}

int flags_of(Waiting waiting) { return waiting == Waiting::none ? MSG_DONTWAIT : 0; }

/// Takes the descriptors out of a received message: the first, and how many there were.
void take_descriptors(msghdr& message, ReceivedPacket& packet) {
  for (cmsghdr* control = CMSG_FIRSTHDR(&message); control != nullptr; control = CMSG_NXTHDR(&message, control)) {
    if (control->cmsg_level != SOL_SOCKET || control->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t number = (control->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < number; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(control) + i * sizeof(int), sizeof fd);
      UniqueFd owned(fd);
      if (packet.descriptors++ == 0) packet.descriptor = std::move(owned);
    }
  }
}

/// The path, or nothing if it is no UNIX socket with one.
std::string local_name(int socket) {
  sockaddr_un address{};
  socklen_t size = sizeof address;
  if (::getsockname(socket, reinterpret_cast<sockaddr*>(&address), &size) != 0 || address.sun_family != AF_UNIX ||
      size <= offsetof(sockaddr_un, sun_path))
    return {};
  return {address.sun_path, std::min<std::size_t>(size - offsetof(sockaddr_un, sun_path), sizeof address.sun_path)};
}

Result<SocketPair> make_pair_of(int type) {
  std::array<int, 2> ends{};
  if (::socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, ends.data()) != 0) return fail_errno(errno, "socketpair");
  return SocketPair{.first = UniqueFd(ends[0]), .second = UniqueFd(ends[1])};
}

struct AbstractAddress {
  explicit AbstractAddress(std::string_view name)
      : size(static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size())) {
    address.sun_family = AF_UNIX;
    name.copy(address.sun_path + 1, sizeof address.sun_path - 1);
  }
  [[nodiscard]] const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&address); }

  sockaddr_un address{};
  socklen_t size;
};

constexpr int kAbstract = SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK;

/// Sends parts as one message, with a copy of descriptor `passed` unless it is -1.
Result<std::size_t> send_parts(int socket, std::span<iovec> parts, int passed, int flags) {
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  msghdr message{};
  message.msg_iov = parts.data();
  message.msg_iovlen = parts.size();
  if (passed >= 0) {
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &passed, sizeof passed);
  }
  for (;;) {
    const ssize_t sent = ::sendmsg(socket, &message, MSG_NOSIGNAL | flags);
    if (sent >= 0) return static_cast<std::size_t>(sent);
    if (errno != EINTR) return std::unexpected(error_of(errno, "sendmsg"));
  }
}

}  // namespace

Result<SocketPair> make_socket_pair() { return make_pair_of(SOCK_SEQPACKET); }
Result<SocketPair> make_stream_pair() { return make_pair_of(SOCK_STREAM); }

Result<UniqueFd> listen_abstract(std::string_view name) {
  constexpr int kMayWait = 8;
  const AbstractAddress at(name);
  UniqueFd socket(::socket(AF_UNIX, kAbstract, 0));
  if (!socket) return fail_errno(errno, "socket");
  if (::bind(socket.get(), at.get(), at.size) != 0 || ::listen(socket.get(), kMayWait) != 0)
    return fail_errno(errno, "listening at an abstract name");
  return socket;
}

Result<UniqueFd> connect_abstract(std::string_view name) {
  const AbstractAddress at(name);
  UniqueFd socket(::socket(AF_UNIX, kAbstract, 0));
  if (!socket) return fail_errno(errno, "socket");
  while (::connect(socket.get(), at.get(), at.size) != 0) {
    if (errno != EINTR) return fail_errno(errno, "connecting to an abstract name");
  }
  return socket;
}

Result<std::size_t> send_some(int socket, std::span<const std::byte> bytes, int passed) {
  iovec part{const_cast<std::byte*>(bytes.data()), bytes.size()};
  return send_parts(socket, std::span(&part, 1), passed, MSG_DONTWAIT);
}

Result<std::span<std::byte>> receive_some(int socket, std::span<std::byte> buffer) {
  for (;;) {
    const ssize_t received = ::recv(socket, buffer.data(), buffer.size(), MSG_DONTWAIT);
    if (received > 0) return buffer.first(static_cast<std::size_t>(received));
    if (received == 0) return fail(Errc::gone, "the peer closed the connection");
    if (errno != EINTR) return std::unexpected(error_of(errno, "recv"));
  }
}

Result<void> send_packet(int socket, std::span<const std::byte> head, std::span<const std::byte> tail, int passed,
                         Waiting waiting) {
  std::array<iovec, 2> parts{
      {{const_cast<std::byte*>(head.data()), head.size()}, {const_cast<std::byte*>(tail.data()), tail.size()}}};
  UFFDA_TRY(send_parts(socket, std::span(parts).first(tail.empty() ? 1 : 2), passed, flags_of(waiting)));
  return {};
}

Result<ReceivedPacket> receive_packet(int socket, std::span<std::byte> buffer, Waiting waiting, Taking taking) {
  const int flags = MSG_CMSG_CLOEXEC | flags_of(waiting) | (taking == Taking::a_look ? MSG_PEEK : 0);
  iovec part{buffer.data(), buffer.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(kMaxDescriptors * sizeof(int))> control{};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  ssize_t received = -1;
  while ((received = ::recvmsg(socket, &message, flags)) < 0) {
    if (errno != EINTR) return std::unexpected(error_of(errno, "recvmsg"));
  }
  ReceivedPacket packet{.size = static_cast<std::size_t>(received),
                        .descriptor = {},
                        .descriptors = 0,
                        .bytes_cut = (message.msg_flags & MSG_TRUNC) != 0,
                        .descriptors_cut = (message.msg_flags & MSG_CTRUNC) != 0};
  take_descriptors(message, packet);
  if (received == 0) return fail(Errc::gone, "the peer closed the connection");
  return packet;
}

std::vector<int> accepted_at(int socket) {
  const std::string name = local_name(socket);
  std::vector<int> all;
  if (name.empty()) return all;
  for (const int fd : open_descriptors()) {
    int listens = 0;
    socklen_t size = sizeof listens;
    const bool is_socket = ::getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) == 0;
    if (is_socket && listens == 0 && local_name(fd) == name) all.push_back(fd);
  }
  return all;
}

Result<Peer> peer_of(int socket) {
  ucred credentials{};
  socklen_t size = sizeof credentials;
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &size) != 0) return fail_errno(errno, "SO_PEERCRED");
  return Peer{.pid = credentials.pid, .uid = credentials.uid};
}

}  // namespace uffda::os
