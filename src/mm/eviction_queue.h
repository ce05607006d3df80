// Which folios of an object go next: decisions only, without a lock, a folio or a system call.
//
// Two queues with second chance, as Linux has them for files, but with what a userfaultfd can see of use: nothing of a
// folio that is mapped, and the next touch (a MINOR fault) of one that was taken out of the page tables.
//
//                       its turn                    untouched at its end
//     add() --> fresh -----------> probation ------------------------------> next_to_go()
//                          .-----------^  |
//                 its turn |              | touched meanwhile: keep()
//                        kept <-----------'
//
// A run goes on probation when that is shorter than its share of all: from `fresh` while that is longer than its share,
// else from `kept`. Whoever asked takes it out of the page tables. So what is read once passes `fresh` and `probation`
// and goes, and does not push out what is in use.
#pragma once

#include <cstdint>
#include <span>

#include "os/memory.h"
#include "uffda/result.h"
#include "uffda/units.h"

namespace uffda {

class EvictionQueue {
 public:
  /// For folios 0 to `folios`. Nothing is allocated later: folios become present in signal handlers, too. Errors:
  /// no_memory.
  static Result<EvictionQueue> create(std::uint64_t folios);
  EvictionQueue() = default;  ///< of none

  /// Has become present. Each folio is in the queue once: that is the caller's business.
  void add(FolioRange run) { push(fresh_, run); }
  /// Was touched while on probation, or cannot go at the moment.
  void keep(FolioRange run) { push(kept_, run); }

  /// Moves the next run to probation, to be taken out of the page tables. Empty if enough are there.
  FolioRange next_to_watch();
  struct Candidate {
    FolioRange run;            ///< empty: there is none
    bool was_watched = false;  ///< it was on probation: whether it was touched says something
  };
  /// The next that should go, taken out of the queue. At most `most` folios.
  Candidate next_to_go(std::uint64_t most);

  [[nodiscard]] std::uint64_t folios() const { return fresh_.folios + probation_.folios + kept_.folios; }

 private:
  struct List {  // of runs, oldest first; each is known by its first folio
    FolioIndex oldest = 0;
    FolioIndex newest = 0;
    std::uint64_t folios = 0;  // 0: none, and the others mean nothing
  };
  /// What stands at the first folio of a run that is in a list.
  struct Link {
    std::uint64_t next;   // the run after it; means nothing of the newest
    std::uint64_t count;  // folios
  };
  void push(List& list, FolioRange run);
  FolioRange pop(List& list, std::uint64_t most);
  [[nodiscard]] List& first_to_watch();

  explicit EvictionQueue(os::MappedMemory memory);

  os::MappedMemory memory_;
  std::span<Link> links_;  // in it
  List fresh_;
  List probation_;
  List kept_;
};

}  // namespace uffda
