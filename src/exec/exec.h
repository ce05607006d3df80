// `uffda exec`: runs an unmodified program to which PATH is memory that uffda serves.
//
// Four processes:
//
//   supervisor  the process that the user started. It forks the others, waits for the program, passes signals on, and
//   ends as the
//               program ended (same exit status, or killed by the same signal). It does nothing else, so nothing else
//               can hurt it.
//   program     the child that becomes the user's program. Before that it makes a mount namespace of its own (as root;
//   otherwise
//               inside a new user namespace), mounts /dev/fuse on every PATH, and sends the devices to the host.
//   host        serves the FUSE files, relays what the preloaded shim says to the server, keeps a copy of every
//   userfaultfd, and when
//               the server dies answers every fault with SIGBUS. It lives until the last process that can see PATH is
//               gone (then the kernel ends the FUSE sessions), which may be after the program: a daemon that the
//               program left behind keeps being served while the supervisor has long returned the program's status.
//   server      `uffda serve`, a child of the host; absent with --server, where one exists already.
//
// Where no namespace can be made (containers), the host mounts through fusermount3 on PATH for everybody, and unmounts
// at the end. Where PATH cannot be made, the file is mounted in the host's directory and the name rewritten
// (exec/rewriting.h).
//
//   supervisor            host                              program
//   fork ---------------> server, relay, placeholders
//       <---- kReady ----
//   fork ------------------------------------------------> namespace, mounts
//                          <---- devices (or why not) ----
//       <---- kStarted --- serves
//                          ---- kGo --------------------->  stat, environment, exec
//   waits; signals ------------------------------------->  runs ... ends
//       ---- kEnded ----->  stores what was written
//       <---- kStored ----
//       <---- kDone ------ (or the supervisor waits no longer: somebody still uses PATH)
#pragma once

#include <string>
#include <vector>

#include "exec/resolved_map.h"
#include "uffda/result.h"

namespace uffda {

/// One PATH and what it shows.
struct ExecMap {
  std::string path;    // need not exist; made absolute, symbolic links resolved
  std::string source;  // a source's URI, or with `server_socket` the name of an export
  MapMode mode = MapMode::read_only;
};

enum class OnError : bool {
  poison,  // a range that cannot be had raises SIGBUS (EIO in system calls), the rest keeps working
  kill,    // the program is killed at the first such range
};

struct ExecOptions {
  std::vector<ExecMap> maps;
  std::string server_socket;  // empty: start a server for this program
  OnError on_error = OnError::poison;
  bool preload = true;  // false: no shim, every mapping goes through FUSE
  std::string report_file;
  std::vector<std::string> server_arguments;  // passed on to the server that is started
  std::vector<std::string> program;           // argv
};

/// Runs a program and returns its exit status: 127 if it was not found, 126 if it could not be run. If a signal killed
/// the program, this process kills itself by the same one. Call it before the process has threads. Errors: the program
/// was not started, and the text says why and what to do: invalid_argument (the options), permission_denied, not_found,
/// gone (no server), io.
Result<int> run_exec(const ExecOptions& options);

/// Exit status of `uffda exec` for an Error of run_exec.
int exit_status_of(const Error& error);

}  // namespace uffda
