// The holder: a small process beside the server that shares its descriptor table, and starts it again when it is
// killed.
//
//   holder --clone(CLONE_FILES)--> server, killed --> holder --clone--> server, which adopts what KeptState names
//
// By clone and not by exec, because exec would give the server a descriptor table of its own (pitfall 13). The holder
// does nothing but wait, so that nothing kills it but who wants to.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "os/fd.h"
#include "server/kept_state.h"
#include "server/listener.h"
#include "server/serve.h"
#include "uffda/result.h"

namespace uffda {

/// A server that a holder has started, and what it shares with it.
class Held {
 public:
  explicit Held(std::shared_ptr<KeptState> state) : state_(std::move(state)) {}

  [[nodiscard]] const std::shared_ptr<KeptState>& state() const { return state_; }
  /// Another server of this holder was here before.
  [[nodiscard]] bool is_restarted() const { return restarted_; }
  /// The socket that the server before listened on, or a new one that the next server will find.
  using NewListener = std::function<Result<Listener>()>;
  Result<Listener> listen(Protocol protocol, const std::string& path, const std::vector<uid_t>& allowed_others,
                          const NewListener& make);
  /// All exports are open: from here on this server has what another holder gave, if it is one that takes over, and
  /// nobody else has what the service manager stored. Errors: what the other holder said, and then this server must
  /// end.
  Result<void> confirm();

 private:
  friend class Holder;
  std::shared_ptr<KeptState> state_;
  os::UniqueFd giver_;  // the other holder, until it has heard that all is well
  std::vector<std::string> stored_;
  bool restarted_ = false;
};

/// What run_serve goes on as.
struct HeldOrEnded {
  std::unique_ptr<Held> held;  ///< null: this is the holder, and its last server has ended
  int status = 0;
};

/// Becomes the holder, and returns once in each server that it starts and once, at the end, in itself. With
/// options.takeover what the server at options.socket_path has is taken over first. Requires: no other thread. Errors:
/// gone (the server cannot be started), and with takeover what the other server said.
Result<HeldOrEnded> hold(ServeOptions& options);

/// What a server exits with so that its holder gives all that it has to whoever KeptState::taker() is, or to the store
/// of the service manager if that is nobody.
inline constexpr int kHandOver = 77;

}  // namespace uffda
