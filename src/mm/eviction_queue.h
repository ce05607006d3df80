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
// A block of neighbours goes on probation when that is shorter than its share of all: from `fresh` while that is longer
// than its share, else from `kept`. Whoever asked takes it out of the page tables. So what is read once passes `fresh`
// and `probation` and goes, and does not push out what is in use.
//
// Neighbours go together because unmapping costs a flush of every CPU's TLB, for one page as for all pages of a page
// table (docs/design/budget.md).
#pragma once

#include <cstdint>
#include <span>

#include "mm/folio_bits.h"
#include "os/memory.h"
#include "uffda/result.h"
#include "uffda/units.h"

namespace uffda {

/// A set of folios that goes first in, first out by blocks, and in a block by address: a folio that joins others of its
/// block goes with them.
class FolioQueue {
 public:
  /// For folios 0 to `folios`. Nothing is allocated later. Errors: no_memory.
  static Result<FolioQueue> create(std::uint64_t folios, std::uint64_t block_folios);
  FolioQueue() = default;  ///< of none

  /// None of `run` is in the queue.
  void push(FolioRange run);
  /// The next, out of the oldest block: at most `most` neighbours. Empty: there is none.
  FolioRange pop(std::uint64_t most);
  /// Takes the oldest block out, and calls `taken` with each run. All that lies between the first and the last.
  template <typename Taken>
  FolioRange pop_block(Taken&& taken);
  [[nodiscard]] std::uint64_t folios() const { return folios_; }

 private:
  struct Block {
    std::uint32_t next;    // the one after it; means nothing of the newest and of one that is not queued
    std::uint32_t folios;  // 0: not queued
  };
  FolioQueue(FolioBits bits, os::MappedMemory memory, std::uint64_t block_folios);

  FolioBits bits_;
  os::MappedMemory memory_;
  std::span<Block> blocks_;  // in it
  std::uint64_t block_folios_ = 1;
  std::uint64_t folios_ = 0;  // 0: none, and the next two mean nothing
  std::uint32_t oldest_ = 0;
  std::uint32_t newest_ = 0;
};

class EvictionQueue {
 public:
  /// For folios 0 to `folios`, of which about `most` are cached at once. Nothing is allocated later: folios become
  /// present in signal handlers, too. Errors: no_memory.
  static Result<EvictionQueue> create(std::uint64_t folios, std::uint64_t most);
  EvictionQueue() = default;  ///< of none

  /// Has become present. Each folio is in the queue once: that is the caller's business.
  void add(FolioRange run) { fresh_.push(run); }
  /// Was touched while on probation, or cannot go at the moment.
  void keep(FolioRange run) { kept_.push(run); }

  /// Moves the next block to probation, and calls `watched` with each run of it. What to take out of the page tables:
  /// all between the first and the last of them, though others of the block lie there that are not on probation. Empty
  /// if enough are there.
  template <typename Watched>
  FolioRange next_to_watch(Watched&& watched);
  struct Candidate {
    FolioRange run;            ///< empty: there is none
    bool was_watched = false;  ///< it was on probation: whether it was touched says something
  };
  /// The next that should go, taken out of the queue. At most `most` folios.
  Candidate next_to_go(std::uint64_t most);

  [[nodiscard]] std::uint64_t folios() const { return fresh_.folios() + probation_.folios() + kept_.folios(); }

 private:
  // Shares of all that is queued. Measured: bench/eviction, docs/design/budget.md.
  static constexpr std::uint64_t kFreshShare = 8;      // an eighth
  static constexpr std::uint64_t kProbationShare = 4;  // a quarter

  [[nodiscard]] FolioQueue& first_to_watch();

  FolioQueue fresh_;
  FolioQueue probation_;
  FolioQueue kept_;
};

template <typename Taken>
FolioRange FolioQueue::pop_block(Taken&& taken) {
  if (folios_ == 0) return {};
  FolioRange all;
  for (std::uint64_t left = blocks_[oldest_].folios; left != 0;) {
    const FolioRange run = pop(left);
    left -= run.count;
    if (all.empty()) all.first = run.first;
    all.count = run.end() - all.first;
    taken(run);
  }
  return all;
}

template <typename Watched>
FolioRange EvictionQueue::next_to_watch(Watched&& watched) {
  if (probation_.folios() >= folios() / kProbationShare) return {};
  return first_to_watch().pop_block([&](FolioRange run) {
    probation_.push(run);
    watched(run);
  });
}

}  // namespace uffda
