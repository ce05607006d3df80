// Which folios of an object that is written back were written since somebody asked last.
//
//   a write   the folio is pinned; noted here, also if it is Dirty already; only then its protection goes; unpinned
//   collect   its bit is taken; then, when nobody has it pinned, it is protected again wherever it is mapped
//
// So a write that happens after the protection is noted anew, and one before it is in the answer. Who has the folio
// pinned may have noted his write before the bit was taken, and take the protection away afterwards: that is waited
// for. A folio that somebody always has pinned stays noted, and is in the next answer as well.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "uffda/deadline.h"
#include "uffda/result.h"
#include "uffda/units.h"

namespace uffda {

class MemoryObject;

/// Threads: any; who collects is one at a time.
class WriteLog {
 public:
  explicit WriteLog(MemoryObject& object);

  /// The folio, pinned, is about to be written to. Neither waits nor allocates.
  void note(FolioIndex index) noexcept {
    words_[index / kBits].fetch_or(std::uint64_t{1} << index % kBits, std::memory_order_acq_rel);
  }
  /// Called when note() is, from now on: nothing counts as written. What somebody is about to write may. Errors:
  /// timed_out.
  Result<void> start(Deadline deadline);
  /// What was written since the last call, ascending, no two of them adjoin. A write that happens during the call is
  /// in this answer or in the next. Errors: timed_out (an address space could not be kept from writing); nothing is
  /// forgotten then.
  Result<std::vector<FolioRange>> collect(Deadline deadline);
  /// The same without starting anew.
  [[nodiscard]] std::vector<FolioRange> peek() const;

 private:
  static constexpr unsigned kBits = 64;
  [[nodiscard]] bool stays_pinned(FolioIndex index) const;
  Result<void> protect_again(FolioRange run, Deadline deadline);
  void note_all(const std::vector<FolioRange>& ranges) noexcept;

  MemoryObject& object_;
  std::vector<std::atomic<std::uint64_t>> words_;
};

}  // namespace uffda
