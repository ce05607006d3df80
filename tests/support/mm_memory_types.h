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

/// The same type with its get_folio hook hidden: CONTINUE goes the other route. Its name ends in "-attributes".
std::unique_ptr<MemoryType> without_hook(std::unique_ptr<MemoryType> type);
/// Folios of 4 MiB, more than can be staged, of ordinary memory: they are filled in place.
std::unique_ptr<MemoryType> make_in_place_type();

/// The same memory with whatever table.
std::unique_ptr<MemoryType> make_type(std::string name, const UffdOps& ops);
std::unique_ptr<MemoryType> make_type_without_ops(std::string name);

}  // namespace uffda::test
