// Synchronous use of an object by threads of this process (populate, read, faults in the faulting thread), and bytes
// that come unasked.
#include <algorithm>

#include "base/log.h"
#include "mm/memory_object.h"

namespace uffda {
namespace {

constexpr Duration kSupplyWait = std::chrono::milliseconds(50);  // of bytes that come unasked, for room

}  // namespace

Result<void> MemoryObject::wait_for(FolioIndex index, Deadline deadline) {
  while (!is_present(states_.get(index))) {
    ToStart to_start;
    FaultOutcome outcome{};
    {
      const MutexLock lock(mutex_);
      outcome = fault_in_locked(index, {}, /*sleeper=*/true, to_start);
    }
    ask_source(to_start);
    if (to_start.for_good) outcome = FaultOutcome::later;  // this caller has a deadline of its own
    if (outcome == FaultOutcome::poisoned) return fail(Errc::io, "the source failed here before");
    if (outcome == FaultOutcome::ready) continue;
    if (deadline.passed()) {
      return to_start.no_room ? fail(Errc::timed_out, "the budget had no room for it until the deadline")
                              : fail(Errc::timed_out, "the source did not answer before the deadline");
    }
    const MutexLock lock(mutex_);
    const PageState state = states_.get(index);
    if (state == PageState::filling || state == PageState::evicting || outcome == FaultOutcome::later) {
      // Short, because an eviction or a returned buffer does not signal.
      constexpr Duration kRecheck = std::chrono::milliseconds(1);
      const TimePoint until =
          outcome == FaultOutcome::queued ? deadline.when() : std::min(deadline.when(), Clock::now() + kRecheck);
      changed_.wait_until(mutex_, until);
    }
  }
  return {};
}

Result<void> MemoryObject::populate(ByteRange range, Deadline deadline) {
  if (!cached_) return fail(Errc::unsupported, "this memory type has no page cache to populate");
  if (range.end().value > size_.value || range.end() < range.start)
    return fail(Errc::out_of_range, "beyond the end of the object");
  for (FolioIndex i = range.start.value / folio_size_.value; i * folio_size_.value < range.end().value; ++i) {
    UFFDA_TRY_VOID(wait_for(i, deadline));
  }
  return {};
}

Result<void> MemoryObject::read(ByteOffset offset, std::span<std::byte> bytes, Deadline deadline) {
  if (!cached_) return fail(Errc::unsupported, "this memory type has no page cache to read from");
  if (offset.value > size_.value || bytes.size() > size_.value - offset.value)
    return fail(Errc::out_of_range, "beyond the end of the object");
  const FolioIndex touched = offset.value / folio_size_.value;
  note_touched({.first = touched,
                .count = align_up(offset.value + bytes.size(), folio_size_.value) / folio_size_.value - touched});
  while (!bytes.empty()) {
    const FolioIndex first = offset.value / folio_size_.value;
    const FolioIndex end = align_up(offset.value + bytes.size(), folio_size_.value) / folio_size_.value;
    note_hit(first);
    UFFDA_TRY_VOID(wait_for(first, deadline));
    const FolioRange run =
        states_.pin(first) ? states_.pin_around(first, {.first = first, .count = end - first}) : FolioRange{};
    if (run.empty()) continue;  // evicted meanwhile
    const std::uint64_t length =
        std::min(run.end() * folio_size_.value - offset.value, static_cast<std::uint64_t>(bytes.size()));
    const Result<void> copied = backing_->read(offset, bytes.first(length));
    states_.unpin(run);
    UFFDA_TRY_VOID(copied);
    offset = offset + ByteCount{length};
    bytes = bytes.subspan(length);
  }
  return {};
}

FaultOutcome MemoryObject::fill_now(FolioIndex index, Deadline deadline) {
  const auto wait = [&] { return wait_for(index, deadline) ? FaultOutcome::ready : FaultOutcome::poisoned; };
  if (!source_->properties().immediate) return wait();
  FolioRange range;
  ToStart ahead;
  {
    const MutexLock lock(mutex_);
    const bool alone = fetches_alone(index);
    const ReadAheadPlan plan = alone ? ReadAheadPlan{.demand = {.first = index, .count = 1}, .ahead = {}}
                                     : read_ahead_.on_miss(index, read_ahead_limits_locked());
    if (states_.get(index) == PageState::absent) {
      range = claim_with_room_locked(claimable_locked(index, plan.demand), Budget::Reserve::leave);
      if (range.empty()) range = claim_with_room_locked({.first = index, .count = 1}, Budget::Reserve::use);
    }
    start_ahead_locked(plan.ahead, ahead);
    publish_triggers_locked();
  }
  ask_source(ahead);
  return range.contains(index) ? fetch_claimed(range) : wait();  // not ours: somebody else is at it
}

void MemoryObject::wait_while_filling(FolioIndex index, Deadline deadline) {
  const MutexLock lock(mutex_);
  while (states_.get(index) == PageState::filling && !deadline.passed()) changed_.wait_until(mutex_, deadline.when());
}

Result<std::span<std::byte>> MemoryObject::fill_buffer(ByteRange range) {
  if (in_place_) return backing_->in_place(range);
  const std::span<std::byte> buffer = core_.staging().acquire(range.length);
  if (buffer.empty()) return uffda::fail(Errc::again);
  return buffer;
}

void MemoryObject::release_buffer(std::span<std::byte> buffer) {
  if (!in_place_) core_.staging().release(buffer);
}

void MemoryObject::discard_in_place(ByteRange range) {
  if (!in_place_) return;
  if (const auto dropped = backing_->drop(range); !dropped)
    log(LogLevel::warning, "{}: what was read of a folio stays in memory: {}", name(), dropped.error().message());
}

bool MemoryObject::lift_poison(FolioIndex index) {
  if (in_place_) {
    const MutexLock lock(mutex_);
    if (requests_.lent(index)) return false;
  }
  return states_.apply(index, PageEvent::invalidated);
}

FaultOutcome MemoryObject::fetch_claimed(FolioRange range) {
  const ByteRange bytes = bytes_of(range);
  const Result<std::span<std::byte>> buffer = fill_buffer(bytes);
  const TimePoint started = Clock::now();
  add(core_.stats().fetches);
  Result<void> filled =
      buffer ? source_->fetch_now(bytes.start, buffer->first(bytes.length.value)) : std::unexpected(buffer.error());
  core_.stats().of(Stage::fetch).record(Clock::now() - started);
  if (filled) filled = publish_claimed(range, buffer->first(bytes.length.value));
  if (buffer) release_buffer(*buffer);
  if (filled) return FaultOutcome::ready;
  discard_in_place(bytes);
  const bool again = filled.error().code() == Errc::again;
  const bool poison = !again && range.count == 1;
  if (!again) {
    for (FolioIndex i = range.first; i < range.end(); ++i) states_.mark_fetch_alone(i);
  }
  give_claim_back(range, poison ? PageEvent::failed : PageEvent::given_up);
  if (!again) add(core_.stats().fetch_failures);
  if (!poison) return FaultOutcome::later;
  core_.report_failure({.object = name(), .range = bytes, .error = filled.error()});
  return FaultOutcome::poisoned;
}

Result<void> MemoryObject::publish_claimed(FolioRange range, std::span<const std::byte> bytes) {
  const TimePoint started = Clock::now();
  UFFDA_TRY_VOID(backing_->publish(bytes_of(range), bytes));
  core_.stats().of(Stage::publish).record(Clock::now() - started);
  for (FolioIndex i = range.first; i < range.end(); ++i) states_.apply(i, PageEvent::filled);
  notify_changed();
  add(core_.stats().bytes_fetched, bytes.size());
  count_present(range);
  return {};
}

void MemoryObject::notify_changed() {
  // The lock orders this after the check of a thread that is about to wait.
  {
    const MutexLock lock(mutex_);
  }
  changed_.notify_all();
}

FolioRange MemoryObject::claim_absent_locked(FolioRange range) {
  // Under the lock like every claim: who looked for absent folios under it finds them absent still.
  FolioIndex end = range.first;
  while (end < range.end() && states_.apply(end, PageEvent::fetch_started)) ++end;
  return {.first = range.first, .count = end - range.first};
}

bool MemoryObject::poison_again(FolioIndex index) {
  const MutexLock lock(mutex_);
  return states_.apply(index, PageEvent::fetch_started) && states_.apply(index, PageEvent::failed);
}

FolioRange MemoryObject::claim_with_room_locked(FolioRange range, Budget::Reserve reserve) {
  const FolioRange claimed = claim_absent_locked(range);
  if (claimed.empty() || take_room_locked(claimed.count, reserve)) return claimed;
  for (FolioIndex i = claimed.first; i < claimed.end(); ++i) states_.apply(i, PageEvent::given_up);
  return {.first = range.first, .count = 0};
}

void MemoryObject::give_claim_back(FolioRange range, PageEvent event) {
  {
    const MutexLock lock(mutex_);
    for (FolioIndex i = range.first; i < range.end(); ++i) states_.apply(i, event);
    give_room_back_locked(range.count);
  }
  changed_.notify_all();
}

Result<void> MemoryObject::supply(ByteOffset offset, std::span<const std::byte> bytes) {
  if (!cached_) return uffda::fail(Errc::unsupported, "this memory type has no page cache to supply");
  if (offset.value > size_.value || bytes.size() > size_.value - offset.value)
    return uffda::fail(Errc::out_of_range, "beyond the end of the object");
  const std::uint64_t end = offset.value + bytes.size();
  FolioIndex index = align_up(offset.value, folio_size_.value) / folio_size_.value;
  const FolioIndex stop = end == size_.value ? folios() : end / folio_size_.value;
  // No more at once than the budget has room for soon.
  const std::uint64_t most = std::min(kLargeBuffer.value, budget_.limit().value / 16) / folio_size_.value;
  std::uint64_t step = std::max(most, std::uint64_t{1});
  TimePoint patience = Clock::now() + kSupplyWait;
  bool lifted = false;
  while (index < stop) {
    // Present wins; what a request is filling stays the request's; poison is lifted, for here are the bytes.
    lifted = lift_poison(index) || lifted;
    const std::uint64_t evictions = core_.evictions();
    FolioRange claimed;
    bool absent = false;
    {
      const MutexLock lock(mutex_);
      claimed = claim_with_room_locked({.first = index, .count = lifted ? 1 : std::min(stop - index, step)},
                                       Budget::Reserve::leave);
      absent = claimed.empty() && states_.get(index) == PageState::absent;
    }
    if (absent && step > 1) {
      step /= 2;
    } else if (absent && Clock::now() >= patience) {
      if (lifted) poison_again(index);
      return uffda::fail(Errc::again, "the budget has no room for what is supplied");
    } else if (absent) {
      core_.wait_for_eviction(evictions, patience);
    } else if (claimed.empty()) {
      ++index;
      lifted = false;
    } else {
      const ByteRange range = bytes_of(claimed);
      const Result<void> published =
          publish_claimed(claimed, bytes.subspan(range.start.value - offset.value, range.length.value));
      if (!published) {
        give_claim_back(claimed, PageEvent::given_up);
        return published;
      }
      if (lifted) tell(poisoned_waits(), claimed, FolioNews::ready, {});
      index = claimed.end();
      lifted = false;
      patience = Clock::now() + kSupplyWait;
    }
  }
  return {};
}

Result<std::uint64_t> MemoryObject::fill_absent(FolioRange range, std::span<const std::byte> bytes) {
  states_.apply(range.first, PageEvent::invalidated);  // poison is lifted, for here are the bytes
  FolioRange claimed;
  {
    const MutexLock lock(mutex_);
    claimed = claim_absent_locked(range);
    // A monitor's bytes are nowhere else, and are not evicted.
    apart_ += claimed.count;
    core_.add_apart(folio_size_ * claimed.count);
  }
  if (claimed.empty()) return uffda::fail(is_present(states_.get(range.first)) ? Errc::already_exists : Errc::again);
  const ByteRange filled = bytes_of(claimed);
  const Result<void> published = backing_->publish(filled, bytes.first(filled.length.value));
  for (FolioIndex i = claimed.first; i < claimed.end(); ++i) {
    states_.apply_apart(i, published ? PageEvent::supplied : PageEvent::given_up);
  }
  if (!published) {
    const MutexLock lock(mutex_);
    apart_ -= claimed.count;
    core_.remove_apart(folio_size_ * claimed.count);
  }
  notify_changed();
  if (!published) return std::unexpected(published.error());
  count_present(claimed);
  return claimed.count;
}

Result<void> MemoryObject::fail_range(ByteRange range, const Error& error) {
  if (range.end().value > size_.value || range.end() < range.start)
    return uffda::fail(Errc::out_of_range, "beyond the end of the object");
  for (FolioIndex i = range.start.value / folio_size_.value; i * folio_size_.value < range.end().value; ++i) {
    const MutexLock lock(mutex_);
    if (states_.apply(i, PageEvent::fetch_started)) states_.apply(i, PageEvent::failed);
  }
  notify_changed();
  core_.report_failure({.object = name(), .range = range, .error = error});
  return {};
}

Result<void> MemoryObject::invalidate(ByteRange range) {
  if (range.end().value > size_.value || range.end() < range.start)
    return uffda::fail(Errc::out_of_range, "beyond the end of the object");
  for (FolioIndex i = range.start.value / folio_size_.value; i * folio_size_.value < range.end().value; ++i) {
    if (lift_poison(i)) {
      UFFDA_TRY_VOID(fetch_poisoned_anew(i));
    } else {
      UFFDA_TRY_VOID(drop_cached(i));
    }
  }
  return {};
}

Result<void> MemoryObject::drop_cached(FolioIndex index) {
  constexpr Duration kRecheck = std::chrono::milliseconds(1);  // a pin that goes does not signal
  while (true) {
    if (begin_drop()) {
      const bool started = states_.apply(index, PageEvent::evict_started);
      if (started) drop_evicting({.first = index, .count = 1});
      if (started) notify_changed();
      end_drop();
      if (started) return {};
    } else if (is_present(states_.get(index))) {
      return uffda::fail(Errc::unsupported,
                         "what is mapped of this object cannot be taken back: its memory type raises "
                         "no faults, or its pages were mapped privately");
    }
    const MutexLock lock(mutex_);
    const PageState state = states_.get(index);
    if (state == PageState::absent || state == PageState::poisoned || state == PageState::dirty ||
        state == PageState::awaiting_clean)
      return {};
    FetchRequest* request = state == PageState::filling ? requests_.find(index) : nullptr;
    if (request != nullptr && !request->publishing) {
      request->stale = true;  // what it brings is thrown away, and fetched anew by who waits
      return {};
    }
    // Pinned for the length of one step, being published, or on its way out.
    changed_.wait_until(mutex_, Clock::now() + kRecheck);
  }
}

void MemoryObject::note_poisoned_locked(const FolioWait& wait) {
  if (wait.waiter == nullptr) return;
  const auto same = [&](const Poisoned& other) {
    return other.base == wait.base && !other.waiter.owner_before(wait.waiter) &&
           !wait.waiter.owner_before(other.waiter);
  };
  if (std::ranges::any_of(poisoned_, same)) return;
  if (poisoned_.size() == kMaxPoisoned)
    std::erase_if(poisoned_, [](const Poisoned& other) { return other.waiter.expired(); });
  if (poisoned_.size() < kMaxPoisoned) poisoned_.push_back({.waiter = wait.waiter, .base = wait.base});
}

std::vector<FolioWait> MemoryObject::poisoned_waits() {
  const MutexLock lock(mutex_);
  std::vector<FolioWait> waits;
  for (const Poisoned& poisoned : poisoned_) {
    if (auto waiter = poisoned.waiter.lock()) waits.push_back({.waiter = std::move(waiter), .base = poisoned.base});
  }
  return waits;
}

Result<void> MemoryObject::fetch_poisoned_anew(FolioIndex index) {
  for (const FolioWait& wait : poisoned_waits()) {
    const FaultOutcome outcome = fault_in(index, wait);
    if (outcome != FaultOutcome::later && outcome != FaultOutcome::poisoned) continue;
    if (!poison_again(index)) continue;
    return uffda::fail(Errc::again, "no buffer is free to fetch what was poisoned");
  }
  return {};
}

}  // namespace uffda
