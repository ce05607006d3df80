// In which order a machine's pages are sent that nobody has asked for: what was recorded first, then everything. Pure.
//
// Pages are counted through all blocks: a unit is a page of the memory behind its block, so much as is placed at once.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "qemu/stream.h"
#include "uffda/page_source.h"
#include "uffda/units.h"

namespace uffda::qemu {

using UnitIndex = std::uint64_t;

/// Which units belong to which block.
class Units {
 public:
  explicit Units(std::span<const RamBlock> blocks);

  struct Place {
    std::size_t block;
    ByteOffset offset;  ///< in the block
  };
  [[nodiscard]] UnitIndex count() const { return first_.back(); }
  /// Requires: unit < count().
  [[nodiscard]] Place place(UnitIndex unit) const;
  /// The unit of a byte of a block. Requires: the offset lies within the block.
  [[nodiscard]] UnitIndex at(std::size_t block, ByteOffset offset) const;
  [[nodiscard]] ByteCount size(std::size_t block) const { return {std::uint64_t{1} << shift_[block]}; }
  /// The first unit that is not of this block.
  [[nodiscard]] UnitIndex end(std::size_t block) const { return first_[block + 1]; }

 private:
  std::vector<UnitIndex> first_;  // of each block, and the end of the last
  std::vector<unsigned> shift_;
};

/// Units that follow each other.
struct PushRun {
  UnitIndex first = 0;
  UnitIndex count = 0;
  bool zero = false;  ///< known to be zeroes: need not be fetched
  bool operator==(const PushRun&) const = default;
};

/// The units of a block that the bytes [begin, begin + range.length) of it touch; zeroes only where a whole unit is.
/// Requires: the range lies within the block.
PushRun units_of(const Units& units, std::size_t block, ByteRange range, Extent::Kind kind);

}  // namespace uffda::qemu
