// Records the working set of an object: the first touch of each folio, in order and with its time.
//
// A bit for each folio says whether it was touched; a log of fixed room takes each run of folios that a touch finds
// new. A touch of what is known costs one look at the bits; a new one two atomic operations and two stores.
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "mm/folio_bits.h"
#include "mm/folio_observer.h"
#include "mm/memory_object.h"
#include "monitors/working_set.h"
#include "os/memory.h"

namespace uffda {

/// Threads: any. Give it to MemoryObject::observe.
class WorkingSetRecorder final : public FolioObserver {
 public:
  /// Room for `most_runs` runs. Errors: no_memory.
  static Result<std::shared_ptr<WorkingSetRecorder>> create(const MemoryObject& object, std::string name,
                                                            std::size_t most_runs = kMaxTouchedRuns);

  void touched(FolioRange folios) noexcept override;
  void evicted(FolioRange) noexcept override {}  // it was touched all the same

  /// What was recorded until now, runs that follow each other joined.
  [[nodiscard]] WorkingSet snapshot() const;
  /// Grows with every run: whether anything is new.
  [[nodiscard]] std::uint64_t runs() const { return next_.load(std::memory_order_relaxed); }

 private:
  /// Zero as long as it is not there: the time is stored last.
  struct Entry {
    std::atomic<std::uint64_t> first;
    std::atomic<std::uint32_t> count;
    std::atomic<std::uint32_t> at_ms_plus_1;
  };

  WorkingSetRecorder(WorkingSet what, FolioBits seen, os::MappedMemory log, std::size_t most_runs)
      : what_(std::move(what)),
        seen_(std::move(seen)),
        log_(std::move(log)),
        entries_(reinterpret_cast<Entry*>(log_.bytes().data())),
        most_runs_(most_runs) {}

  const WorkingSet what_;  // without runs
  const TimePoint started_ = Clock::now();
  FolioBits seen_;
  os::MappedMemory log_;
  Entry* entries_;
  const std::size_t most_runs_;
  std::atomic<std::uint64_t> next_{0};
};

}  // namespace uffda
