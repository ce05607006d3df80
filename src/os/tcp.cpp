#include "os/tcp.h"

#include <fmt/format.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <limits>
#include <memory>

namespace uffda::os {
namespace {

using Addresses = std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)>;

Result<Addresses> resolve(const std::string& host, const std::string& port, int flags) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = flags;
  addrinfo* found = nullptr;
  const int error = ::getaddrinfo(host.c_str(), port.c_str(), &hints, &found);
  if (error != 0) return fail(Errc::invalid_argument, fmt::format("{}:{}: {}", host, port, ::gai_strerror(error)));
  return Addresses(found, &::freeaddrinfo);
}

Result<void> wait_for(int socket, short events, Deadline deadline) {
  for (;;) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline.when() - Clock::now()).count();
    pollfd polled{.fd = socket, .events = events, .revents = 0};
    const int ready =
        ::poll(&polled, 1, static_cast<int>(std::clamp<std::int64_t>(left, 0, std::numeric_limits<int>::max())));
    if (ready > 0) return {};
    if (ready == 0) return fail(Errc::timed_out, "the other end does not answer");
    if (errno != EINTR) return fail_errno(errno, "poll");
  }
}

Result<UniqueFd> connect_one(const addrinfo& to, Deadline deadline) {
  UniqueFd socket(::socket(to.ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket) return fail_errno(errno, "socket");
  if (::connect(socket.get(), to.ai_addr, to.ai_addrlen) != 0 && errno != EINPROGRESS)
    return fail_errno(errno, "connect");
  UFFDA_TRY_VOID(wait_for(socket.get(), POLLOUT, deadline));
  int error = 0;
  socklen_t size = sizeof error;
  if (::getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &error, &size) != 0) return fail_errno(errno, "getsockopt");
  if (error != 0) return fail(Errc::gone, std::string("connect"), error);
  const int on = 1;
  (void)::setsockopt(socket.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);  // only a matter of speed
  return socket;
}

}  // namespace

Result<UniqueFd> connect_tcp(const std::string& host, const std::string& port, Deadline deadline) {
  const Addresses all = UFFDA_TRY(resolve(host, port, 0));
  Error last(Errc::gone);
  for (const addrinfo* one = all.get(); one != nullptr; one = one->ai_next) {
    auto socket = connect_one(*one, deadline);
    if (socket) return socket;
    last = socket.error();
  }
  return std::unexpected(last.within(fmt::format("{}:{}", host, port)));
}

Result<UniqueFd> listen_tcp(const std::string& host, const std::string& port) {
  const Addresses all = UFFDA_TRY(resolve(host, port, AI_PASSIVE));
  const addrinfo& at = *all;
  UniqueFd socket(::socket(at.ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket) return fail_errno(errno, "socket");
  const int on = 1;
  (void)::setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (::bind(socket.get(), at.ai_addr, at.ai_addrlen) != 0 || ::listen(socket.get(), 8) != 0)
    return fail_errno(errno, fmt::format("listening at {}:{}", host, port));
  return socket;
}

Result<unsigned> port_of(int socket) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  if (::getsockname(socket, reinterpret_cast<sockaddr*>(&address), &size) != 0) return fail_errno(errno, "getsockname");
  return address.ss_family == AF_INET6 ? ntohs(reinterpret_cast<const sockaddr_in6&>(address).sin6_port)
                                       : ntohs(reinterpret_cast<const sockaddr_in&>(address).sin_port);
}

Result<void> send_all(int socket, std::span<const std::byte> bytes, Deadline deadline) {
  while (!bytes.empty()) {
    const ssize_t done = ::send(socket, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (done >= 0) {
      bytes = bytes.subspan(static_cast<std::size_t>(done));
    } else if (errno == EAGAIN) {
      UFFDA_TRY_VOID(wait_for(socket, POLLOUT, deadline));
    } else if (errno != EINTR) {
      return fail(Errc::gone, "sending", errno);
    }
  }
  return {};
}

Result<void> receive_all(int socket, std::span<std::byte> bytes, Deadline deadline) {
  while (!bytes.empty()) {
    const ssize_t done = ::recv(socket, bytes.data(), bytes.size(), MSG_DONTWAIT);
    if (done > 0) {
      bytes = bytes.subspan(static_cast<std::size_t>(done));
    } else if (done == 0) {
      return fail(Errc::gone, "the other end has closed the connection");
    } else if (errno == EAGAIN) {
      UFFDA_TRY_VOID(wait_for(socket, POLLIN, deadline));
    } else if (errno != EINTR) {
      return fail(Errc::gone, "receiving", errno);
    }
  }
  return {};
}

}  // namespace uffda::os
