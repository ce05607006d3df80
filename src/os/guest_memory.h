// Memory that KVM makes for guests.
#pragma once

#include "os/fd.h"
#include "uffda/result.h"
#include "uffda/units.h"

namespace uffda::os {

/// Instead of the descriptor of a KVM machine: one is made for the purpose. The memory outlives it.
inline constexpr int kThrowAwayMachine = -1;

/// A guest_memfd of `size` bytes (whole pages) on the KVM machine `vm`, shared with the host, which can map it (only
/// MAP_SHARED). Errors: permission_denied (/dev/kvm), unsupported (what the kernel or the CPU lacks), invalid_argument
/// (`vm` is no machine), no_memory.
Result<UniqueFd> create_guest_memfd(ByteCount size, int vm);

}  // namespace uffda::os
