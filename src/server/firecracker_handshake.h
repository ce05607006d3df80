// What Firecracker says when it restores a snapshot through a userfaultfd, once and without waiting for an answer: a
// JSON array with one object for each region of the guest's memory (docs/protocols/firecracker.md).
#pragma once

#include <cstddef>
#include <string_view>
#include <vector>

#include "uffda/result.h"
#include "uffda/units.h"

namespace uffda::firecracker {

/// Larger ones are refused: that is room for some 500 regions.
inline constexpr std::size_t kMaxHandshake = std::size_t{64} << 10U;

/// [start, start + length) of the VMM's memory shows the snapshot's memory from `offset` on.
struct Region {
  Address start;
  ByteCount length;
  ByteOffset offset;
};

struct Handshake {
  std::vector<Region> regions;  ///< at least one; by address, and none overlaps another
  ByteCount page_size;          ///< of all of them: 4 KiB or 2 MiB
};

/// Whether that is a JSON text to its end; a part of one is not.
[[nodiscard]] bool is_whole(std::string_view text);

/// Every version since 1.1: `page_size`, else `page_size_kib` (which is in bytes in spite of its name), else 4096.
/// Fields that are not known are ignored. Requires: at most kMaxHandshake bytes. Errors: protocol, with what is wrong
/// and where.
Result<Handshake> parse_handshake(std::string_view text);

}  // namespace uffda::firecracker
