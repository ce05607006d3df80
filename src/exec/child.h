// The child of the supervisor, from fork to exec of the user's program.
#pragma once

#include <csignal>
#include <string>
#include <vector>

#include "exec/channel.h"
#include "exec/resolved_map.h"

namespace uffda::exec {

enum class Namespace : bool {
  own,    // mount in a namespace of our own
  plain,  // the host mounts for everybody
};

struct ChildSetup {
  Namespace where = Namespace::own;
  const std::vector<ResolvedMap>* maps = nullptr;
  std::string relay_socket;  // empty: no shim
  std::string shim;          // path of libuffda-shim.so
  std::vector<std::string> program;
  sigset_t signal_mask{};  // to restore
};

/// `host` is the channel to the host, used in Namespace::own. Never returns: becomes the program, or ends with 127 (not
/// found) or 126 (cannot be run) after a message, or with 125 after it told the host why it could not mount.
[[noreturn]] void become_program(const ChildSetup& setup, int host);

/// libuffda-shim.so beside the running command or in ../lib/uffda of it; empty if it is in neither place.
std::string find_shim();

}  // namespace uffda::exec
