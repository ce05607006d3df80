// TCP sockets: connecting, listening, and whole messages with a deadline.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "os/fd.h"
#include "uffda/deadline.h"
#include "uffda/result.h"

namespace uffda::os {

/// A connection to a host (a name or an address) and port, close-on-exec and non-blocking. Errors: invalid_argument
/// (no such host), gone (nobody listens there), timed_out.
Result<UniqueFd> connect_tcp(const std::string& host, const std::string& port, Deadline deadline);
/// A listening socket, close-on-exec and non-blocking. Errors: invalid_argument, busy (the port is in use),
/// permission_denied.
Result<UniqueFd> listen_tcp(const std::string& host, const std::string& port);
/// The port that a socket listens at.
Result<unsigned> port_of(int socket);

/// All bytes, or an error. Threads: one at a time for each direction. Errors: gone (the peer closed), timed_out, io.
Result<void> send_all(int socket, std::span<const std::byte> bytes, Deadline deadline);
Result<void> receive_all(int socket, std::span<std::byte> bytes, Deadline deadline);

}  // namespace uffda::os
