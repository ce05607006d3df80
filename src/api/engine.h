// What an Engine is made of.
#pragma once

#include <memory>
#include <optional>

#include "mm/address_space.h"
#include "mm/core.h"
#include "mm/fault_loop.h"
#include "mm/inline_faults.h"
#include "uffda/uffda.h"

namespace uffda {

// Members are destroyed from the last to the first: readers, address space, core.
struct Engine::Impl {
  std::shared_ptr<Core> core;
  std::shared_ptr<AddressSpace> space;
  std::unique_ptr<FaultLoop> loop;
  std::unique_ptr<InlineFaults> inline_faults;
  std::optional<UffdFeatures> monitors;  ///< what a Userfault of it may ask for
};

}  // namespace uffda
