// Fills objects in the background, in a thread of its own: what a recording has, in its order; or everything.
//
//   plan (prefetch_plan.h) -> MemoryObject::prefetch -> the source; meanwhile FolioObserver -> PrefetchTracker ->
//   why_stop
//
// The core decides what room there is beside the faults; a fill that finds none waits until the source has answered.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "base/mutex.h"
#include "base/thread.h"
#include "mm/memory_object.h"
#include "monitors/working_set.h"
#include "uffda/background_fill.h"

namespace uffda {

struct FillOptions {
  ByteCount most_in_flight = 8_MiB;  ///< asked of the source and not answered
  ByteCount per_second{};            ///< 0: as fast as the source
  /// Hears of progress now and then, and of the end; in the fill's thread.
  std::function<void(const FillProgress&)> tell;
};

/// A thread and what it has done so far.
class BackgroundFill::Impl {
 public:
  using Work = std::function<FillEnd(Impl&)>;
  static std::shared_ptr<Impl> start(Work work, std::function<void(const FillProgress&)> tell);
  ~Impl();  ///< stops it, and waits for its end
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  [[nodiscard]] FillProgress progress() const UFFDA_EXCLUDES(mutex_);
  Result<FillProgress> wait(Deadline deadline) UFFDA_EXCLUDES(mutex_);
  void stop() UFFDA_EXCLUDES(mutex_);

  // For the work.
  [[nodiscard]] bool stopping() const UFFDA_EXCLUDES(mutex_);
  /// False if it is to stop.
  bool sleep(Duration duration) UFFDA_EXCLUDES(mutex_);
  void update(const std::function<void(FillProgress&)>& change) UFFDA_EXCLUDES(mutex_);
  /// Counts that go on after the end (hits of what was prefetched) are asked for.
  void set_live(std::function<void(FillProgress&)> live) UFFDA_EXCLUDES(mutex_);

 private:
  explicit Impl(std::function<void(const FillProgress&)> tell) : tell_(std::move(tell)) {}
  void run();
  [[nodiscard]] FillProgress progress_locked() const UFFDA_REQUIRES(mutex_);

  Work work_;
  const std::function<void(const FillProgress&)> tell_;
  TimePoint told_;
  mutable Mutex mutex_;
  CondVar changed_;
  FillProgress progress_ UFFDA_GUARDED_BY(mutex_);
  std::function<void(FillProgress&)> live_ UFFDA_GUARDED_BY(mutex_);
  bool stopping_ UFFDA_GUARDED_BY(mutex_) = false;
  Thread thread_;
};

/// Prefetches what `set` recorded. `keep` lives as long as the fill. Errors: busy (the object is prefetched already),
/// no_memory.
Result<BackgroundFill> prefetch_working_set(std::shared_ptr<MemoryObject> object, const WorkingSet& set,
                                            FillOptions options = {}, std::shared_ptr<void> keep = {});

/// Fetches all of the objects but what their sources say is zero, one after the other; first it waits for `after`.
/// `keep` lives as long as the fill.
BackgroundFill populate_in_background(std::vector<std::shared_ptr<MemoryObject>> objects, FillOptions options = {},
                                      std::vector<BackgroundFill> after = {}, std::shared_ptr<void> keep = {});

}  // namespace uffda
