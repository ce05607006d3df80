// QEMU's monitor protocol: JSON over a UNIX socket, one request at a time.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "os/fd.h"
#include "uffda/deadline.h"
#include "uffda/result.h"

namespace uffda::qemu {

/// Threads: one at a time.
class Qmp {
 public:
  /// How long QEMU may take for one answer; a machine that starts is slow.
  static constexpr Duration kPatience = std::chrono::seconds(30);

  /// Connects, and takes the greeting. Errors: gone (nobody listens; says what to start QEMU with), busy (another
  /// client has the monitor), timed_out, protocol (no QEMU).
  static Result<Qmp> connect(const std::string& path, Deadline deadline = Deadline::after(kPatience));

  /// What QEMU returned. `passed` travels with the request, as a copy. Events that come meanwhile are dropped.
  /// Errors: io (QEMU refused; its own words), gone (it ended), timed_out, protocol.
  Result<nlohmann::json> execute(const std::string& command, const nlohmann::json& arguments,
                                 Deadline deadline = Deadline::after(kPatience), int passed = -1);
  Result<nlohmann::json> execute(const std::string& command);

 private:
  Qmp(os::UniqueFd socket, std::string path) : socket_(std::move(socket)), path_(std::move(path)) {}
  Result<void> send(const std::string& text, Deadline deadline, int passed);
  Result<nlohmann::json> receive(Deadline deadline);

  os::UniqueFd socket_;
  std::string path_;
  std::string input_;
};

/// The next line of what came, taken away from `input`; nothing if none is whole yet. An object. Errors: protocol.
Result<std::optional<nlohmann::json>> take_answer(std::string& input);
/// What a command returned, by such a line; nothing if that is an event. Errors: io (QEMU refused; its own words).
Result<std::optional<nlohmann::json>> returned_by(nlohmann::json answer, std::string_view command);

/// A text field of an answer; empty if it has none.
std::string text_of(const nlohmann::json& answer, const char* key);
/// A number, or 0.
std::uint64_t number_of(const nlohmann::json& answer, const char* key);
/// A truth value, or false.
bool truth_of(const nlohmann::json& answer, const char* key);

}  // namespace uffda::qemu
