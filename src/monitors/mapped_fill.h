// Fills what address spaces show of an object without a page cache, in a thread of its own: the bytes go straight into
// each of them. A child that is born meanwhile has its turn afterwards.
//
//   extents -> MemoryObject::prefetch -> the source -> folios_news -> AddressSpace::supply
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "mm/address_space.h"
#include "mm/memory_object.h"
#include "monitors/background_fill.h"
#include "uffda/background_fill.h"

namespace uffda {

using ListSpaces = std::function<std::vector<std::shared_ptr<AddressSpace>>()>;

/// All but what the source says is zero: that is left to faults. It is complete when every space that `spaces` lists
/// has everything; what could not be had is SIGBUS there, and counts as `left`. Takes most_in_flight and tell of the
/// options.
BackgroundFill fill_address_spaces(std::shared_ptr<MemoryObject> object, ListSpaces spaces, FillOptions options = {});

}  // namespace uffda
