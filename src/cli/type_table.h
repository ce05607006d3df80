// Memory types: what the running kernel registers, beside what uffda offers, with the reason for each difference.
#pragma once

#include <string>
#include <vector>

#include "os/probe.h"
#include "uffda/uffd_ops.h"
#include "uffda/units.h"

namespace uffda::cli {

/// One of uffda's own memory types.
struct OfferedType {
  std::string name;
  ByteCount folio_size;
  UffdOps ops;
};

/// The registry's types.
std::vector<OfferedType> offered_types();

/// A mode ("missing", "minor", "wp", "wp-async") or an ioctl ("copy", ...) of one kind of memory.
struct Item {
  std::string name;
  bool kernel = false;
  bool uffda = false;
  std::string reason;  ///< why they differ; empty if they do not
};

/// One kind of memory, under the kernel and under uffda.
struct Comparison {
  os::MemoryCheck kernel;
  std::string type;         ///< uffda's type for this memory; empty: there is none
  std::string why_no_type;  ///< then
  std::vector<Item> items;  ///< the modes, then the ioctls; those of the kernel are no where nothing could be mapped
};

std::vector<Comparison> compare(const std::vector<os::MemoryCheck>& memory, const std::vector<OfferedType>& types);

/// "copy", "zeropage", ... in the order of their bits.
std::vector<std::string> names_of(UffdIoctls ioctls);
std::vector<std::string> names_of(UffdModes modes);

}  // namespace uffda::cli
