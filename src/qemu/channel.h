// The two ends that uffda meets a QEMU by: its monitor, and the stream of a migration, which is passed to it as a
// descriptor, so that no path and no shell is needed.
#pragma once

#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "os/fd.h"
#include "qemu/qmp.h"
#include "uffda/result.h"
#include "uffda/units.h"

namespace uffda::qemu {

/// Makes a socket pair, and gives QEMU one end under that name. Our end. Errors: as Qmp::execute.
Result<os::UniqueFd> give_end(Qmp& qmp, const std::string& name);
/// The same, and has `command` (migrate, migrate-incoming, migrate-recover) use it.
Result<os::UniqueFd> open_stream(Qmp& qmp, const std::string& command);

/// Errors: unsupported, if the machine has a capability on with which nothing can be saved or restored; names it and
/// what to change.
Result<void> check_capabilities(Qmp& qmp, const std::vector<std::string>& may_be_on);
/// The same of what query-migrate-capabilities says. Pure.
Result<void> refuse_capabilities(const nlohmann::json& capabilities, const std::vector<std::string>& may_be_on);

/// What `info ramblock` says of the size of each block's pages: `pc.ram    4 KiB  0x0000...`. A line with a size that
/// no page has is passed over. Pure.
[[nodiscard]] std::map<std::string, ByteCount> parse_page_sizes(const std::string& table);

/// What query-migrate says: the state of the migration, and why it failed in QEMU's words.
struct MigrationState {
  std::string status;  ///< none, setup, active, completed, failed, postcopy-active, postcopy-paused ...
  std::string error;
};
Result<MigrationState> migration_state(Qmp& qmp);
/// Waits until the migration has that status. Errors: io (it failed; QEMU's words), timed_out (after 30 s).
Result<void> wait_for_migration(Qmp& qmp, std::string_view status);

}  // namespace uffda::qemu
