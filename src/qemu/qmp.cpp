#include "qemu/qmp.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>

#include "os/socket.h"

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

Result<std::optional<Json>> take_object(std::string& input) {
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

Result<Qmp> Qmp::connect(const std::string& path, OutOfBand out_of_band, Cancel cancel, Deadline deadline) {
  Qmp qmp(UFFDA_TRY(connect_stream(path)), path, cancel);
  const auto greeting = qmp.receive(deadline);
  if (!greeting && greeting.error().code() == Errc::timed_out) {
    return fail(Errc::busy, fmt::format("QEMU at {} does not greet: its monitor takes one client at a time, and has "
                                        "one; give QEMU a second -qmp",
                                        path));
  }
  if (!greeting) return std::unexpected(within_qmp(greeting.error(), path));
  const auto hello = greeting->find("QMP");
  if (hello == greeting->end()) return fail(Errc::protocol, fmt::format("{} is no monitor of QEMU", path));
  const auto offered = hello->is_object() ? hello->find("capabilities") : hello->end();
  qmp.out_of_band_ = out_of_band == OutOfBand::if_offered && hello->is_object() && offered != hello->end() &&
                     offered->is_array() && std::ranges::find(*offered, Json("oob")) != offered->end();
  Json arguments = Json::object();
  if (qmp.out_of_band_) arguments["enable"] = {"oob"};
  UFFDA_TRY(qmp.execute("qmp_capabilities", arguments));
  return qmp;
}

Qmp Qmp::adopt(os::UniqueFd socket, std::string path, std::uint64_t user, Cancel cancel) {
  Qmp qmp(std::move(socket), std::move(path), cancel);
  qmp.user_ = user;
  qmp.out_of_band_ = true;
  qmp.adopted_ = true;
  return qmp;
}

Result<Json> Qmp::execute(const std::string& command) { return execute(command, Json::object()); }

Result<Json> Qmp::execute(const std::string& command, const Json& arguments, Deadline deadline, int passed) {
  const std::string id = next_id();
  UFFDA_TRY_VOID(request("execute", id, command, arguments, deadline, passed));
  return wait_for(id, command, deadline);
}

Result<Json> Qmp::execute_out_of_band(const std::string& command, const Json& arguments) {
  const Deadline deadline = Deadline::after(kPatience);
  const std::string id = next_id();
  UFFDA_TRY_VOID(request("exec-oob", id, command, arguments, deadline));
  return wait_for(id, command, deadline);
}

Result<void> Qmp::ask(const std::string& command) {
  asked_ = next_id();
  answer_.reset();
  return request("execute", asked_, command, Json::object(), Deadline::after(kPatience));
}

std::string Qmp::next_id() { return fmt::format("uffda-{}-{}", user_, requests_++); }

Result<void> Qmp::request(const char* how, const std::string& id, const std::string& command, const Json& arguments,
                          Deadline deadline, int passed) {
  const Json request = {{how, command}, {"arguments", arguments}, {"id", id}};
  const auto sent = send(request.dump(-1, ' ', true, Json::error_handler_t::replace) + "\n", deadline, passed);
  if (!sent) return std::unexpected(within_qmp(sent.error(), command));
  return {};
}

Result<Json> Qmp::wait_for(const std::string& id, const std::string& command, Deadline deadline) {
  for (;;) {
    auto answer = receive(deadline);
    if (!answer) return std::unexpected(within_qmp(answer.error(), command));
    const std::string whose = text_of(*answer, "id");
    if (!asked_.empty() && whose == asked_) {
      const auto value = answer->find("return");
      answer_ = value != answer->end() && value->is_object() ? std::move(*value) : Json::object();
      asked_.clear();
    }
    if (whose == id) {
      adopted_ = false;
      if (auto value = UFFDA_TRY(returned_by(std::move(*answer), command))) return std::move(*value);
    }  // else an event, or another's
    if (deadline.passed()) return fail(Errc::timed_out, fmt::format("QEMU's monitor: {}: only events come", command));
  }
}

Result<void> Qmp::send(const std::string& text, Deadline deadline, int passed) {
  auto rest = std::as_bytes(std::span(text));
  while (!rest.empty()) {
    // A request is small: the kernel takes all of it at once, or nothing.
    auto sent = os::send_some(socket_.get(), rest, passed);
    if (!sent && sent.error().code() == Errc::again) {
      UFFDA_TRY_VOID(cancel_.wait(socket_.get(), POLLOUT, deadline));
      continue;
    }
    rest = rest.subspan(UFFDA_TRY(std::move(sent)));
    passed = -1;
  }
  return {};
}

Result<Json> Qmp::receive(Deadline deadline) {
  for (;;) {
    const std::size_t come = input_.size();
    auto answer = take_object(input_);
    if (answer && *answer) return *std::move(*answer);
    if (!answer && adopted_ && input_.size() < come) continue;  // the rest of a line that another read
    if (!answer) return std::unexpected(answer.error());
    std::array<std::byte, 65536> buffer{};
    const auto received = os::receive_some(socket_.get(), buffer);
    if (received) {
      input_.append(reinterpret_cast<const char*>(received->data()), received->size());
    } else if (received.error().code() == Errc::again) {
      UFFDA_TRY_VOID(cancel_.wait(socket_.get(), POLLIN, deadline));
    } else {
      return std::unexpected(received.error());
    }
  }
}

}  // namespace uffda::qemu
