// systemd's store of descriptors (sd_notify(3), FDSTORE=1): what a holder has outlives a planned restart of its
// service.
#pragma once

#include <optional>

#include "server/give.h"
#include "server/kept_state.h"
#include "uffda/result.h"

namespace uffda {

/// Whether somebody who stores descriptors started us, with a unit that has FileDescriptorStoreMax=.
[[nodiscard]] bool fd_store_there();

/// Stores every descriptor under its number, and returns when they have arrived. Errors: timed_out, and what the socket
/// said.
Result<void> store_all(const KeptState& state);

/// What was stored, put where it was; nothing if there is none. Errors: as place_all.
Result<std::optional<Taken>> take_stored(int ready_fd);

}  // namespace uffda
