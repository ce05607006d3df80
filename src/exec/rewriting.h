// PATH where it does not exist and cannot be made: the FUSE file is mounted in the host's own directory, and the shim
// gives the calls that name PATH that name instead (preload/paths.h).
//
// It reaches programs that load the shim, and those only, so a static program is refused. Where a file exists at PATH
// and cannot be mounted on, nothing is rewritten: whoever the shim does not reach would read that file, and not know.
#pragma once

#include <string>
#include <vector>

#include "exec/exec.h"
#include "exec/resolved_map.h"
#include "uffda/result.h"

namespace uffda::exec {

/// Whether the name of `map`, mounted at map.mount_path, can be rewritten for the program of `options`. `why` says why
/// its PATH cannot be made, and what to do about that. Errors, with the advice of `why`: invalid_argument (a static
/// program); permission_denied (no shim is to be loaded or none is there, or the names cannot be told to it).
Result<void> check_rewriting(const ResolvedMap& map, const ExecOptions& options, const Error& why);

/// UFFDA_SHIM_PATHS for the maps that are mounted elsewhere, in front of `before`, the rules of an outer `uffda exec`
/// (nullptr: none). Empty: nothing is rewritten.
std::string rewriting_rules(const std::vector<ResolvedMap>& maps, const char* before);

}  // namespace uffda::exec
