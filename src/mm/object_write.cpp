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
  const auto same = [&](const std::weak_ptr<FolioMapper>& other) {
    return !other.owner_before(mapper) && !mapper.owner_before(other);
  };
  const MutexLock lock(mutex_);
  if (std::ranges::any_of(mappers_, same)) return;
  // Appended, so that whoever goes through the list meets it: a child is known before its parent can be protected
  // again.
  mappers_.push_back(mapper);
}

FolioMapper::Protected MemoryObject::protect(FolioRange folios) {
  FolioMapper::Protected outcome = FolioMapper::Protected::done;
  for (std::size_t i = 0;; ++i) {
    std::shared_ptr<FolioMapper> mapper;
    {
      const MutexLock lock(mutex_);
      while (i < mappers_.size() && (mapper = mappers_[i].lock()) == nullptr) {
        mappers_.erase(mappers_.begin() + static_cast<std::ptrdiff_t>(i));
      }
      if (mapper == nullptr) return outcome;
    }
    if (mapper->protect_folios(*this, folios) == FolioMapper::Protected::again) outcome = FolioMapper::Protected::again;
  }
}

bool MemoryObject::drop_denied(FolioIndex index) {
  if (!begin_drop()) return false;
  const bool started = states_.apply(index, PageEvent::evict_started);
  if (started) drop_evicting({.first = index, .count = 1});
  end_drop();
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

Result<void> MemoryObject::resize(ByteCount length, Deadline deadline) {
  {
    const MutexLock lock(mutex_);
    while (resizing_) {
      if (deadline.passed()) return uffda::fail(Errc::timed_out, name() + ": another resize does not end");
      changed_.wait_until(mutex_, deadline.when());
    }
    resizing_ = true;
  }
  const std::uint64_t before = length_.load(std::memory_order_acquire);
  Result<void> resized = source_->resize(length);
  if (resized) {
    length_.store(length.value, std::memory_order_release);
    writeback_->forget_space({.start = {before}, .length = {length.value - std::min(before, length.value)}});
    // The source has zeroes there; so has the cache.
    if (length.value < before)
      resized = clear_cached({.start = {length.value}, .length = {before - length.value}}, deadline);
  }
  {
    const MutexLock lock(mutex_);
    resizing_ = false;
  }
  changed_.notify_all();
  return resized;
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
