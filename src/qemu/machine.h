// A stored machine, opened: its devices, and a memory object behind each block of RAM.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "mm/core.h"
#include "mm/memory_object.h"
#include "qemu/image.h"
#include "qemu/stream.h"
#include "uffda/result.h"

namespace uffda::qemu {

/// Where a machine is stored.
struct StoredMachine {
  std::string image;  ///< URI of all of it, as `uffda qemu save` makes it; or empty, and the other two are given:
  std::string state;  ///< a file: a migration stream of QEMU
  std::string ram;    ///< URI of the RAM that the stream leaves out (x-ignore-shared)
};

/// Pages of a block are the bytes of `object` from `place` on.
struct ServedBlock {
  RamBlock block;
  std::shared_ptr<MemoryObject> object;
  ByteOffset place;
};

struct Machine {
  MachineState state;
  std::vector<ServedBlock> blocks;
  /// Has most of the RAM: the one that working sets are recorded of.
  std::shared_ptr<MemoryObject> main;

  [[nodiscard]] std::vector<RamBlock> ram() const;
};

/// Errors: invalid_argument (it is no machine; --ram has another size than the block), unsupported (more than one block
/// is left out of the stream), and those of the sources.
Result<Machine> open_machine(Core& core, const StoredMachine& stored);

}  // namespace uffda::qemu
