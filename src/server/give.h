// How one holder gives all that it has to another one, by packets of the handoff protocol (kTakeover).
//
//   taker                         server, holder of the giver
//   Takeover            -->       server: stores what is dirty, answers and exits with kHandOver
//                       <--       holder: a Kept packet for each descriptor
//   (starts its server, which opens the sources)
//   Takeover            -->
//                       <--       holder: Takeover; it ends
//
// Until that last answer everything is the giver's: if the taker fails, the giver starts its server again.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "os/fd.h"
#include "server/kept_state.h"
#include "uffda/result.h"

namespace uffda {

/// The giver's side: returns when the taker has it all. Errors: gone, timed_out: it has not.
Result<void> give_all(KeptState& state);

struct Taken {
  std::shared_ptr<KeptState> state;
  os::UniqueFd giver;
  int ready_fd;                     ///< may have had to move
  std::vector<std::string> stored;  ///< what of it the service manager's store has, by its names there
};
/// What a holder has, put where it was in that one's descriptor table. `all`: by their numbers there.
using Descriptors = std::map<int, os::UniqueFd>;
Result<Taken> place_all(Descriptors all, int memory, os::UniqueFd giver, int ready_fd);

/// The taker's side: asks the server at `socket_path`, and puts every descriptor where it was there. Errors: gone (no
/// server), and what that one said.
Result<Taken> take_all(const std::string& socket_path, int ready_fd);
/// All is well with what was taken. Errors: gone (the giver went on without us).
Result<void> confirm_taken(int giver);

}  // namespace uffda
