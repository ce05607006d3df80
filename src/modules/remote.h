// Modules in a process of their own, as the host sees them.
#pragma once

#include <string>

#include "modules/ops.h"
#include "uffda/module.h"

namespace uffda::modules {

/// Starts the process of a module and asks what it has. The process ends with the last reference to what it offers. Its
/// death fails what is asked of it, then and later. Errors: as load_direct; gone (it died), timed_out, not_found (the
/// uffda command).
Result<Offers> load_remote(const std::string& path, const std::string& label, const ModuleOptions& options);

}  // namespace uffda::modules
