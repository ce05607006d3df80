#include "server/fd_store.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>

#include "os/socket.h"

namespace uffda {
namespace {

constexpr int kTakesSeconds = 5;
constexpr const char* kNotTaken = "the service manager takes nothing from NOTIFY_SOCKET, for 5 s";
constexpr std::string_view kName = "uffda-";
constexpr std::string_view kMemoryName = "uffda-kept-";

Result<os::UniqueFd> connect_notify() {
  const std::string_view path = environment("NOTIFY_SOCKET");
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
  const timeval limit{.tv_sec = kTakesSeconds, .tv_usec = 0};
  if (::setsockopt(socket.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit) != 0)
    return fail_errno(errno, "SO_SNDTIMEO");
  return socket;
}

std::string name_of(const StoredDescriptor& stored) {
  return fmt::format("{}{}", stored.is_memory ? kMemoryName : kName, stored.number);
}

Result<void> notify(int socket, std::string_view text, int passed) {
  auto sent = os::send_packet(socket, std::as_bytes(std::span(text)), {}, passed, os::Waiting::until);
  if (!sent && sent.error().code() == Errc::again) return fail(Errc::timed_out, kNotTaken);
  return sent;
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
  if (::poll(&entry, 1, kTakesSeconds * 1000) == 1) return {};
  return fail(Errc::timed_out, kNotTaken);
}

}  // namespace

bool fd_store_there() {
  return !environment("NOTIFY_SOCKET").empty() && whole_number(environment("FDSTORE")).value_or(0) > 0;
}

Result<void> store_all(const KeptState& state) {
  const os::UniqueFd socket = UFFDA_TRY(connect_notify());
  for (const int fd : state.descriptors()) {
    const std::string name = name_of({.number = fd, .fd = fd, .is_memory = fd == state.fd()});
    // A userfaultfd whose process has ended polls as an error: that is for us to find.
    UFFDA_TRY_VOID(notify(socket.get(), "FDSTORE=1\nFDPOLL=0\nFDNAME=" + name, fd));
  }
  return wait_for_all(socket.get());
}

Result<void> forget_stored(std::span<const std::string> names) {
  if (names.empty()) return {};
  const os::UniqueFd socket = UFFDA_TRY(connect_notify());
  for (const std::string& name : names) UFFDA_TRY_VOID(notify(socket.get(), "FDSTOREREMOVE=1\nFDNAME=" + name, -1));
  return {};
}

Result<std::vector<StoredDescriptor>> parse_stored(const std::vector<PassedDescriptor>& passed) {
  std::vector<StoredDescriptor> all;
  for (const PassedDescriptor& one : passed) {
    if (!one.name.starts_with(kName)) continue;
    const bool is_memory = one.name.starts_with(kMemoryName);
    const auto number = whole_number(one.name.substr(is_memory ? kMemoryName.size() : kName.size()));
    if (!number || *number <= STDERR_FILENO || *number == std::numeric_limits<int>::max())
      return fail(Errc::protocol, fmt::format("'{}' is no name of ours", one.name));
    all.push_back({.number = *number, .fd = one.fd, .is_memory = is_memory});
  }
  return all;
}

Result<std::optional<Taken>> take_stored(int ready_fd) {
  Descriptors all;
  std::optional<int> memory;
  const std::vector<StoredDescriptor> stored = UFFDA_TRY(parse_stored(passed_descriptors()));
  for (const StoredDescriptor& one : stored) {
    if (one.is_memory) memory = one.number;
    all[one.number] = os::UniqueFd(one.fd);
  }
  if (!memory) return std::nullopt;
  Taken taken = UFFDA_TRY(place_all(std::move(all), *memory, {}, ready_fd));
  for (const StoredDescriptor& one : stored) taken.stored.push_back(name_of(one));
  return taken;
}

}  // namespace uffda
