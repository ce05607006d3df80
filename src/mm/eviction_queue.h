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
#include <deque>

#include "uffda/units.h"

namespace uffda {

class EvictionQueue {
 public:
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
  struct List {
    std::deque<FolioRange> runs;  // oldest first
    std::uint64_t folios = 0;
  };
  static void push(List& list, FolioRange run);
  static FolioRange pop(List& list, std::uint64_t most);
  [[nodiscard]] List& first_to_watch();

  List fresh_;
  List probation_;
  List kept_;
};

}  // namespace uffda
