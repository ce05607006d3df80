// The name under which the server's parts and the supervisor know an owned descriptor.
#pragma once

#include "os/fd.h"

namespace uffda {

using OwnedFd = os::UniqueFd;

}  // namespace uffda
