// `uffda mount`: shows a source as a file to every program, without exec.
#pragma once

#include <string>
#include <vector>

#include "exec/resolved_map.h"
#include "uffda/result.h"

namespace uffda {

struct MountOptions {
  std::string path;    // where; need not exist
  std::string source;  // a source's URI, or with `server_socket` the name of an export
  MapMode mode = MapMode::read_only;
  std::string server_socket;  // empty: start a server
  std::vector<std::string> server_arguments;
};

/// Mounts and serves until SIGINT, SIGTERM, SIGHUP, or until somebody unmounts PATH; then unmounts. Programs that still
/// have the file open lose it (EIO). Needs root, or fusermount3 and a PATH that the caller may write. Prints one line
/// when PATH is there. Returns the exit status: 0, or 1 if the server died. Call it before the process has threads.
/// Errors: nothing was mounted, and the text says why.
Result<int> run_mount(const MountOptions& options);

}  // namespace uffda
