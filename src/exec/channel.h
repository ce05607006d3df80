// What the processes of `uffda exec` say to each other over socket pairs that they inherit.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string_view>

#include "os/fd.h"
#include "os/socket.h"
#include "uffda/result.h"

namespace uffda::exec {

enum class Say : std::uint32_t {
  kElsewhere,   // host -> supervisor, before kReady: map `value` is mounted at the path in text, and to be rewritten
  kReady,       // host -> supervisor: start the program
  kStarted,     // host -> supervisor: the program may run now; its status counts
  kStartPlain,  // host -> supervisor: start it again, without a namespace (value 0)
  kFailed,      // host -> supervisor: value is an Errc, text says why
  kExit,        // host -> supervisor: end with status `value`; the reason has been printed
  kKill,        // host -> supervisor: kill the program
  kStored,      // host -> supervisor, after kEnded: what the program wrote is stored, or cannot be, and that was said
  kDone,        // host -> supervisor: everything is cleaned up
  kEnded,       // supervisor -> host: value is the wait status of the program
  kDevice,      // program -> host: with the mounted device of map `value`
  kNoMount,     // program -> host: mounting is not possible here: value is an Errc, text says why
  kGo,          // host -> program
};

struct Message {
  Say what = Say::kDone;
  std::int32_t value = 0;
  std::array<char, 1000> text{};

  [[nodiscard]] std::string_view words() const { return {text.data(), ::strnlen(text.data(), text.size())}; }
};

inline Message failure(Say what, const Error& error) {
  Message message{.what = what, .value = static_cast<std::int32_t>(error.code()), .text = {}};
  std::memcpy(message.text.data(), error.context().data(), std::min(error.context().size(), message.text.size() - 1));
  return message;
}
inline Error error_of(const Message& message) {
  return Error(static_cast<Errc>(message.value), std::string(message.words()));
}

/// Both are for blocking sockets. tell: false when the other side is gone. hear: nothing at its end.
bool tell(int channel, const Message& message, int descriptor = -1);
std::optional<Message> hear(int channel, os::UniqueFd* descriptor = nullptr);

}  // namespace uffda::exec
