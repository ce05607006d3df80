// What `uffda probe` prints.
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
  UffdModes modes;
  UffdIoctls ioctls;
};

/// The registry's types.
std::vector<OfferedType> offered_types();

std::string probe_text(const os::Probe& probe, const std::vector<OfferedType>& types);
std::string probe_json(const os::Probe& probe, const std::vector<OfferedType>& types);

/// "copy", "zeropage", ... in the order of their bits.
std::vector<std::string> names_of(UffdIoctls ioctls);
std::vector<std::string> names_of(UffdModes modes);

}  // namespace uffda::cli
