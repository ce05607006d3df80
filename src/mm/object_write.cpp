// Writes to an object: which of its folios may become dirty, who is kept from writing unseen, and writes through the
// page cache.
#include <fmt/format.h>

#include <algorithm>

#include "base/log.h"
#include "mm/memory_object.h"

namespace uffda {

void MemoryObject::note_written(FolioRange run) {
  std::uint64_t kept = 0;
  for (FolioIndex i = run.first; i < run.end(); ++i) {
    if (states_.is_apart(i) && states_.get(i) == PageState::dirty) continue;
    if (states_.apply_apart(i, PageEvent::written) == false) ++kept;
  }
  if (kept == 0) return;
  const MutexLock lock(mutex_);
  keep_apart_locked(kept);
}

void MemoryObject::add_mapper(const std::weak_ptr<FolioMapper>& mapper) {
  const auto same = [&](const Mapper& other) {
    return !other.who.owner_before(mapper) && !mapper.owner_before(other.who);
  };
  const MutexLock lock(mutex_);
  std::erase_if(mappers_, [](const Mapper& other) { return other.who.expired(); });
  if (std::ranges::any_of(mappers_, same)) return;
  // Behind all others, so that whoever goes through the list meets it: a child is known before its parent can be
  // protected again.
  mappers_.push_back({.number = next_mapper_++, .who = mapper});
}

std::shared_ptr<FolioMapper> MemoryObject::next_mapper(std::uint64_t& next) {
  // By number: those that come and go meanwhile do not change which one is next.
  const MutexLock lock(mutex_);
  for (const Mapper& known : mappers_) {
    std::shared_ptr<FolioMapper> mapper;
    if (known.number < next || (mapper = known.who.lock()) == nullptr) continue;
    next = known.number + 1;
    return mapper;
  }
  return nullptr;
}

FolioMapper::Protected MemoryObject::protect(FolioRange folios) {
  FolioMapper::Protected outcome = FolioMapper::Protected::done;
  std::uint64_t next = 0;
  while (const auto mapper = next_mapper(next)) {
    if (mapper->protect_folios(*this, folios) == FolioMapper::Protected::again) outcome = FolioMapper::Protected::again;
  }
  return outcome;
}

void MemoryObject::unmap(std::span<const FolioRange> folios) {
  std::uint64_t next = 0;
  while (const auto mapper = next_mapper(next)) mapper->unmap_folios(*this, folios);
}

bool MemoryObject::drop_denied(FolioIndex index, const std::function<void()>& meanwhile) {
  if (!begin_drop()) return false;
  const bool started = states_.apply(index, PageEvent::evict_started);
  if (started) drop_evicting({.first = index, .count = 1}, meanwhile);
  end_drop();
  if (started) notify_changed();
  return started;
}

void MemoryObject::note_cleaned() {
  changed_.notify_all();
  if (budget_.is_short() || core_.budget().is_short()) core_.call_evictor();
}

Result<void> MemoryObject::write(ByteOffset offset, std::span<const std::byte> bytes, Deadline deadline) {
  if (offset.value > size_.value || bytes.size() > size_.value - offset.value)
    return uffda::fail(Errc::out_of_range, "beyond the end of the object");
  while (!bytes.empty()) {
    const FolioIndex index = offset.value / folio_size_.value;
    UFFDA_TRY_VOID(wait_for(index, deadline));
    Admission admission = Admission::later;
    const std::uint64_t length =
        std::min((index + 1) * folio_size_.value - offset.value, static_cast<std::uint64_t>(bytes.size()));
    Result<void> written;
    if (states_.pin(index)) {
      admission = admit_write(index);
      if (admission == Admission::granted) written = backing_->write(offset, bytes.first(length));
      states_.unpin(index);
    }
    UFFDA_TRY_VOID(written);
    if (admission == Admission::denied)
      return uffda::fail(Errc::no_memory, name() + ": no space for what is written", ENOSPC);
    if (admission == Admission::later) {
      if (deadline.passed()) return uffda::fail(Errc::timed_out, name() + ": no room for more dirty pages");
      constexpr Duration kRecheck = std::chrono::milliseconds(1);  // what a thread elsewhere does not signal here
      const MutexLock lock(mutex_);
      changed_.wait_until(mutex_, Clock::now() + kRecheck);
      continue;
    }
    offset = offset + ByteCount{length};
    bytes = bytes.subspan(length);
  }
  return {};
}

Result<void> MemoryObject::resize(ByteCount length, Deadline deadline, Resize how) {
  {
    const MutexLock lock(mutex_);
    while (resizing_) {
      if (deadline.passed()) return uffda::fail(Errc::timed_out, name() + ": another resize does not end");
      changed_.wait_until(mutex_, deadline.when());
    }
    resizing_ = true;
  }
  Result<void> resized = move_end(length, deadline, how);
  {
    const MutexLock lock(mutex_);
    resizing_ = false;
  }
  changed_.notify_all();
  return resized;
}

Result<void> MemoryObject::move_end(ByteCount length, Deadline deadline, Resize how) {
  const std::uint64_t before = length_.load(std::memory_order_acquire);
  if (length.value == before || (how == Resize::grow && length.value < before)) return {};
  const std::uint64_t lower = std::min(before, length.value);
  // A mapping may have written behind the old end, in its page. Before the end moves: nobody else writes there yet.
  if (length.value > before) {
    const std::uint64_t page_end = std::min(align_up(before, folio_size_.value), size_.value);
    UFFDA_TRY_VOID(clear_cached({.start = {before}, .length = {page_end - before}}, deadline));
  }
  UFFDA_TRY_VOID(source_->resize(length));
  length_.store(length.value, std::memory_order_release);
  writeback_->forget_space({.start = {lower}, .length = {length.value - lower}});
  if (length.value > before) return {};
  // The source has zeroes there; so has the cache.
  return clear_cached({.start = {lower}, .length = {before - lower}}, deadline);
}

Result<void> MemoryObject::clear_cached(ByteRange range, Deadline deadline) {
  const std::vector<std::byte> zeroes(folio_size_.value);
  for (std::uint64_t at = range.start.value; at < range.end().value;) {
    const FolioIndex index = at / folio_size_.value;
    const std::uint64_t end = std::min((index + 1) * folio_size_.value, range.end().value);
    // What is absent is fetched as the source has it now; what is being fetched may be older.
    if (states_.get(index) != PageState::absent)
      UFFDA_TRY_VOID(write({at}, std::span(zeroes).first(end - at), deadline));
    at = end;
  }
  return {};
}

Result<void> MemoryObject::sync(ByteRange range, Deadline deadline, std::uint64_t& seen) {
  if (range.end().value > size_.value || range.end() < range.start)
    return uffda::fail(Errc::out_of_range, "beyond the end of the object");
  return writeback_->sync(range, deadline, seen);
}

void MemoryObject::end_writeback() {
  if (!writeback_) return;
  const Result<void> finished = writeback_->finish(Deadline::after(core_.options().deadline));
  if (finished) return;
  log(LogLevel::error, "{}: {} bytes that were written are lost: {}", name(), writeback_->dirty() * folio_size_.value,
      finished.error().message());
}

}  // namespace uffda
