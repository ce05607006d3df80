// Eviction: punching the hole is the barrier that unmaps everywhere; pins keep a folio from it (pitfalls 3, 9).
#include <algorithm>
#include <utility>

#include "base/log.h"
#include "mm/memory_object.h"

namespace uffda {

std::uint64_t MemoryObject::drop_evicting(FolioRange range, const std::function<void()>& meanwhile) {
  const Result<void> dropped = backing_->drop(bytes_of(range));
  if (dropped && meanwhile) meanwhile();
  if (!dropped) log(LogLevel::warning, "{}: not evicted: {}", name(), dropped.error().message());
  for (FolioIndex i = range.first; i < range.end(); ++i) {
    states_.apply(i, dropped ? PageEvent::evicted : PageEvent::evict_aborted);
  }
  if (!dropped) {
    notify_changed();
    return 0;
  }
  for (const auto& slot : observers_) {
    if (FolioObserver* observer = slot.load(std::memory_order_acquire)) observer->evicted(range);
  }
  present_.fetch_sub(range.count, std::memory_order_relaxed);
  // Whoever drops keeps the object droppable: what is dropped had room in the budgets.
  budget_.give_back(folio_size_ * range.count);
  core_.budget().give_back(folio_size_ * range.count);
  notify_changed();
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
  const bool first = std::exchange(droppable_, false);
  // Holes that are being punched would hit the new mapping.
  while (dropping_ != 0) changed_.wait_until(mutex_, Clock::now() + std::chrono::seconds(1));
  if (!first) return;
  const ByteCount kept = budget_.used();
  budget_.give_back(kept);
  core_.budget().give_back(kept);
  core_.add_apart(kept);
  apart_ += kept.value / folio_size_.value;
}

Result<os::UniqueFd> MemoryObject::share() {
  note_private_mapping();  // a client maps it as it likes
  return backing_->share();
}

Result<os::UniqueFd> MemoryObject::share_writable() {
  note_private_mapping();
  return backing_->share_writable();
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
  if (evicted.some_stay && !states_.mark_queued(begin)) queue_chunk(chunk);
  return evicted;
}

void MemoryObject::queue_chunk(std::uint64_t chunk) {
  const MutexLock lock(queue_mutex_);
  chunks_.push_back(chunk);
}

std::size_t MemoryObject::chunks_queued() {
  const MutexLock lock(queue_mutex_);
  return chunks_.size();
}

std::uint64_t MemoryObject::evict_next() {
  std::uint64_t chunk = 0;
  {
    const MutexLock lock(queue_mutex_);
    if (chunks_.empty()) return 0;
    chunk = chunks_.front();
    chunks_.pop_front();
  }
  return evict_chunk(chunk).folios;
}

const Budget& MemoryObject::tighter_budget() const {
  const Budget& whole = core_.budget();
  return budget_.limit() - budget_.used() < whole.limit() - whole.used() ? budget_ : whole;
}

bool MemoryObject::take_room_locked(std::uint64_t folios, Budget::Reserve reserve) {
  const ByteCount bytes = folio_size_ * folios;
  if (!droppable_) {
    apart_ += folios;
    core_.add_apart(bytes);
    return true;
  }
  const bool mine = budget_.take(bytes, reserve);
  const bool all = mine && core_.budget().take(bytes, reserve);
  if (mine && !all) budget_.give_back(bytes);
  if (budget_.is_short() || core_.budget().is_short()) core_.call_evictor();
  return all;
}

void MemoryObject::give_room_back_locked(std::uint64_t folios) {
  const ByteCount bytes = folio_size_ * folios;
  if (!droppable_) {
    apart_ -= folios;
    core_.remove_apart(bytes);
    return;
  }
  budget_.give_back(bytes);
  core_.budget().give_back(bytes);
}

void MemoryObject::keep_apart_locked(std::uint64_t folios) {
  if (!droppable_) return;  // all of it is apart
  give_room_back_locked(folios);
  apart_ += folios;
  core_.add_apart(folio_size_ * folios);
}

bool MemoryObject::refused_too_long_locked() {
  constexpr Duration kForgotten = std::chrono::seconds(1);  // who waits asks far more often than that
  const TimePoint now = Clock::now();
  if (refused_since_ == TimePoint{} || now - last_refused_ > kForgotten) refused_since_ = now;
  last_refused_ = now;
  return now - refused_since_ > core_.options().deadline;
}

}  // namespace uffda
