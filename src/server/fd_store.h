// systemd's store of descriptors (sd_notify(3), FDSTORE=1): what a holder has outlives a planned restart of its
// service.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "server/activation.h"
#include "server/give.h"
#include "server/kept_state.h"
#include "uffda/result.h"

namespace uffda {

/// Whether somebody who stores descriptors started us, with a unit that has FileDescriptorStoreMax=.
[[nodiscard]] bool fd_store_there();

/// Stores every descriptor under its number, and returns when they have arrived. Errors: timed_out, and what the socket
/// said.
Result<void> store_all(const KeptState& state);

/// Takes out of the store what was passed from it: it must not come beside what has its number the next time. Errors:
/// timed_out, and what the socket said.
Result<void> forget_stored(std::span<const std::string> names);

struct StoredDescriptor {
  int number;  ///< where it was when it was stored
  int fd;      ///< where it is now
  bool is_memory;
};
/// What was stored among what was passed. Pure. Errors: protocol (a name that store_all gives to nothing).
Result<std::vector<StoredDescriptor>> parse_stored(const std::vector<PassedDescriptor>& passed);

/// What was stored, put where it was; nothing if there is none. It is in the store as well, for the case that we do not
/// come to serve. Errors: as place_all.
Result<std::optional<Taken>> take_stored(int ready_fd);

}  // namespace uffda
