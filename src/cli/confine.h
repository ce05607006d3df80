// What a process that runs an isolated module gives up.
#pragma once

#include "uffda/result.h"

namespace uffda::cli {

/// From now on this process has a list of system calls that it may make: it can read files, use memory, threads and the
/// descriptors that it has. It cannot open files for writing, make sockets, start programs or processes, touch others
/// or change what it is. What is not on the list fails with EPERM. For all its threads, for good. Errors: unsupported.
Result<void> confine();

}  // namespace uffda::cli
