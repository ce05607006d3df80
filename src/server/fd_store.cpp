#include "server/fd_store.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>

#include "os/socket.h"

namespace uffda {
namespace {

constexpr int kFirstPassed = 3;      // as sd_listen_fds(3) says
constexpr int kBarrierWait = 5'000;  // milliseconds
constexpr std::string_view kName = "uffda-";
constexpr std::string_view kMemoryName = "uffda-kept-";

std::string_view variable(const char* name) {
  const char* const value = std::getenv(name);  // NOLINT(concurrency-mt-unsafe): before there are threads
  return value != nullptr ? value : "";
}

std::optional<int> number_of(std::string_view text) {
  int number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

Result<os::UniqueFd> connect_notify() {
  const std::string_view path = variable("NOTIFY_SOCKET");
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path)
    return fail(Errc::invalid_argument, "NOTIFY_SOCKET names no socket");
  std::memcpy(address.sun_path, path.data(), path.size());
  if (path.front() == '@') address.sun_path[0] = 0;
  os::UniqueFd socket(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path.size());
  if (!socket || ::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), size) != 0)
    return fail_errno(errno, fmt::format("connecting to NOTIFY_SOCKET {}", path));
  return socket;
}

Result<void> notify(int socket, std::string_view text, int passed) {
  return os::send_packet(socket, std::as_bytes(std::span(text)), {}, passed, os::Waiting::until);
}

/// Everything that was sent before has been taken when the pipe that is sent now is closed.
Result<void> wait_for_all(int socket) {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) return fail_errno(errno, "pipe");
  const os::UniqueFd read(ends[0]);
  os::UniqueFd write(ends[1]);
  UFFDA_TRY_VOID(notify(socket, "BARRIER=1", write.get()));
  write.reset();
  pollfd entry{.fd = read.get(), .events = 0, .revents = 0};
  if (::poll(&entry, 1, kBarrierWait) == 1) return {};
  return fail(Errc::timed_out, "the service manager did not take the descriptors in 5 s");
}

}  // namespace

bool fd_store_there() { return !variable("NOTIFY_SOCKET").empty() && number_of(variable("FDSTORE")).value_or(0) > 0; }

Result<void> store_all(const KeptState& state) {
  const os::UniqueFd socket = UFFDA_TRY(connect_notify());
  for (const int fd : state.descriptors()) {
    const std::string_view name = fd == state.fd() ? kMemoryName : kName;
    // A userfaultfd whose process has ended polls as an error: that is for us to find.
    UFFDA_TRY_VOID(notify(socket.get(), fmt::format("FDSTORE=1\nFDPOLL=0\nFDNAME={}{}", name, fd), fd));
  }
  return wait_for_all(socket.get());
}

Result<std::optional<Taken>> take_stored(int ready_fd) {
  const int count = number_of(variable("LISTEN_FDS")).value_or(0);
  if (count <= 0 || number_of(variable("LISTEN_PID")) != ::getpid()) return std::nullopt;
  std::string_view names = variable("LISTEN_FDNAMES");
  Descriptors all;
  std::optional<int> memory;
  for (int fd = kFirstPassed; fd < kFirstPassed + count; ++fd) {
    const std::string_view name = names.substr(0, names.find(':'));
    names.remove_prefix(std::min(names.size(), name.size() + 1));
    if (!name.starts_with(kName)) continue;
    const bool is_memory = name.starts_with(kMemoryName);
    const auto number = number_of(name.substr(is_memory ? kMemoryName.size() : kName.size()));
    if (!number || *number <= STDERR_FILENO) return fail(Errc::protocol, fmt::format("'{}' is no name of ours", name));
    if (is_memory) memory = number;
    all[*number] = os::UniqueFd(fd);
  }
  if (!memory) return std::nullopt;
  return UFFDA_TRY(place_all(std::move(all), *memory, {}, ready_fd));
}

}  // namespace uffda
