// Sockets that a service manager listens on before the server starts (sd_listen_fds(3)): a first client starts it, and
// none is refused while it restarts.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "server/listener.h"
#include "uffda/result.h"

namespace uffda {

/// A descriptor that a service manager passed, and its name there.
struct PassedDescriptor {
  std::string_view name;
  int fd;  ///< from 3 on
};
/// What LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES say to process `self`; nothing if that is not for it. Of those
/// without a name only the first is told. Pure.
[[nodiscard]] std::vector<PassedDescriptor> passed_descriptors(pid_t self, std::string_view pid, std::string_view count,
                                                               std::string_view names);
/// The same of this process's environment. Called before there are threads.
[[nodiscard]] std::vector<PassedDescriptor> passed_descriptors();

/// A number and nothing else.
[[nodiscard]] std::optional<int> whole_number(std::string_view text);
/// Of the environment; empty if it is not set. Called before there are threads.
[[nodiscard]] std::string_view environment(const char* name);

struct PassedSocket {
  Protocol protocol;
  int fd;  ///< from 3 on
};
/// The sockets among them: FileDescriptorName= is the protocol, "handoff" or "firecracker"; what is stored (fd_store.h)
/// is passed over. Pure. Errors: not_found (nothing was passed), invalid_argument (a name is no protocol, or comes
/// twice).
Result<std::vector<PassedSocket>> parse_passed(const std::vector<PassedDescriptor>& passed);

/// Those of this process; each is a listening UNIX socket of its protocol's kind. Called before there are threads.
/// Errors: as parse_passed.
Result<std::vector<PassedSocket>> passed_sockets();

/// Where a listening UNIX socket is, or "a socket without a path".
[[nodiscard]] std::string path_of(int socket);

}  // namespace uffda
