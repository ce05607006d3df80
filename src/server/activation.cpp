#include "server/activation.h"

#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <optional>

#include "os/fd.h"

namespace uffda {
namespace {

constexpr int kFirstPassed = 3;  // as sd_listen_fds(3) says
constexpr std::string_view kStored = "uffda-";

int socket_option(int socket, int option) {
  int value = -1;
  socklen_t size = sizeof value;
  return ::getsockopt(socket, SOL_SOCKET, option, &value, &size) == 0 ? value : -1;
}

Result<void> check_socket(const PassedSocket& passed) {
  const bool packets = passed.protocol == Protocol::handoff;
  const bool good = socket_option(passed.fd, SO_DOMAIN) == AF_UNIX && socket_option(passed.fd, SO_ACCEPTCONN) == 1 &&
                    socket_option(passed.fd, SO_TYPE) == (packets ? SOCK_SEQPACKET : SOCK_STREAM);
  if (good) return {};
  return fail(
      Errc::invalid_argument,
      fmt::format("the socket that was passed as '{}' is no listening UNIX socket of its kind: write {}=PATH into "
                  "the unit",
                  to_string(passed.protocol), packets ? "ListenSequentialPacket" : "ListenStream"));
}

}  // namespace

std::optional<int> whole_number(std::string_view text) {
  int number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

std::string_view environment(const char* name) {
  const char* const value = std::getenv(name);  // NOLINT(concurrency-mt-unsafe): before there are threads
  return value != nullptr ? value : "";
}

std::vector<PassedDescriptor> passed_descriptors(pid_t self, std::string_view pid, std::string_view count,
                                                 std::string_view names) {
  std::vector<PassedDescriptor> all;
  if (whole_number(pid) != self) return all;
  const int descriptors = whole_number(count).value_or(0);
  for (int i = 0; i < descriptors; ++i) {
    const std::string_view name = names.substr(0, names.find(':'));
    all.push_back({.name = name, .fd = kFirstPassed + i});
    if (names.empty()) break;  // LISTEN_FDS may be any number
    names.remove_prefix(std::min(names.size(), name.size() + 1));
  }
  return all;
}

std::vector<PassedDescriptor> passed_descriptors() {
  return passed_descriptors(::getpid(), environment("LISTEN_PID"), environment("LISTEN_FDS"),
                            environment("LISTEN_FDNAMES"));
}

Result<std::vector<PassedSocket>> parse_passed(const std::vector<PassedDescriptor>& passed) {
  if (passed.empty())
    return fail(Errc::not_found, "no sockets were passed: --activated is for services that a socket unit starts");
  std::vector<PassedSocket> all;
  for (const PassedDescriptor& one : passed) {
    if (one.name.starts_with(kStored)) continue;
    const auto protocol = protocol_named(one.name);
    if (!protocol) {
      return fail(
          Errc::invalid_argument,
          fmt::format("a socket was passed as '{}': write FileDescriptorName=handoff or =firecracker", one.name));
    }
    if (std::ranges::find(all, *protocol, &PassedSocket::protocol) != all.end())
      return fail(Errc::invalid_argument, fmt::format("two sockets were passed as '{}': one is served", one.name));
    all.push_back({.protocol = *protocol, .fd = one.fd});
  }
  if (all.empty()) return fail(Errc::not_found, "no sockets were passed, only what was stored");
  return all;
}

Result<std::vector<PassedSocket>> passed_sockets() {
  auto all = UFFDA_TRY(parse_passed(passed_descriptors()));
  for (const PassedSocket& passed : all) UFFDA_TRY_VOID(check_socket(passed));
  return all;
}

std::string path_of(int socket) {
  sockaddr_un address{};
  socklen_t size = sizeof address;
  constexpr std::size_t kStart = offsetof(sockaddr_un, sun_path);
  const bool has_path = ::getsockname(socket, reinterpret_cast<sockaddr*>(&address), &size) == 0 && size > kStart &&
                        address.sun_path[0] != '\0';
  if (!has_path) return "a socket without a path";
  return {address.sun_path, ::strnlen(address.sun_path, size - kStart)};
}

}  // namespace uffda
