// Memory types that others add: modules.
#pragma once

#include <functional>
#include <memory>

#include "mm/memory_type.h"

namespace uffda {

/// From now on register_builtin_types() registers what `make` returns, too. Threads: any. Errors: invalid_argument (a
/// table that contradicts itself), already_exists (the name of another one, built in or added).
Result<void> add_memory_type(std::function<std::unique_ptr<MemoryType>()> make);

/// Registers what was added. Threads: any.
Result<void> register_added_types(MemoryTypes& types);

}  // namespace uffda
