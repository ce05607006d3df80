// The world of the simulated kernel: its userfaultfd, and threads that are fibers. Only in a simulated run.
#pragma once

#include "conformance/script.h"
#include "sim/kernel.h"

namespace uffda::conformance {

/// Runs it in a simulated run of its own.
std::vector<std::string> run_simulated(const Script& script, const Kind& kind);

}  // namespace uffda::conformance
