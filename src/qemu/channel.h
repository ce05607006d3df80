// The two ends that uffda meets a QEMU by: its monitor, and the stream of a migration, which is passed to it as a
// descriptor, so that no path and no shell is needed.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "os/fd.h"
#include "qemu/qmp.h"
#include "uffda/result.h"

namespace uffda::qemu {

/// Makes a socket pair, and gives QEMU one end under that name. Our end. Errors: as Qmp::execute.
Result<os::UniqueFd> give_end(Qmp& qmp, const std::string& name);
/// The same, and has `command` (migrate, migrate-incoming, migrate-recover) use it.
Result<os::UniqueFd> open_stream(Qmp& qmp, const std::string& command);

/// Errors: unsupported, if the machine has a capability on with which nothing can be saved or restored; names it and
/// what to change.
Result<void> check_capabilities(Qmp& qmp, const std::vector<std::string>& may_be_on);

/// What query-migrate says: the state of the migration, and why it failed in QEMU's words.
struct MigrationState {
  std::string status;  ///< none, setup, active, completed, failed, postcopy-active, postcopy-paused ...
  std::string error;
};
Result<MigrationState> migration_state(Qmp& qmp);
/// Waits until the migration has that status. Errors: io (it failed; QEMU's words), timed_out (after 30 s).
Result<void> wait_for_migration(Qmp& qmp, std::string_view status);

}  // namespace uffda::qemu
