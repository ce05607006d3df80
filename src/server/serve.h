// `uffda serve`: named exports on a UNIX socket, for clients of the handoff protocol (docs/protocols/handoff.md), and
// on another one for Firecracker (docs/protocols/firecracker.md).
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "server/activation.h"
#include "server/attach.h"
#include "server/exports.h"
#include "uffda/deadline.h"
#include "uffda/result.h"
#include "uffda/units.h"

namespace uffda {

/// What is served, to whom, and how much of it. Every limit of the server is here, with its default.
struct ServeOptions {
  std::vector<ExportSpec> exports;  ///< at least one; names differ
  std::string socket_path;  ///< in a directory that exists; a dead server's socket is replaced, a live one's is not;
                            ///< empty: none, which needs a firecracker_path or an attachment
  std::string firecracker_path;      ///< where VMs of Firecracker connect, which get the one export; empty: nowhere
  std::vector<PassedSocket> passed;  ///< sockets that a service manager listens on; their paths are above, and stay
  std::shared_ptr<const Attachment> attachment;  ///< a process that is served from the start; null: none
  int ready_fd = -1;                             ///< gets "ready\n" and is closed when clients can connect
  bool until_idle = false;  ///< end once the last watcher (or the attachment) has gone and no address space is left
  bool quiet = false;       ///< say nothing at the start (with a ready_fd nothing is said either)
  bool holder = false;      ///< a process beside it starts it again when it is killed, with what it had
  bool takeover = false;    ///< takes over from the server at socket_path, which has a holder; needs `holder`
  std::string report_path;  ///< JSON at the end; empty: none
  std::vector<uid_t> allow_uids;     ///< users who may connect, beside our own
  std::vector<std::string> modules;  ///< files to load before the sources are opened
  bool isolate_modules = false;      ///< each in a process of its own

  std::string record_path;    ///< what is touched, in order, is written there; empty: not recorded
  std::string prefetch_path;  ///< a file of such a record, fetched in the background; empty: what a source has of it
  bool prefetch = true;       ///< false: not even that
  bool populate = false;      ///< everything is fetched in the background
  ByteCount populate_rate{};  ///< bytes a second; 0: as fast as it goes

  ByteCount budget{};                             ///< of the page cache; 0: half of the machine's memory
  Duration warn_after = std::chrono::seconds(5);  ///< a source that takes longer is reported
  Duration deadline = std::chrono::seconds(30);   ///< a source that takes longer has failed
  std::size_t max_clients = 64;                   ///< attached address spaces, children by fork not counted
  std::size_t max_connections = 256;
  std::size_t max_mappings = 65'536;  ///< of one address space
};

/// With `holder` the caller becomes the holder, and servers return from this call, too: each is a process that ends
/// with the status that it gets. Serves until SIGTERM, SIGINT or (until_idle) nobody is left; a second signal ends the
/// process at once. Returns the exit status. Errors: invalid_argument (an option is wrong; the message names it), busy
/// (a server listens at that path), and what opening a source said. Requires: called before the process has other
/// threads, which would get the signals.
Result<int> run_serve(ServeOptions options);

}  // namespace uffda
