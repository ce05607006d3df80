// The core: everything that the objects and address spaces of one pager share.
//
//   kernel uffd_msg -> FaultLoop -> AddressSpace::handle_fault -> Mapping -> MemoryObject
//     1 find_folio(index): a present folio, pinned                      -> map it with its cached neighbours
//     (UFFDIO_CONTINUE), unpin 2 poisoned                                                        -> UFFDIO_POISON 3
//     absent -> MemoryType::fault -> MemoryObject::fault_in           -> claim a range in the request table, ask the
//     source 4 PageSource answers -> MemoryObject::fetched                     -> publish by one write, mark clean,
//     tell the waiters 5 AddressSpace::folios_news                                       -> map the range, wake
//   No lock is held from 3 to 5; after a wait everything starts again from 1.
//
// Whatever cannot be resolved right now (EAGAIN while an event is pending, no buffer, a folio that is being evicted) is
// parked in one place: wake_later(). A wake makes the kernel send the fault again, so a parked fault needs no state of
// its own and is never lost.
//
// Lock order, outermost first; none is held across a wait or a call out, except as said:
//   1 AddressSpace::lock_      shared from a state check to the return of the ioctl that follows (pitfall 11)
//   2 MemoryObject::mutex_     request table, read-ahead
//   3 AddressSpace::unknown_mutex_, MemoryObject::queue_mutex_, Writeback::mutex_,
//     Core::evicted_mutex_, Core::objects_mutex_, Core::parked_mutex_, StagingPool's
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "base/thread.h"
#include "mm/budget.h"
#include "mm/memory_type.h"
#include "mm/staging.h"
#include "mm/stats.h"
#include "os/fd.h"
#include "uffda/deadline.h"
#include "uffda/page_source.h"
#include "uffda/result.h"
#include "uffda/units.h"

namespace uffda {

class AddressSpace;
class MemoryObject;

/// What a dead server left of an object: the descriptors of its page cache and of its states.
struct KeptFolios {
  os::UniqueFd cache;
  os::UniqueFd states;
};

/// How a successor finds an object again, and what it found.
struct Successor {
  std::uint32_t number = 0;
  std::optional<KeptFolios> kept;
};

/// Limits, each with its default.
struct CoreOptions {
  ByteCount budget{};  ///< of cached folios and those being fetched, all objects together; 0: half of the memory
  Duration warn_after = std::chrono::seconds(5);  ///< a fetch that takes longer is reported
  Duration deadline = std::chrono::seconds(30);   ///< a fetch that takes longer is failed: SIGBUS for who waits
};

/// What an operator should hear: a range that could not be had.
struct SourceFailure {
  std::string object;
  ByteRange range;
  Error error;
};

/// Outlives its objects and address spaces.
class Core {
 public:
  /// Errors: no_memory.
  static Result<std::shared_ptr<Core>> create(const CoreOptions& options);
  ~Core();
  Core(const Core&) = delete;
  Core& operator=(const Core&) = delete;

  [[nodiscard]] const CoreOptions& options() const { return options_; }
  [[nodiscard]] StagingPool& staging() { return staging_; }
  [[nodiscard]] Stats& stats() { return stats_; }
  /// Types are registered before the first object is made. Threads: not concurrently with other use.
  [[nodiscard]] MemoryTypes& types() { return types_; }

  /// An object of `type` ("shmem", or with options for the type: "guest_memfd?vm=5") whose contents come from `source`.
  /// Errors: not_found (type), invalid_argument (options), unsupported, no_memory.
  /// `budget`: of this object alone, within the whole's; 0: the whole's. `successor`: of a server that may die.
  Result<std::shared_ptr<MemoryObject>> create_object(std::unique_ptr<PageSource> source,
                                                      std::string_view type = "shmem", ByteCount budget = {},
                                                      OpenFor what_for = OpenFor::reading, Successor successor = {});

  /// Wakes [start, start + length) of `space` about a millisecond from now, so that unresolved faults there come again.
  /// Threads: any.
  void wake_later(std::weak_ptr<AddressSpace> space, Address start, ByteCount length);

  /// Called for every range that is poisoned, from any thread, with no lock held. Set before the first object is made.
  void on_source_failure(std::function<void(const SourceFailure&)> hook) { failure_hook_ = std::move(hook); }
  void report_failure(const SourceFailure& failure) const;

  /// Of cached folios that can be had again, and of those that are being fetched. Never exceeded.
  [[nodiscard]] Budget& budget() { return budget_; }
  [[nodiscard]] const Budget& budget() const { return budget_; }
  /// Cached bytes that cannot be evicted, which the budget does not hold: what a monitor supplied, what was written
  /// and is nowhere else, memory of types that raise no faults, and of private mappings of huge pages.
  [[nodiscard]] ByteCount apart() const { return {apart_.load(std::memory_order_relaxed)}; }
  void add_apart(ByteCount bytes) { apart_.fetch_add(bytes.value, std::memory_order_relaxed); }
  void remove_apart(ByteCount bytes) { apart_.fetch_sub(bytes.value, std::memory_order_relaxed); }
  [[nodiscard]] ByteCount resident() const { return budget_.used() + apart(); }
  /// Room is short: the evictor makes some, from where most is. Locks of the first two kinds may be held.
  void call_evictor();
  /// How often something was evicted.
  [[nodiscard]] std::uint64_t evictions();
  /// Returns when something was evicted since evictions() was `seen`, and at `until` at the latest. Called with no
  /// lock held.
  void wait_for_eviction(std::uint64_t seen, TimePoint until);

 private:
  /// An object that reclaim() takes from, and how much of its queue is not looked at yet.
  struct Victim {
    std::weak_ptr<MemoryObject> object;
    std::uint64_t folios = 0;
    std::uint64_t in_vain = 0;  ///< were looked at since one went
  };
  struct Parked {
    std::weak_ptr<AddressSpace> space;
    Address start;
    ByteCount length;
  };

  Core(const CoreOptions& options, StagingPool staging);
  static void end(Core* core);
  void run_housekeeping();
  void end_if_orphaned();
  void wake_parked();
  void check_deadlines();
  bool reclaim();
  void list_victims();
  Victim* largest_victim();
  bool evict_from(Victim& victim, MemoryObject& object);

  CoreOptions options_;
  StagingPool staging_;
  Stats stats_;
  MemoryTypes types_;
  std::function<void(const SourceFailure&)> failure_hook_;

  Budget budget_;
  std::atomic<std::uint64_t> apart_{0};
  Mutex evicted_mutex_;
  CondVar evicted_;
  std::uint64_t evictions_ UFFDA_GUARDED_BY(evicted_mutex_) = 0;
  std::vector<Victim> victims_;  // of the housekeeping thread alone

  Mutex objects_mutex_;
  std::vector<std::weak_ptr<MemoryObject>> objects_ UFFDA_GUARDED_BY(objects_mutex_);

  Mutex parked_mutex_;
  CondVar parked_changed_;
  std::vector<Parked> parked_ UFFDA_GUARDED_BY(parked_mutex_);
  bool evictor_called_ UFFDA_GUARDED_BY(parked_mutex_) = false;
  bool stopping_ UFFDA_GUARDED_BY(parked_mutex_) = false;
  bool orphaned_ UFFDA_GUARDED_BY(parked_mutex_) =
      false;  // the housekeeping thread dropped the last reference: it ends the core
  Thread housekeeping_;
};

}  // namespace uffda
