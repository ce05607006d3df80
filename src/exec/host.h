// The host process of `uffda exec` (exec.h says what it is for).
#pragma once

#include <string>
#include <vector>

#include "exec/exec.h"
#include "exec/resolved_map.h"
#include "os/fd.h"

namespace uffda::exec {

struct HostSetup {
  std::vector<ResolvedMap> maps;
  const ExecOptions* options = nullptr;
};

/// Runs in the child that the supervisor forked, with the host's ends of the channels to the supervisor and to the
/// program. kReady carries the path of the relay's socket. Ends the process.
[[noreturn]] void run_host(const HostSetup& setup, os::UniqueFd supervisor, os::UniqueFd program);

}  // namespace uffda::exec
