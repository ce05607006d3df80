// How many neighbours to map with a faulting folio: a pure decision.
//
// Mapping a run costs far less than a fault a folio, but a run that nobody touches costs time in the fault that maps
// it. So a fault maps one folio, unless it comes near the end of what an earlier fault mapped: then that stream's
// window doubles. A scan soon maps 2 MiB a fault. Faults that follow no stream are given neighbours where they come in
// clusters (fault_clusters.h); a random reader never pays for any.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "mm/fault_clusters.h"
#include "uffda/units.h"

namespace uffda {

/// A run of faults that follow each other, packed so that loops on several CPUs can share it without a lock. A lost
/// update costs a smaller window, never a wrong page.
struct FaultStream {
  FolioIndex edge = 0;       ///< the first folio after (forward) or before (backward) what was mapped last
  unsigned window_log2 = 0;  ///< folios to map at the next fault near the edge
  bool backward = false;

  [[nodiscard]] std::uint64_t pack() const;
  static FaultStream unpack(std::uint64_t packed);
};

struct FaultAroundDecision {
  FolioRange window;   ///< candidates; those of them that are cached next to the fault are mapped
  FaultStream stream;  ///< the stream as it is after this fault
};

inline constexpr unsigned kMaxAroundLog2 = 9;  ///< 512 folios, 2 MiB of 4 KiB folios
inline constexpr std::uint64_t kStreamReach = 16;

/// Whether a fault at `index` continues `stream`.
bool continues(const FaultStream& stream, FolioIndex index);

/// What to map for a fault at `index`, which continues `stream` (or starts anew if `stream` is null), in an object of
/// `folios`.
FaultAroundDecision fault_around(const FaultStream* stream, FolioIndex index, std::uint64_t folios);

/// The last few streams of one mapping. Threads: any.
class FaultStreams {
 public:
  /// `clusters`: whether what follows no stream may be given neighbours, too.
  FolioRange decide(FolioIndex index, std::uint64_t folios, bool clusters);

 private:
  static constexpr std::size_t kStreams = 4;
  std::array<std::atomic<std::uint64_t>, kStreams> streams_{};
  std::atomic<std::uint32_t> victim_{0};
  FaultClusters clusters_;
};

}  // namespace uffda
