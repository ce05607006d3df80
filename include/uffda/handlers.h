// Where the faults of this process are handled.
#pragma once

#include <cstdint>

namespace uffda {

/// Measured against each other by `make bench`; see docs/performance.md.
enum class HandlerPolicy : std::uint8_t {
  per_cpu,    ///< one pinned reader thread per CPU: the default
  one,        ///< one reader thread, anywhere
  spinning,   ///< one reader thread that polls for a while before it sleeps
  in_thread,  ///< no reader: the faulting thread resolves its own faults, by SIGBUS. The fastest, with limits: a system
              ///< call that is handed an absent page fails with EFAULT, a thread that blocks SIGBUS is killed by its
              ///< fault, and the process must leave SIGBUS to uffda
};

}  // namespace uffda
