// Whether random faults come in clusters, and how many folios to take around one that does: a decision over the last
// blocks that faulted.
//
// A program that starts, or a guest that is restored, touches code, page tables and stacks: in no order, but close to
// each other. There every fault that is saved is worth several folios. A reader of random records touches nothing
// twice, and each folio that it did not ask for takes memory and time. So nobody is given neighbours before he has
// shown clusters: the share of his faults, lately, in a block of 128 KiB (of 4 KiB folios) where one of the last blocks
// lies. A random reader of 128 MiB shows 6 %, a guest 60 %. And it is few at first, more where more faults were.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "uffda/units.h"

namespace uffda {

/// Threads: any. A lost update costs a smaller window, never a wrong page.
class FaultClusters {
 public:
  static constexpr std::uint64_t kMostAround = 16;  ///< folios, 64 KiB of 4 KiB folios: what Linux takes around a fault

  /// Counts the fault at `index`. How many folios to take around it: the aligned ones that hold it. 1, 4, 8 or 16.
  std::uint64_t note(FolioIndex index);

 private:
  static constexpr std::uint64_t kBlock = 32;  // folios
  static constexpr std::size_t kBlocks = 64;   // of which it is known
  static constexpr std::uint32_t kAll = 4096;  // a share of 1
  static constexpr std::uint32_t kShown = kAll / 4;
  static constexpr std::uint32_t kMemory = 16;  // faults

  std::array<std::atomic<std::uint64_t>, kBlocks> blocks_{};  // its number plus one, and in the low byte its faults
  std::atomic<std::uint32_t> share_{0};                       // of the faults that lie in a block that is known
};

/// The folios of the aligned group of `count` that holds `index`, in an object of `folios`. Requires: count a power of
/// two, index < folios.
FolioRange group_of(FolioIndex index, std::uint64_t count, std::uint64_t folios);

}  // namespace uffda
