// Eviction: punching the hole is the barrier that unmaps everywhere; pins keep a folio from it (pitfalls 3, 9).
#include <algorithm>

#include "base/log.h"
#include "mm/memory_object.h"

namespace uffda {

std::uint64_t MemoryObject::drop_evicting(FolioRange range) {
  const Result<void> dropped = backing_->drop(bytes_of(range));
  if (!dropped) log(LogLevel::warning, "{}: not evicted: {}", name(), dropped.error().message());
  for (FolioIndex i = range.first; i < range.end(); ++i) {
    states_.apply(i, dropped ? PageEvent::evicted : PageEvent::evict_aborted);
  }
  notify_changed();
  if (!dropped) return 0;
  for (const auto& slot : observers_) {
    if (FolioObserver* observer = slot.load(std::memory_order_acquire)) observer->evicted(range);
  }
  present_.fetch_sub(range.count, std::memory_order_relaxed);
  core_.forget(folio_size_ * range.count);
  add(core_.stats().folios_evicted, range.count);
  return range.count;
}

bool MemoryObject::begin_drop() {
  const MutexLock lock(mutex_);
  if (droppable_) ++dropping_;
  return droppable_;
}

void MemoryObject::end_drop() {
  {
    const MutexLock lock(mutex_);
    --dropping_;
  }
  changed_.notify_all();
}

void MemoryObject::note_private_mapping() {
  if (backing_->private_copies_outlive_drop()) return;
  const MutexLock lock(mutex_);
  droppable_ = false;
  // Holes that are being punched would hit the new mapping.
  while (dropping_ != 0) changed_.wait_until(mutex_, Clock::now() + std::chrono::seconds(1));
}

Result<os::UniqueFd> MemoryObject::share() {
  note_private_mapping();  // a client maps it as it likes
  return backing_->share();
}

MemoryObject::Evicted MemoryObject::evict_chunk(std::uint64_t chunk) {
  if (!begin_drop()) return {.folios = 0, .some_stay = true};  // for good: out of the queue
  // Before the scan, so that a folio that becomes present during it puts the chunk in the queue again.
  const FolioIndex begin = chunk * chunk_folios();
  states_.unmark_queued(begin);
  const FolioIndex end = std::min(begin + chunk_folios(), folios());
  Evicted evicted;
  for (FolioIndex i = begin; i < end;) {
    FolioIndex run_end = i;
    while (run_end < end && states_.apply(run_end, PageEvent::evict_started)) ++run_end;
    if (run_end != i) evicted.folios += drop_evicting({.first = i, .count = run_end - i});
    if (run_end < end && states_.get(run_end) != PageState::absent) evicted.some_stay = true;
    i = run_end + 1;
  }
  end_drop();
  if (evicted.some_stay && !states_.mark_queued(begin)) core_.queue_chunk(weak_from_this(), chunk);
  return evicted;
}

}  // namespace uffda
