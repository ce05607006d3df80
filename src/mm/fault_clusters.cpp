#include "mm/fault_clusters.h"

#include <algorithm>

namespace uffda {

std::uint64_t FaultClusters::note(FolioIndex index) {
  constexpr std::array<std::uint64_t, 3> kAround{4, 8, kMostAround};  // by the faults that were there before
  constexpr unsigned kCountBits = 8;
  const std::uint64_t block = index / kBlock;
  std::atomic<std::uint64_t>& slot = blocks_.at(block % kBlocks);
  const std::uint64_t before = slot.load(std::memory_order_relaxed);
  const bool known = before >> kCountBits == block + 1;
  const std::uint64_t faults = known ? before & ((1U << kCountBits) - 1) : 0;
  slot.store((block + 1) << kCountBits | std::min(faults + 1, kAround.size() - 1), std::memory_order_relaxed);

  std::uint32_t share = share_.load(std::memory_order_relaxed);
  share = share - share / kMemory + (known ? kAll / kMemory : 0);
  share_.store(share, std::memory_order_relaxed);
  return share < kShown ? 1 : kAround.at(faults);
}

FolioRange group_of(FolioIndex index, std::uint64_t count, std::uint64_t folios) {
  const FolioIndex first = align_down(index, count);
  return {.first = first, .count = std::min(count, folios - first)};
}

}  // namespace uffda
