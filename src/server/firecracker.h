// A VM that Firecracker restores: one message (firecracker_handshake.h) with its userfaultfd, and never another.
//
// Firecracker does not wait for an answer and does not connect again, but it keeps a copy of its userfaultfd: a VM that
// nobody serves stands still, and can be served later. So the message is looked at and left in the socket's queue until
// the VM is taken and, where there is a holder, kept. A server that is killed before leaves the whole connection to its
// successor (KeptState::unanswered), which starts from the beginning; what was taken already is known by its token.
#pragma once

#include "server/service.h"
#include "uffda/result.h"

namespace uffda::firecracker {

/// Takes the VM at the other end of a connected stream socket, and serves it from now on with the server's one export.
/// `kept`: what outlives this server, or null. Waits for the message, 10 s at most. Errors: timed_out, gone and
/// protocol (what arrived is no handshake), invalid_argument and out_of_range (the export is another memory than the
/// VM's), no_memory (a limit).
Result<void> take_vm(Service& service, const KeptState* kept, int socket);

}  // namespace uffda::firecracker
