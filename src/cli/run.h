// The uffda command: runs what the command line asked for.
#pragma once

#include <string>
#include <vector>

#include "cli/command_line.h"

namespace uffda::cli {

/// The limits, modules and fills as arguments for a server that another command starts.
std::vector<std::string> server_arguments(const Limits& limits, const Modules& modules, const Fill& fill = {});

/// Runs it and returns the exit status: 0; 1 a failure; 2 the command line is wrong; of `exec` the program's own.
/// Call it before the process has threads.
int run(const std::vector<std::string>& arguments);

}  // namespace uffda::cli
