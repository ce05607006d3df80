// Prefetching: fetches that nobody waits for, beside the faults and never in front of them; and who observes folios.
#include "base/log.h"
#include "mm/memory_object.h"

namespace uffda {

Result<void> MemoryObject::observe(std::shared_ptr<FolioObserver> observer) {
  const MutexLock lock(mutex_);
  if (kept_observers_.size() == kMaxObservers)
    return fail(Errc::busy, "the object is being recorded and prefetched already");
  observers_.at(kept_observers_.size()).store(observer.get(), std::memory_order_release);
  kept_observers_.push_back(std::move(observer));
  return {};
}

Result<MemoryObject::Prefetched> MemoryObject::prefetch(FolioRange wanted, ByteCount most_in_flight,
                                                        const FolioWait& wait) {
  if ((!cached_ && wait.waiter == nullptr) || watched()) return fail(Errc::unsupported);
  ToStart to_start;
  Prefetched result{.asked = {}, .next = std::min(wanted.end(), folios())};
  {
    const MutexLock lock(mutex_);
    FolioIndex first = wanted.first;
    while (first < result.next && states_.get(first) != PageState::absent) ++first;
    if (first >= result.next) return result;
    result.asked = claimable_locked(first, {.first = first, .count = result.next - first});
    const ByteCount in_flight = folio_size_ * (requests_.background_folios() + result.asked.count);
    // A source that leaves requests unanswered is not asked for what nobody waits for.
    const bool room = abandoned_ == 0 && (requests_.background() == 0 || in_flight <= most_in_flight);
    if (!room) return fail(Errc::again);
    FetchRequest* const request = start_locked(result.asked, to_start, FetchFor::background);
    if (request == nullptr) return fail(Errc::again, "no room", to_start.no_room ? ENOMEM : 0);
    if (wait.waiter != nullptr) UFFDA_ASSERT(RequestTable::join(*request, wait));
    result.next = result.asked.end();
  }
  add(core_.stats().fetches_background);
  ask_source(to_start);
  return result;
}

void MemoryObject::wait_for_answer(TimePoint until) {
  const MutexLock lock(mutex_);
  changed_.wait_until(mutex_, until);
}

std::size_t MemoryObject::prefetches_under_way() {
  const MutexLock lock(mutex_);
  return requests_.background();
}

}  // namespace uffda
