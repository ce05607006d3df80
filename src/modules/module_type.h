// A memory type that stands in a module.
#pragma once

#include <memory>
#include <string>

#include "mm/memory_type.h"
#include "modules/ops.h"

namespace uffda::modules {

/// The core's view of it. CONTINUE costs what it costs built-in types: nothing but publish and drop changes what is
/// cached, so the module is asked when it has published a folio, with a deadline and outside of any fault, and its
/// answer holds until the folio is dropped.
std::unique_ptr<MemoryType> make_module_type(std::shared_ptr<TypeKind> kind, std::string label, Duration deadline);

/// Memory of a module, for who has no core: the contract suite. As MemoryType::create.
struct ModuleMemory {
  std::shared_ptr<MemoryOps> ops;
  std::unique_ptr<Calls> calls;
};
Result<ModuleMemory> create_module_memory(const std::shared_ptr<TypeKind>& kind, const std::string& label,
                                          ByteCount size, const std::string& name, Duration deadline);

}  // namespace uffda::modules
