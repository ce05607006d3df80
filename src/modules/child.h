// The process of an isolated module: it loads the module and does what the host asks for over a socket.
#pragma once

#include <functional>
#include <string>

#include "uffda/result.h"

namespace uffda::modules {

/// Serves the host until it is gone; the exit status. `confine` gives up what a module may not do, before the module's
/// file is opened. Descriptors kChildSocket and kChildStaging are the host's.
int run_isolated_module(const std::string& file, const std::function<Result<void>()>& confine);

}  // namespace uffda::modules
