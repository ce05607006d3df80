// The socket on which CRIU's restore says which tasks there are: for each an int, its pid, and one byte with its
// userfaultfd; for a zombie minus its pid; at last RSTF. It says nothing twice, and hears nothing. So what was read is
// kept until it has been acted on, and a successor finds it (pitfall 12).
#pragma once

#include <sys/types.h>

#include <optional>

#include "server/kept_state.h"
#include "server/listener.h"
#include "uffda/result.h"

namespace uffda {

struct LazyTask {
  pid_t pid;
  int userfault;  ///< its descriptor: whoever takes the task owns it
};

/// Threads: one at a time.
class LazyPagesSocket {
 public:
  /// Goes on with what a server before has kept in `handshake`.
  LazyPagesSocket(Listener listener, KeptHandshake& handshake);

  /// What to poll for reading; -1: nothing more comes.
  [[nodiscard]] int fd() const;
  /// The next task, if it is there. The same again until taken(). Errors: protocol, no_memory (no descriptor left).
  Result<std::optional<LazyTask>> next();
  void taken();
  /// Nothing more comes.
  [[nodiscard]] bool finished() const { return handshake_.finished.load() != 0; }
  /// And it ended without RSTF.
  [[nodiscard]] bool cut_short() const { return handshake_.finished.load() == kCutShort; }

 private:
  static constexpr std::uint32_t kComplete = 1;
  static constexpr std::uint32_t kCutShort = 2;

  /// The int of a record; nothing: it is not there yet, or it was the last.
  std::optional<std::int32_t> receive_pid();
  Result<bool> receive_userfault();
  void finish(std::uint32_t how);

  Listener listener_;
  os::UniqueFd connection_;
  KeptHandshake& handshake_;
};

}  // namespace uffda
