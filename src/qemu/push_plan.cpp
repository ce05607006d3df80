#include "qemu/push_plan.h"

#include <algorithm>
#include <bit>

namespace uffda::qemu {

Units::Units(std::span<const RamBlock> blocks) {
  UnitIndex next = 0;
  for (const RamBlock& block : blocks) {
    first_.push_back(next);
    shift_.push_back(static_cast<unsigned>(std::countr_zero(block.page_size.value)));
    next += block.length.value >> shift_.back();
  }
  first_.push_back(next);
}

Units::Place Units::place(UnitIndex unit) const {
  const auto after = std::ranges::upper_bound(first_, unit);
  const auto block = static_cast<std::size_t>(after - first_.begin()) - 1;
  return {.block = block, .offset = {(unit - first_[block]) << shift_[block]}};
}

UnitIndex Units::at(std::size_t block, ByteOffset offset) const {
  return first_[block] + (offset.value >> shift_[block]);
}

PushRun units_of(const Units& units, std::size_t block, ByteRange range, Extent::Kind kind) {
  const std::uint64_t size = units.size(block).value;
  const bool zero = kind == Extent::Kind::zero;
  // A unit that is zeroes in part is data.
  const std::uint64_t begin = zero ? align_up(range.start.value, size) : align_down(range.start.value, size);
  const std::uint64_t end = zero ? align_down(range.end().value, size) : align_up(range.end().value, size);
  if (begin >= end) return {.first = units.at(block, {align_down(begin, size)}), .count = 0, .zero = zero};
  return {.first = units.at(block, {begin}), .count = (end - begin) / size, .zero = zero};
}

}  // namespace uffda::qemu
