// What `uffda exec --report FILE` writes.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "exec/resolved_map.h"
#include "fuse/file_host.h"
#include "uffda/deadline.h"
#include "uffda/result.h"

namespace uffda::exec {

struct ExecFacts {
  std::vector<std::string> program;
  std::optional<int> wait_status;  // nothing: not known, the supervisor was killed
  Duration elapsed{};
  std::vector<ResolvedMap> maps;
  std::vector<fuse::FileCounts> counts;  // one for each map
  std::size_t address_spaces = 0;        // that were handed over, children included
  bool server_died = false;
};

/// The server's counts with the field "exec" added, written beside `file` and renamed to it, so that no reader sees
/// half of it. `server` is the JSON of the server, if it could still be asked. Errors: what the file system said.
Result<void> write_report(const std::string& file, const std::optional<std::string>& server, const ExecFacts& facts);

}  // namespace uffda::exec
