// Memory types of the tests' own.
#pragma once

#include <memory>
#include <string>

#include "mm/memory_type.h"

namespace uffda::test {

/// A memfd with a table that only says what it can do: CONTINUE goes through fault() with
/// FaultFlag::userfault_continue.
std::unique_ptr<MemoryType> make_attributes_only_type();
inline constexpr const char* kAttributesOnly = "attributes-only";

/// The same memory with whatever table.
std::unique_ptr<MemoryType> make_type(std::string name, const UffdOps& ops);
std::unique_ptr<MemoryType> make_type_without_ops(std::string name);

}  // namespace uffda::test
