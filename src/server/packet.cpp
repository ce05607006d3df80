#include "server/packet.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <limits>

namespace uffda::handoff {
namespace {

constexpr std::size_t kMaxDescriptors = 8;  // room to see (and close) more than the one that is allowed

/// Milliseconds for poll(), rounded up, never negative.
int poll_timeout(Deadline deadline) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline.when() - Clock::now()).count();
  return static_cast<int>(std::clamp<std::int64_t>(left, 0, std::numeric_limits<int>::max()));
}

/// Takes the descriptors out of a received message; the first is returned, the number is counted.
os::UniqueFd take_descriptors(msghdr& message, std::size_t& count) {
  os::UniqueFd first;
  count = 0;
  for (cmsghdr* control = CMSG_FIRSTHDR(&message); control != nullptr; control = CMSG_NXTHDR(&message, control)) {
    if (control->cmsg_level != SOL_SOCKET || control->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t number = (control->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < number; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(control) + i * sizeof(int), sizeof fd);
      os::UniqueFd owned(fd);
      if (count++ == 0) first = std::move(owned);
    }
  }
  return first;
}

bool means_gone(int error) { return error == EPIPE || error == ECONNRESET || error == ENOTCONN; }

}  // namespace

Header make_header(Type type, Direction direction, std::size_t size) {
  const auto kind = static_cast<unsigned>(type) | (direction == Direction::reply ? kReply : 0U);
  return {.magic = kMagic,
          .version = kVersion,
          .type = static_cast<std::uint16_t>(kind),
          .size = static_cast<std::uint32_t>(size),
          .status = 0};
}

Result<void> wait_socket(int socket, short events, Deadline deadline) {
  for (;;) {
    pollfd entry{.fd = socket, .events = events, .revents = 0};
    const int ready = ::poll(&entry, 1, poll_timeout(deadline));
    if (ready > 0) return {};
    if (ready < 0 && errno != EINTR) return fail_errno(errno, "poll");
    if (deadline.passed()) return fail(Errc::timed_out, "the peer did not answer in time");
  }
}

Result<void> send_packet(int socket, std::span<const std::byte> head, std::span<const std::byte> tail,
                         Deadline deadline, int passed) {
  if (head.size() + tail.size() > kMaxMessage)
    return fail(Errc::invalid_argument, "a packet is larger than the protocol allows");
  std::array<iovec, 2> parts{
      {{const_cast<std::byte*>(head.data()), head.size()}, {const_cast<std::byte*>(tail.data()), tail.size()}}};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  msghdr message{};
  message.msg_iov = parts.data();
  message.msg_iovlen = tail.empty() ? 1 : 2;
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
    if (::sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0) return {};
    if (errno == EINTR) continue;
    if (means_gone(errno)) return fail(Errc::gone, "the peer closed the connection", errno);
    if (errno != EAGAIN) return fail_errno(errno, "sendmsg");
    UFFDA_TRY_VOID(wait_socket(socket, POLLOUT, deadline));
  }
}

Result<Header> check_header(std::span<const std::byte> packet) {
  Header header;
  if (packet.size() < sizeof header) return fail(Errc::protocol, "a packet is shorter than its header");
  std::memcpy(&header, packet.data(), sizeof header);
  if (header.magic != kMagic) return fail(Errc::protocol, "the peer does not speak the handoff protocol (wrong magic)");
  if (header.version != kVersion) {
    return fail(Errc::protocol, "the peer speaks version " + std::to_string(header.version) +
                                    " of the handoff protocol, this is version " + std::to_string(kVersion));
  }
  if (header.size != packet.size()) return fail(Errc::protocol, "a packet's size is not what its header says");
  return header;
}

Result<Packet> receive_packet(int socket, std::span<std::byte> buffer, Deadline deadline) {
  iovec part{buffer.data(), buffer.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(kMaxDescriptors * sizeof(int))> control{};
  for (;;) {
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    const ssize_t received = ::recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (received < 0) {
      if (errno == EINTR) continue;
      if (means_gone(errno)) return fail(Errc::gone, "the peer closed the connection", errno);
      if (errno != EAGAIN) return fail_errno(errno, "recvmsg");
      UFFDA_TRY_VOID(wait_socket(socket, POLLIN, deadline));
      continue;
    }
    std::size_t descriptors = 0;
    os::UniqueFd descriptor = take_descriptors(message, descriptors);
    if (received == 0) return fail(Errc::gone, "the peer closed the connection");
    if (descriptors > 1 || (message.msg_flags & MSG_CTRUNC) != 0) {
      return fail(Errc::protocol, "a packet carries more than one descriptor (or there is no room for it)");
    }
    if ((message.msg_flags & MSG_TRUNC) != 0)
      return fail(Errc::protocol, "a packet is larger than the protocol allows");
    const auto bytes = std::span<const std::byte>(buffer).first(static_cast<std::size_t>(received));
    const Header header = UFFDA_TRY(check_header(bytes));
    return Packet{.header = header, .bytes = bytes, .descriptor = std::move(descriptor)};
  }
}

Result<void> put_name(char (&field)[kNameSize], std::string_view name) {
  if (name.empty() || name.size() >= kNameSize || name.contains('\0')) {
    return fail(Errc::invalid_argument, "an export's name has 1 to " + std::to_string(kNameSize - 1) + " bytes");
  }
  std::memset(field, 0, sizeof field);
  std::memcpy(field, name.data(), name.size());
  return {};
}

Result<std::string> get_name(const char (&field)[kNameSize]) {
  const std::size_t length = ::strnlen(field, sizeof field);
  if (length == 0 || length == sizeof field) return fail(Errc::protocol, "a name is empty or not terminated");
  return std::string(field, length);
}

void put_text(char (&field)[kTextSize], std::string_view text) {
  std::memset(field, 0, sizeof field);
  std::memcpy(field, text.data(), std::min<std::size_t>(text.size(), sizeof field - 1));
}

std::string get_text(const char (&field)[kTextSize]) { return {field, ::strnlen(field, sizeof field)}; }

ErrorReply make_error_reply(const Error& error) {
  // An Error is an answer by its type alone, without kReply.
  ErrorReply reply{.header = make_header(Type::kError, Direction::request, sizeof(ErrorReply)), .text = {}};
  reply.header.status = 1 + static_cast<std::uint32_t>(error.code());
  put_text(reply.text, error.context());
  return reply;
}

Error read_error_reply(const Packet& packet) {
  const auto reply = parse<ErrorReply>(packet);
  if (!reply) return reply.error();
  const std::uint32_t status = reply->header.status;
  if (status < 1 || status > 1 + static_cast<std::uint32_t>(Errc::protocol)) {
    return Error(Errc::protocol, "unknown status " + std::to_string(status) + ": " + get_text(reply->text));
  }
  return Error(static_cast<Errc>(status - 1), get_text(reply->text));
}

Result<os::UniqueFd> connect_socket(const std::string& path, Deadline deadline) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path) {
    return fail(Errc::invalid_argument, "socket path '" + path + "' is empty or longer than 107 bytes");
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  os::UniqueFd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!socket) return fail_errno(errno, "socket");
  // A UNIX connect waits only while the listener's queue is full; SO_SNDTIMEO bounds that wait.
  const auto left =
      std::max<std::int64_t>(1, std::chrono::ceil<std::chrono::microseconds>(deadline.when() - Clock::now()).count());
  const timeval limit{.tv_sec = left / 1'000'000, .tv_usec = left % 1'000'000};
  (void)::setsockopt(socket.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
  while (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    switch (errno) {
      case EINTR:
        continue;
      case ENOENT:
      case ECONNREFUSED:
        return fail(Errc::gone,
                    "no uffda server is listening at " + path + ": start one with `uffda serve --socket " + path + "`",
                    errno);
      case EAGAIN:
        return fail(Errc::timed_out, "the server at " + path + " does not accept connections", errno);
      case EPROTOTYPE:
        return fail(Errc::protocol, path + " is a socket of another kind, not an uffda server's", errno);
      default:
        return fail_errno(errno, "connect to " + path);
    }
  }
  return socket;
}

}  // namespace uffda::handoff
