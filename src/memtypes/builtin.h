// The memory types that come with uffda.
#pragma once

#include <memory>

#include "mm/memory_type.h"

namespace uffda {

/// Private anonymous memory: no page cache, so nothing is shared, and contents go to who waits by COPY.
std::unique_ptr<MemoryType> make_anon_type();
/// A memfd: the page cache is shared by everybody who maps it; published by one write, mapped by CONTINUE.
std::unique_ptr<MemoryType> make_shmem_type();

/// Registers them all, and those that modules have added.
Result<void> register_builtin_types(MemoryTypes& types);

}  // namespace uffda
