// Limits of a server that a command starts.
#pragma once

#include <optional>

#include "uffda/deadline.h"
#include "uffda/units.h"

namespace uffda {
struct ServeOptions;
}

namespace uffda::cli {

/// What is absent has the server's default.
struct Limits {
  std::optional<ByteCount> budget;
  std::optional<Duration> deadline;
  std::optional<Duration> warn_after;
};

void set_limits(ServeOptions& options, const Limits& limits);

}  // namespace uffda::cli
