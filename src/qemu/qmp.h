// QEMU's monitor protocol: JSON over a UNIX socket, one request at a time.
//
// Each request has an id, and goes out whole or not at all. So a connection can be passed on to another process, even
// if the one that had it was killed: what is still to come for that one is skipped.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "os/fd.h"
#include "qemu/cancel.h"
#include "uffda/deadline.h"
#include "uffda/result.h"

namespace uffda::qemu {

/// Threads: one at a time.
class Qmp {
 public:
  /// How long QEMU may take for one answer; a machine that starts is slow.
  static constexpr Duration kPatience = std::chrono::seconds(30);

  enum class OutOfBand : bool { no, if_offered };

  /// Connects, and takes the greeting. Out of band requests are agreed on before anything else can be asked. Errors:
  /// gone (nobody listens; says what to start QEMU with), busy (another client has the monitor), timed_out, protocol
  /// (no QEMU), cancelled.
  static Result<Qmp> connect(const std::string& path, OutOfBand out_of_band = OutOfBand::no, Cancel cancel = {},
                             Deadline deadline = Deadline::after(kPatience));
  /// A connection with out of band requests that `user` others have had before.
  static Qmp adopt(os::UniqueFd socket, std::string path, std::uint64_t user, Cancel cancel = {});
  /// What ends its waits from now on.
  void heed(Cancel cancel) { cancel_ = cancel; }

  /// What QEMU returned. `passed` travels with the request, as a copy. Events that come meanwhile are dropped.
  /// Errors: io (QEMU refused; its own words), gone (it ended), timed_out, cancelled, protocol.
  Result<nlohmann::json> execute(const std::string& command, const nlohmann::json& arguments,
                                 Deadline deadline = Deadline::after(kPatience), int passed = -1);
  Result<nlohmann::json> execute(const std::string& command);

  [[nodiscard]] bool has_out_of_band() const { return out_of_band_; }
  /// As execute(), and answered while QEMU's main thread waits. Requires: has_out_of_band(), and a command that QEMU
  /// allows there.
  Result<nlohmann::json> execute_out_of_band(const std::string& command, const nlohmann::json& arguments);
  /// Asks, and does not wait. Requires: what was asked before has been answered. Errors: as execute.
  Result<void> ask(const std::string& command);
  /// What QEMU returned to ask(), if a later request has come across it: an object.
  std::optional<nlohmann::json> take_answer() { return std::exchange(answer_, std::nullopt); }

  /// The connection.
  [[nodiscard]] int fd() const { return socket_.get(); }

 private:
  Qmp(os::UniqueFd socket, std::string path, Cancel cancel)
      : socket_(std::move(socket)), path_(std::move(path)), cancel_(cancel) {}
  std::string next_id();
  Result<void> request(const char* how, const std::string& id, const std::string& command,
                       const nlohmann::json& arguments, Deadline deadline, int passed = -1);
  Result<nlohmann::json> wait_for(const std::string& id, const std::string& command, Deadline deadline);
  Result<void> send(const std::string& text, Deadline deadline, int passed);
  Result<nlohmann::json> receive(Deadline deadline);

  os::UniqueFd socket_;
  std::string path_;
  Cancel cancel_;
  std::string input_;
  std::uint64_t user_ = 0;
  std::uint64_t requests_ = 0;
  bool out_of_band_ = false;
  bool adopted_ = false;  // and no answer to us was seen yet: the first bytes may be the rest of another's
  std::string asked_;     // id
  std::optional<nlohmann::json> answer_;
};

/// The next line of what came, taken away from `input`; nothing if none is whole yet. An object. Errors: protocol.
Result<std::optional<nlohmann::json>> take_object(std::string& input);
/// What a command returned, by such a line; nothing if that is an event. Errors: io (QEMU refused; its own words).
Result<std::optional<nlohmann::json>> returned_by(nlohmann::json answer, std::string_view command);

/// A text field of an answer; empty if it has none.
std::string text_of(const nlohmann::json& answer, const char* key);
/// A number, or 0.
std::uint64_t number_of(const nlohmann::json& answer, const char* key);
/// A truth value, or false.
bool truth_of(const nlohmann::json& answer, const char* key);

}  // namespace uffda::qemu
