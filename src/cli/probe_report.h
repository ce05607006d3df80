// What `uffda probe` prints.
#pragma once

#include <string>
#include <vector>

#include "cli/type_table.h"
#include "os/probe.h"

namespace uffda::cli {

std::string probe_text(const os::Probe& probe, const std::vector<OfferedType>& types);
std::string probe_json(const os::Probe& probe, const std::vector<OfferedType>& types);

}  // namespace uffda::cli
