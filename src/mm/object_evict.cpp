// Eviction: punching the hole is the barrier that unmaps everywhere; pins keep a folio from it (pitfalls 3, 9).
#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "base/log.h"
#include "mm/memory_object.h"

namespace uffda {
namespace {

constexpr std::uint64_t kAtOnce = 256;    // folios of one page that are looked at in one step
constexpr std::uint64_t kStepShare = 16;  // of what is queued: a step is far less than what is on probation

}  // namespace

std::uint64_t MemoryObject::drop_evicting(FolioRange range, const std::function<void()>& meanwhile) {
  const Result<void> dropped = backing_->drop(bytes_of(range));
  if (dropped && meanwhile) meanwhile();
  if (!dropped) log(LogLevel::warning, "{}: not evicted: {}", name(), dropped.error().message());
  for (FolioIndex i = range.first; i < range.end(); ++i) {
    states_.apply(i, dropped ? PageEvent::evicted : PageEvent::evict_aborted);
  }
  if (!dropped) {
    queue(range);
    return 0;
  }
  for (const auto& slot : observers_) {
    if (FolioObserver* observer = slot.load(std::memory_order_acquire)) observer->evicted(range);
  }
  present_.fetch_sub(range.count, std::memory_order_relaxed);
  // Whoever drops keeps the object droppable: what is dropped had room in the budgets.
  budget_.give_back(folio_size_ * range.count);
  core_.budget().give_back(folio_size_ * range.count);
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

std::uint64_t MemoryObject::evict_chunk(std::uint64_t chunk) {
  if (!begin_drop()) return 0;
  const FolioIndex end = std::min((chunk + 1) * chunk_folios(), folios());
  std::vector<FolioIndex> evicting;
  for (FolioIndex i = chunk * chunk_folios(); i < end; ++i) {
    if (states_.apply(i, PageEvent::evict_started)) evicting.push_back(i);
  }
  const std::uint64_t gone = drop_all(evicting);
  end_drop();
  return gone;
}

MemoryObject::Evicted MemoryObject::evict_some(Mercy mercy) {
  if (!begin_drop()) return {};
  const std::uint64_t largest = std::max(kAtOnce * kPageSize.value / folio_size_.value, std::uint64_t{1});
  const std::uint64_t most = std::clamp(folios_queued() / kStepShare, std::uint64_t{1}, largest);
  std::array<FolioIndex, kAtOnce> evicting;
  std::array<FolioIndex, kAtOnce> staying;
  std::size_t going = 0;
  std::size_t kept = 0;
  Evicted evicted;
  while (evicted.looked_at < most) {
    EvictionQueue::Candidate next;
    {
      const MutexLock lock(queue_mutex_);
      next = queue_.next_to_go(most - evicted.looked_at);
    }
    if (next.run.empty()) break;
    evicted.looked_at += next.run.count;
    for (FolioIndex i = next.run.first; i < next.run.end(); ++i) {
      const Verdict verdict = judge(i, next.was_watched ? mercy : Mercy::nobody);
      if (verdict == Verdict::goes) evicting.at(going++) = i;
      if (verdict == Verdict::stays) staying.at(kept++) = i;
    }
  }
  evicted.folios = drop_all(std::span(evicting).first(going));
  end_drop();
  {
    const MutexLock lock(queue_mutex_);
    for (const FolioIndex i : std::span(staying).first(kept)) {
      if (!states_.mark_queued(i)) queue_.keep({.first = i, .count = 1});
    }
  }
  // After the look, so that there is time to touch them; more than went, so that probation fills up.
  watch_some(2 * most);
  return evicted;
}

/// A folio that was taken out of the queue; one that goes is Evicting.
MemoryObject::Verdict MemoryObject::judge(FolioIndex index, Mercy mercy) {
  // Before the look, so that a folio that becomes present after it puts itself in the queue again.
  states_.unmark_queued(index);
  if (mercy == Mercy::used && used_->test(index) && is_present(states_.get(index))) return Verdict::stays;
  if (states_.apply(index, PageEvent::evict_started)) return Verdict::goes;
  // Dirty or pinned. What is apart stays until it is lost.
  return is_present(states_.get(index)) && !states_.is_apart(index) ? Verdict::stays : Verdict::gone;
}

std::uint64_t MemoryObject::drop_all(std::span<FolioIndex> evicting) {
  std::ranges::sort(evicting);
  std::uint64_t gone = 0;
  for (std::size_t i = 0; i < evicting.size();) {
    FolioRange run{.first = evicting[i], .count = 0};
    while (i < evicting.size() && evicting[i] == run.end()) {
      ++run.count;
      ++i;
    }
    gone += drop_evicting(run);
  }
  if (!evicting.empty()) notify_changed();
  return gone;
}

/// Puts folios on probation: those whose use can be seen are unmapped, and whatever lies between them, which faults
/// again if it is used.
void MemoryObject::watch_some(std::uint64_t most) {
  std::array<FolioRange, 2 * kAtOnce> blocks;
  std::size_t count = 0;
  std::uint64_t watched_now = 0;
  {
    const MutexLock lock(queue_mutex_);
    while (watched_now < most && count < blocks.size()) {  // a block has one at least
      const FolioRange block = queue_.next_to_watch([&](FolioRange run) {
        watched_now += run.count;
        for (FolioIndex i = run.first; i < run.end(); ++i) used_->test_and_clear(i);
      });
      if (block.empty()) break;
      blocks.at(count++) = block;
    }
  }
  if (count == 0 || watched()) return;  // a monitor would hear of faults that were none
  unmap(std::span(blocks).first(count));
}

std::uint64_t MemoryObject::folios_queued() {
  const MutexLock lock(queue_mutex_);
  return queue_.folios();
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
