// What a server counted, for programs: one JSON object (its fields are listed in docs/protocols/handoff.md).
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "mm/core.h"
#include "server/address_spaces.h"
#include "server/exports.h"
#include "server/fills.h"
#include "uffda/result.h"

namespace uffda {

/// Who uses a server at the moment.
struct ServerCounts {
  std::size_t address_spaces = 0;
  std::size_t connections = 0;
  std::size_t watchers = 0;
};

/// The report as JSON text; a line break at the end. At most `max_bytes`: clients and exports that do not fit
/// are left out, and counted. Threads: any, while the server works; the numbers are each true at some moment of the
/// call.
std::string report_json(Core& core, const Exports& exports, const Fills& fills,
                        const std::vector<AddressSpaces::Client>& clients, const ServerCounts& counts,
                        std::size_t max_bytes);

/// Writes a file whole or not at all: under another name in the same directory first. Errors: what the file system
/// said.
Result<void> write_report(const std::string& path, const std::string& text);

}  // namespace uffda
