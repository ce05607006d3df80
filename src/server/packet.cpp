#include "server/packet.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <limits>

#include "os/socket.h"

namespace uffda::handoff {
namespace {

/// Milliseconds for poll(), rounded up, never negative.
int poll_timeout(Deadline deadline) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline.when() - Clock::now()).count();
  return static_cast<int>(std::clamp<std::int64_t>(left, 0, std::numeric_limits<int>::max()));
}

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
  for (;;) {
    auto sent = os::send_packet(socket, head, tail, passed, os::Waiting::none);
    if (sent || sent.error().code() != Errc::again) return sent;
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
  for (;;) {
    auto received = os::receive_packet(socket, buffer, os::Waiting::none);
    if (!received && received.error().code() == Errc::again) {
      UFFDA_TRY_VOID(wait_socket(socket, POLLIN, deadline));
      continue;
    }
    if (!received) return std::unexpected(received.error());
    if (received->descriptors > 1 || received->descriptors_cut)
      return fail(Errc::protocol, "a packet carries more than one descriptor (or there is no room for it)");
    if (received->bytes_cut) return fail(Errc::protocol, "a packet is larger than the protocol allows");
    const auto bytes = std::span<const std::byte>(buffer).first(received->size);
    const Header header = UFFDA_TRY(check_header(bytes));
    return Packet{.header = header, .bytes = bytes, .descriptor = std::move(received->descriptor)};
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

Result<Packet> ask_server(os::UniqueFd& socket, const std::string& path, std::span<const std::byte> head,
                          std::span<const std::byte> tail, int passed, std::span<std::byte> into, Deadline deadline) {
  for (;;) {
    if (!socket) socket = UFFDA_TRY(connect_socket(path, deadline));
    const auto sent = send_packet(socket.get(), head, tail, deadline, passed);
    auto answer = sent ? receive_packet(socket.get(), into, deadline) : std::unexpected(sent.error());
    if (answer || answer.error().code() != Errc::gone || deadline.passed()) return answer;
    socket.reset();
  }
}

}  // namespace uffda::handoff
