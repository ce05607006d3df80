#include "qemu/qmp.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>

#include "os/socket.h"
#include "server/packet.h"

namespace uffda::qemu {
namespace {

using Json = nlohmann::json;

constexpr std::size_t kMaxAnswer = std::size_t{16} << 20U;

Result<os::UniqueFd> connect_stream(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path)
    return fail(Errc::invalid_argument, fmt::format("--qmp '{}' is empty or longer than 107 bytes", path));
  std::memcpy(address.sun_path, path.data(), path.size());
  os::UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket) return fail_errno(errno, "socket");
  while (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    if (errno == EINTR) continue;
    if (errno == ENOENT || errno == ECONNREFUSED) {
      return fail(Errc::gone,
                  fmt::format("no QEMU listens at {}: start it with -qmp unix:{},server=on,wait=off", path, path),
                  errno);
    }
    if (errno == EAGAIN)
      return fail(Errc::busy, fmt::format("{} has another client: QEMU takes one at a time", path), errno);
    return fail_errno(errno, fmt::format("connect to {}", path));
  }
  return socket;
}

Error within_qmp(const Error& error, std::string_view what) {
  return error.within(fmt::format("QEMU's monitor: {}", what));
}

}  // namespace

std::string text_of(const Json& answer, const char* key) {
  const auto found = answer.is_object() ? answer.find(key) : answer.end();
  return found != answer.end() && found->is_string() ? found->get<std::string>() : std::string();
}

std::uint64_t number_of(const Json& answer, const char* key) {
  const auto found = answer.is_object() ? answer.find(key) : answer.end();
  return found != answer.end() && found->is_number_unsigned() ? found->get<std::uint64_t>() : 0;
}

bool truth_of(const Json& answer, const char* key) {
  const auto found = answer.is_object() ? answer.find(key) : answer.end();
  return found != answer.end() && found->is_boolean() && found->get<bool>();
}

Result<std::optional<Json>> take_answer(std::string& input) {
  const std::size_t end = input.find('\n');
  if (end == std::string::npos && input.size() > kMaxAnswer) return fail(Errc::protocol, "an answer without an end");
  if (end == std::string::npos) return std::optional<Json>{};
  std::optional<Json> answer(
      Json::parse(input.begin(), input.begin() + static_cast<std::ptrdiff_t>(end), nullptr, false));
  input.erase(0, end + 1);
  if (!answer->is_object()) return fail(Errc::protocol, "it does not speak JSON");
  return answer;
}

Result<std::optional<Json>> returned_by(Json answer, std::string_view command) {
  if (const auto error = answer.find("error"); error != answer.end())
    return fail(Errc::io, fmt::format("QEMU refuses {}: {}", command, text_of(*error, "desc")));
  // Moved, for a copy takes as much of the stack as what QEMU says is deep.
  if (const auto value = answer.find("return"); value != answer.end()) return std::optional<Json>(std::move(*value));
  return std::optional<Json>{};
}

Result<Qmp> Qmp::connect(const std::string& path, Deadline deadline) {
  Qmp qmp(UFFDA_TRY(connect_stream(path)), path);
  const auto greeting = qmp.receive(deadline);
  if (!greeting && greeting.error().code() == Errc::timed_out) {
    return fail(Errc::busy, fmt::format("QEMU at {} does not greet: its monitor takes one client at a time, and has "
                                        "one; give QEMU a second -qmp",
                                        path));
  }
  if (!greeting) return std::unexpected(within_qmp(greeting.error(), path));
  if (!greeting->contains("QMP")) return fail(Errc::protocol, fmt::format("{} is no monitor of QEMU", path));
  UFFDA_TRY(qmp.execute("qmp_capabilities"));
  return qmp;
}

Result<Json> Qmp::execute(const std::string& command) { return execute(command, Json::object()); }

Result<Json> Qmp::execute(const std::string& command, const Json& arguments, Deadline deadline, int passed) {
  const Json request = {{"execute", command}, {"arguments", arguments}};
  const auto sent = send(request.dump(-1, ' ', true, Json::error_handler_t::replace) + "\n", deadline, passed);
  if (!sent) return std::unexpected(within_qmp(sent.error(), command));
  for (;;) {
    auto answer = receive(deadline);
    if (!answer) return std::unexpected(within_qmp(answer.error(), command));
    if (auto value = UFFDA_TRY(returned_by(std::move(*answer), command))) return std::move(*value);
    if (deadline.passed()) return fail(Errc::timed_out, fmt::format("QEMU's monitor: {}: only events come", command));
  }
}

Result<void> Qmp::send(const std::string& text, Deadline deadline, int passed) {
  auto rest = std::as_bytes(std::span(text));
  while (!rest.empty()) {
    // One byte carries the descriptor; what follows it may go out in parts.
    const auto head = rest.first(passed >= 0 ? 1 : rest.size());
    auto sent = os::send_some(socket_.get(), head, passed);
    if (!sent && sent.error().code() == Errc::again) {
      UFFDA_TRY_VOID(handoff::wait_socket(socket_.get(), POLLOUT, deadline));
      continue;
    }
    rest = rest.subspan(UFFDA_TRY(std::move(sent)));
    passed = -1;
  }
  return {};
}

Result<Json> Qmp::receive(Deadline deadline) {
  for (;;) {
    if (auto answer = UFFDA_TRY(take_answer(input_))) return std::move(*answer);
    std::array<std::byte, 65536> buffer{};
    const auto received = os::receive_some(socket_.get(), buffer);
    if (received) {
      input_.append(reinterpret_cast<const char*>(received->data()), received->size());
    } else if (received.error().code() == Errc::again) {
      UFFDA_TRY_VOID(handoff::wait_socket(socket_.get(), POLLIN, deadline));
    } else {
      return std::unexpected(received.error());
    }
  }
}

}  // namespace uffda::qemu
