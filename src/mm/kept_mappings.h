// How a mapping is written down, and found again by a successor.
#pragma once

#include "mm/address_space.h"
#include "mm/kept_space.h"

namespace uffda {

MappingRecord record_of(const Mapping& mapping);

}  // namespace uffda
