// Who serves the guest's memory: two protocols, the same guest.
#pragma once

#include <cstdint>
#include <string>

#include "memory.h"

/// The guest's memory, and what has to stay open: when the last descriptor of a userfaultfd is closed, the kernel makes
/// zeroes of what is absent.
struct Restored {
  GuestMemory memory;
  int userfault = -1;
};

/// Firecracker's: memory of our own, into which the server copies (docs/protocols/firecracker.md).
Restored restore_firecracker(const std::string& socket, std::uint64_t size, Kind kind, Pages pages);

/// uffda's own: the server's page cache, mapped privately. Clones share what none of them has written
/// (docs/protocols/handoff.md).
Restored restore_handoff(const std::string& socket, const std::string& name);
