#include "server/listener.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "os/socket.h"
#include "server/packet.h"
#include "uffda/deadline.h"

namespace uffda {
namespace {

constexpr int kBacklog = 128;
constexpr Duration kLockWait = std::chrono::seconds(2);
constexpr Duration kProbeWait = std::chrono::seconds(1);

std::string directory_of(const std::string& path) {
  const auto slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

/// Two servers that find the same dead socket must not both replace it: who does holds a lock on the directory (which
/// leaves no file).
Result<os::UniqueFd> lock_directory(const std::string& path) {
  const std::string directory = directory_of(path);
  os::UniqueFd fd(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd) return fail_errno(errno, fmt::format("the socket's directory {}", directory));
  const Deadline deadline = Deadline::after(kLockWait);
  while (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK && errno != EINTR) return fail_errno(errno, fmt::format("locking {}", directory));
    if (deadline.passed()) return fail(Errc::busy, fmt::format("somebody keeps {} locked", directory));
    (void)::poll(nullptr, 0, 10);
  }
  return fd;
}

Result<sockaddr_un> address_of(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path || path.contains('\0')) {
    return fail(Errc::invalid_argument, fmt::format("the socket's path has 1 to {} bytes, and this one does not: '{}'",
                                                    sizeof address.sun_path - 1, path));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

/// Removes a socket that nobody listens on. Errors: busy, invalid_argument (it is no socket).
Result<void> remove_dead(const std::string& path) {
  struct stat status{};
  if (::lstat(path.c_str(), &status) != 0) return errno == ENOENT ? Result<void>() : fail_errno(errno, path);
  if (!S_ISSOCK(status.st_mode)) return fail(Errc::invalid_argument, fmt::format("{} exists and is no socket", path));
  auto probe = handoff::connect_socket(path, Deadline::after(kProbeWait));
  // Anything but a refusal means that somebody is there, if only one who does not answer or who may not be asked.
  if (probe || probe.error().sys_errno() != ECONNREFUSED)
    return fail(Errc::busy, fmt::format("a server listens at {} already", path));
  if (::unlink(path.c_str()) != 0 && errno != ENOENT)
    return fail_errno(errno, fmt::format("removing the dead socket {}", path));
  return {};
}

}  // namespace

std::string_view to_string(Protocol protocol) {
  switch (protocol) {
    case Protocol::handoff:
      return "handoff";
    case Protocol::firecracker:
      return "firecracker";
    case Protocol::criu:
      return "criu";
  }
  return {};
}

std::optional<Protocol> protocol_named(std::string_view name) {
  for (const Protocol protocol : {Protocol::handoff, Protocol::firecracker})
    if (name == to_string(protocol)) return protocol;
  return std::nullopt;
}

Listener::Listener(Protocol protocol, os::UniqueFd socket, std::string path, std::vector<uid_t> others)
    : protocol_(protocol), socket_(std::move(socket)), path_(std::move(path)), others_(std::move(others)) {}

Listener Listener::adopt(Protocol protocol, os::UniqueFd socket, std::string path, std::vector<uid_t> allowed_others) {
  return {protocol, std::move(socket), std::move(path), std::move(allowed_others)};
}

void Listener::own_path() {
  struct stat status{};
  if (::lstat(path_.c_str(), &status) == 0) {
    device_ = status.st_dev;
    inode_ = status.st_ino;
  }
}

Result<Listener> Listener::create(Protocol protocol, std::string path, std::vector<uid_t> allowed_others) {
  const sockaddr_un address = UFFDA_TRY(address_of(path));
  const int kind = protocol == Protocol::handoff ? SOCK_SEQPACKET : SOCK_STREAM;
  os::UniqueFd socket(::socket(AF_UNIX, kind | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket) return fail_errno(errno, "socket");
  // Before bind: the mode of the socket's descriptor becomes that of the path, so there is no moment in which anybody
  // may connect.
  const mode_t mode = allowed_others.empty() ? 0600 : 0666;
  if (::fchmod(socket.get(), mode) != 0) return fail_errno(errno, "fchmod of the socket");
  const os::UniqueFd lock = UFFDA_TRY(lock_directory(path));
  UFFDA_TRY_VOID(remove_dead(path));
  if (::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    return fail_errno(errno, fmt::format("binding the socket {}", path));
  }
  Listener listener(protocol, std::move(socket), std::move(path), std::move(allowed_others));
  listener.own_path();
  // The process's umask took bits away that others need.
  if (mode != 0600 && ::chmod(listener.path_.c_str(), mode) != 0)
    return fail_errno(errno, fmt::format("chmod of {}", listener.path_));
  if (::listen(listener.fd(), kBacklog) != 0) return fail_errno(errno, "listen");
  return listener;
}

Listener::~Listener() {
  if (!socket_) return;
  struct stat status{};
  const bool ours =
      inode_ != 0 && ::lstat(path_.c_str(), &status) == 0 && status.st_dev == device_ && status.st_ino == inode_;
  if (ours) ::unlink(path_.c_str());
}

Result<Listener::Accepted> Listener::accept() const {
  Accepted accepted{.socket = os::UniqueFd(::accept4(fd(), nullptr, nullptr, SOCK_CLOEXEC)), .pid = 0, .uid = 0};
  if (!accepted.socket) {
    const int error = errno;
    if (error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM)
      return fail(Errc::no_memory, "accept", error);
    return fail(Errc::again, "accept", error);  // none, or one that went away before we saw it
  }
  const auto peer = os::peer_of(accepted.socket.get());
  if (!peer) return fail(Errc::again, peer.error().context(), peer.error().sys_errno());
  accepted.pid = peer->pid;
  accepted.uid = peer->uid;
  return accepted;
}

Result<void> Listener::allows(const Accepted& peer) const {
  if (peer.uid == ::geteuid() || std::ranges::find(others_, peer.uid) != others_.end()) return {};
  return fail(Errc::permission_denied,
              fmt::format("this server serves user {} and not user {}: start it with --allow-uid {} if it should",
                          ::geteuid(), peer.uid, peer.uid));
}

}  // namespace uffda
