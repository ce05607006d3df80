// Faults of an address space and their resolution. Its list of mappings, and the events that change it, are in
// mappings.cpp.
#include "mm/address_space.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>

#include "base/log.h"
#include "mm/resolve.h"

namespace uffda {
namespace {

constexpr Duration kInlineWait = std::chrono::milliseconds(1);  // until a folio may become dirty
constexpr int kAttempts = 64;  // each means that somebody else made progress between our look and our step

/// Copies are memory of the client's own: neighbours are copied a few at a time.
std::uint64_t folios_copied_at_once(ByteCount folio) {
  return std::max(kSmallBuffer.value / folio.value, std::uint64_t{1});
}

/// At most `most` folios of a window, those at its one end that holds `index`.
FolioRange nearest(FolioRange window, FolioIndex index, std::uint64_t most) {
  const FolioIndex first = window.first < index ? std::max(window.first, index + 1 - std::min(index + 1, most)) : index;
  const FolioIndex end = std::min(window.end(), first + most);
  return {.first = first, .count = end - first};
}

}  // namespace

std::shared_ptr<AddressSpace> AddressSpace::create(std::shared_ptr<Core> core, std::unique_ptr<os::Userfault> userfault,
                                                   std::string name) {
  return std::shared_ptr<AddressSpace>(new AddressSpace(std::move(core), std::move(userfault), std::move(name)));
}

AddressSpace::AddressSpace(std::shared_ptr<Core> core, std::unique_ptr<os::Userfault> userfault, std::string name)
    : core_(std::move(core)), userfault_(std::move(userfault)), name_(std::move(name)) {}

AddressSpace::~AddressSpace() = default;

void AddressSpace::wake(Address start, ByteCount length) { userfault_->wake(start, length); }

void AddressSpace::tally(Stats::Counter FaultStats::* counter, std::uint64_t n) {
  add(stats_.*counter, n);
  add(core_->stats().*counter, n);
}

void AddressSpace::tally_mapped(ByteCount mapped, ByteCount page) {
  const std::uint64_t folios = mapped.value / page.value;
  tally(&FaultStats::folios_mapped, folios);
  tally(&FaultStats::bytes_mapped, mapped.value);
  if (folios > 1) tally(&FaultStats::folios_around, folios - 1);
}

void AddressSpace::wake_later(Address start, ByteCount length) {
  tally(&FaultStats::wakes_deferred);
  core_->wake_later(weak_from_this(), start, length);
}

AddressSpace::Touch AddressSpace::touch_of(const uffd_msg* message) {
  if (message == nullptr) return Touch::load;
  const std::uint64_t flags = message->arg.pagefault.flags;
  if ((flags & UFFD_PAGEFAULT_FLAG_WP) != 0) return Touch::store_protected;
  return (flags & UFFD_PAGEFAULT_FLAG_WRITE) != 0 ? Touch::store : Touch::load;
}

void AddressSpace::handle_fault(Address address, const uffd_msg* message) {
  const TimePoint started = Clock::now();
  const Touch touch = touch_of(message);
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    std::shared_ptr<MemoryObject> object;
    FolioIndex index = 0;
    FolioWait wait;
    bool cached = false;
    {
      const SharedLock lock(lock_);
      Mapping* mapping = find_locked(address);
      if (mapping == nullptr) break;
      index = mapping->index_of(address);
      if (index >= mapping->object->folios()) return poison_fault_locked(*mapping, index);
      if (message != nullptr && goes_to_monitor_locked(*mapping, index, *message, UffdContext::Told::later))
          [[unlikely]]
        return;
      const Look look = map_cached_locked(*mapping, index, touch);
      if (look == Look::done) {
        tally(&FaultStats::faults_cached);
        const Duration taken = Clock::now() - started;
        core_->stats().of(Stage::cached).record(taken);
        stats_.cached.record(taken);
        if (!mapping->object->triggers_read_ahead(index)) [[likely]]
          return;
      }
      if (look == Look::broken) return poison_fault_locked(*mapping, index);
      if (look == Look::denied) return deny_write_locked(*mapping, index);
      object = mapping->object;
      if (look == Look::later) {
        return wake_later(mapping->address_of(index), object->folio_size());
      }
      if (look == Look::lost) object->lost(index);
      cached = look == Look::done;
      if (!cached) wait = {.waiter = shared_from_this(), .base = mapping->base()};
    }
    if (cached) return object->note_hit(index);
    object->note_touched({.first = index, .count = 1});  // before the thread can go on
    switch (object->fault(index, wait)) {
      case FaultOutcome::ready:
        continue;
      case FaultOutcome::queued:
        tally(&FaultStats::faults_missing);
        return;
      case FaultOutcome::later:
        return wake_later({align_down(address.value, object->folio_size().value)}, object->folio_size());
      case FaultOutcome::poisoned: {
        const SharedLock lock(lock_);
        const Mapping* mapping = find_locked(address);
        if (mapping == nullptr || mapping->object != object) continue;
        return poison_fault_locked(*mapping, index);
      }
    }
  }
  poison_unknown(address);
}

AddressSpace::Look AddressSpace::map_cached_locked(Mapping& mapping, FolioIndex index, Touch touch) {
  MemoryObject& object = *mapping.object;
  if (!object.cached()) return Look::absent;
  if (touch == Touch::store_protected && mapping.tracks_writes()) return allow_write_locked(mapping, index);
  Result<FolioRef> folio = object.get_folio(index);
  if (!folio) return folio.error().code() == Errc::protocol ? Look::broken : Look::absent;
  if (const Admission admission = admit_locked(mapping, index, touch); admission != Admission::granted) [[unlikely]]
    return admission == Admission::later ? Look::later : Look::denied;
  const FolioRange shown = mapping.folios();
  // A guess must not mark as written what nobody touches.
  const bool guesses = mapping.sharing != Sharing::shared_writable || mapping.tracks_writes();
  FolioRange window = mapping.streams->decide(index, shown.end(), guesses);
  window.count = window.end() - std::max(window.first, shown.first);
  window.first = std::max(window.first, shown.first);
  // Pins the neighbours; the faulting folio is pinned by its reference.
  FolioRange run{.first = index, .count = 1};
  // What a monitor has not resolved, or has protected or poisoned, is not for us to change.
  if (mapping.sharing == Sharing::copied) window = nearest(window, index, folios_copied_at_once(object.folio_size()));
  const bool alone = object.watched() || (touch != Touch::load && mapping.tracks_writes());
  if (window.count > 1 && !alone) run = object.states().pin_around(index, window);
  const ByteCount page = object.folio_size();
  object.note_touched(run);
  object.note_used(run);
  const os::Protect protect = may_map_locked(mapping, run, touch);
  // Faults wait for the folio at `index`: from there on first, so that neighbours before it cannot hold it up.
  Resolved resolved = show_cached_locked(mapping, {.first = index, .count = run.end() - index}, Mapped::stop, protect);
  if (resolved.resolution == Resolution::no_range && run.count > 1) {
    // The range crossed mappings of theirs.
    resolved = show_cached_locked(mapping, {.first = index, .count = 1}, Mapped::stop, protect);
  } else if (run.first < index) {
    const FolioRange before{.first = run.first, .count = index - run.first};
    resolved.mapped += show_cached_locked(mapping, before, Mapped::stop, protect).mapped;
  }
  object.states().unpin({.first = run.first, .count = index - run.first});
  object.states().unpin({.first = index + 1, .count = run.end() - index - 1});

  tally_mapped(resolved.mapped, page);
  if (resolved.reached >= page) return Look::done;
  switch (resolved.resolution) {
    case Resolution::not_cached:
      return Look::lost;
    case Resolution::try_later:
      wake_later(mapping.address_of(index), page);
      return Look::done;
    // Unmapped or exited while its fault was on the way: the thread looks for itself.
    case Resolution::no_range:
      userfault_->wake(mapping.address_of(index), page);
      return Look::done;
    // They mapped something else than they said. Zeroes would be a guess, and trying for ever helps nobody.
    case Resolution::refused:
      poison_locked(mapping, {.first = index, .count = 1});
      return Look::done;
    default:
      return Look::done;
  }
}

os::Protect AddressSpace::may_map_locked(const Mapping& mapping, FolioRange run, Touch touch) {
  if (mapping.tracks_writes()) return touch == Touch::load ? os::Protect::yes : os::Protect::no;
  if (mapping.sharing == Sharing::shared_writable) {
    mapping.object->note_written(run);
  }
  const bool protect = mapping.armed.has(UffdMode::wp) && os::write_protected(mapping.address_of(run.first));
  return protect ? os::Protect::yes : os::Protect::no;
}

Resolved AddressSpace::show_cached_locked(const Mapping& mapping, FolioRange run, Mapped mapped, os::Protect protect) {
  if (mapping.sharing == Sharing::copied) return copy_cached_locked(mapping, run);
  const ByteCount page = mapping.object->folio_size();
  return continue_range(*userfault_, mapping.address_of(run.first), page * run.count, page, mapped, protect);
}

Resolved AddressSpace::copy_cached_locked(const Mapping& mapping, FolioRange run) {
  MemoryObject& object = *mapping.object;
  const ByteCount page = object.folio_size();
  const std::uint64_t at_once = folios_copied_at_once(page);
  Resolved all{.resolution = Resolution::try_later};
  const std::span<std::byte> buffer = core_->staging().acquire(page * at_once);
  if (buffer.empty()) return all;
  for (FolioRange rest = run; !rest.empty();) {
    const FolioRange part{.first = rest.first, .count = std::min(rest.count, at_once)};
    const std::span<std::byte> pages = buffer.first(part.count * page.value);
    const ByteRange range = object.bytes_of(part);
    all.resolution = Resolution::try_later;
    if (!object.backing().read(range.start, pages.first(range.length.value))) break;
    std::ranges::fill(pages.subspan(range.length.value), std::byte{0});
    const Resolved copied = copy_range(*userfault_, mapping.address_of(part.first), pages, page);
    const bool nothing_new = copied.resolution == Resolution::done && copied.mapped.value == 0;
    if (nothing_new && page > kPageSize) check_pool_locked(mapping, part.first);
    all.resolution = copied.resolution;
    all.mapped += copied.mapped;
    all.reached += copied.reached;
    if (copied.resolution != Resolution::done) break;
    rest = {.first = part.end(), .count = rest.end() - part.end()};
  }
  core_->staging().release(buffer);
  return all;
}

void AddressSpace::check_pool_locked(const Mapping& mapping, FolioIndex index) {
  const Address start = mapping.address_of(index);
  if (!in_vain_for_long(start)) return;
  poison_locked(mapping, {.first = index, .count = 1});
  if (said_pool_.exchange(true, std::memory_order_relaxed)) return;
  log(LogLevel::error, "{}: no huge page is free for {:#x}: SIGBUS (raise /proc/sys/vm/nr_hugepages)", name_,
      start.value);
}

void AddressSpace::folios_news(const MemoryObject& object, std::uint64_t base, FolioRange folios, FolioNews news,
                               std::span<const std::byte> bytes) {
  const SharedLock lock(lock_);
  // The folios' addresses follow from the base: look at the mappings there only.
  const Address begin{base + folios.first * object.folio_size().value};
  const Address stop = begin + object.folio_size() * folios.count;
  for (std::size_t i = first_ending_after_locked(begin); i < mappings_.size() && mappings_[i]->start < stop; ++i) {
    const auto& mapping = mappings_[i];
    if (mapping->object.get() != &object || mapping->base() != base) continue;
    const FolioRange shown = mapping->folios();
    const FolioIndex first = std::max(shown.first, folios.first);
    const FolioIndex end = std::min(shown.end(), folios.end());
    if (first >= end) continue;
    const FolioRange part{.first = first, .count = end - first};
    const ByteCount length = mapping->object->folio_size() * part.count;
    // What nobody waited for may be a monitor's to resolve, or would be marked as written; what a monitor has poisoned
    // meanwhile stays so: the fault comes again.
    const bool only_touched =
        mapping->monitor != nullptr || (mapping->sharing == Sharing::shared_writable && !mapping->tracks_writes());
    const bool asks_again = (only_touched && folios.count > 1) ||
                            (mapping->monitor != nullptr && os::poison_marker(mapping->address_of(first)));
    switch (news == FolioNews::ready && asks_again && bytes.empty() ? FolioNews::retry : news) {
      case FolioNews::retry:
        userfault_->wake(mapping->address_of(first), length);
        break;
      case FolioNews::poisoned:
        // As in poison_fault_locked.
        if (mapping->tracks_writes())
          userfault_->writeprotect(mapping->address_of(first), length, os::Protect::no, os::Wake::no);
        poison_locked(*mapping, part);
        break;
      case FolioNews::ready:
        if (bytes.empty()) {
          map_news_locked(*mapping, part);
        } else {
          copy_news_locked(*mapping, part, folios, bytes);
        }
        break;
    }
  }
}

void AddressSpace::map_news_locked(const Mapping& mapping, FolioRange folios) {
  MemoryObject& object = *mapping.object;
  const ByteCount page = object.folio_size();
  ByteCount mapped;
  bool complete = true;
  for (FolioRange rest = folios; !rest.empty();) {
    const FolioRange run = object.states().pin_first_run(rest);
    complete = complete && run.first == rest.first && !run.empty();
    if (run.empty()) break;
    object.note_touched(run);
    const os::Protect protect = may_map_locked(mapping, run);
    const Resolved resolved = show_cached_locked(mapping, run, Mapped::skip, protect);
    object.states().unpin(run);
    mapped += resolved.mapped;
    complete = complete && resolved.resolution == Resolution::done;
    if (resolved.resolution == Resolution::try_later) {
      wake_later(mapping.address_of(run.first), page * run.count);
    }
    rest = {.first = run.end(), .count = rest.end() - run.end()};
  }
  tally_mapped(mapped, page);
  // What was evicted meanwhile, or lies in several mappings of theirs, comes again fault by fault.
  if (!complete) userfault_->wake(mapping.address_of(folios.first), page * folios.count);
}

void AddressSpace::copy_news_locked(const Mapping& mapping, FolioRange folios, FolioRange all,
                                    std::span<const std::byte> bytes) {
  const ByteCount page = mapping.object->folio_size();
  const Address start = mapping.address_of(folios.first);
  if (mapping.armed.has(UffdMode::missing)) {  // a monitor came meanwhile: what is absent there is its business
    userfault_->wake(start, page * folios.count);
    return;
  }
  // The object may end within its last page; the buffer's page goes on, zeroed.
  const ByteRange range = mapping.object->bytes_of(all);
  const std::uint64_t skip = (folios.first - all.first) * page.value;
  const std::span<const std::byte> pages(bytes.data() + skip, folios.count * page.value);
  UFFDA_ASSERT(align_up(range.length.value, page.value) >= skip + pages.size());
  const bool protect = mapping.armed.has(UffdMode::wp) && os::write_protected(start);
  const Resolved resolved = copy_range(*userfault_, start, pages, page, protect ? os::Protect::yes : os::Protect::no);
  tally(&FaultStats::folios_mapped, resolved.mapped.value / page.value);
  tally(&FaultStats::bytes_mapped, resolved.mapped.value);
  if (resolved.resolution == Resolution::try_later) wake_later(start, {pages.size()});
  if (resolved.resolution == Resolution::no_range) userfault_->wake(start, {pages.size()});
  if (resolved.resolution == Resolution::refused) poison_locked(mapping, folios);
}

AddressSpace::Supplied AddressSpace::supply(const MemoryObject& object, FolioRange folios, FolioNews news,
                                            std::span<const std::byte> bytes) {
  const std::uint64_t page = object.folio_size().value;
  Supplied outcome = Supplied::done;
  const SharedLock lock(lock_);
  for (const auto& mapping : mappings_) {
    if (mapping->object.get() != &object || mapping->monitor != nullptr) continue;
    const FolioRange shown = mapping->folios();
    const FolioIndex first = std::max(shown.first, folios.first);
    const FolioIndex end = std::min(shown.end(), folios.end());
    if (first >= end) continue;
    const FolioRange part{.first = first, .count = end - first};
    // The object may end within its last page; the buffer's page goes on, zeroed.
    const std::span<const std::byte> pages(bytes.data() + (first - folios.first) * page, part.count * page);
    if (supply_locked(*mapping, part, news, pages) == Supplied::later) outcome = Supplied::later;
  }
  return outcome;
}

AddressSpace::Supplied AddressSpace::supply_locked(const Mapping& mapping, FolioRange folios, FolioNews news,
                                                   std::span<const std::byte> pages) {
  const ByteCount page = mapping.object->folio_size();
  const Address start = mapping.address_of(folios.first);
  const ByteCount length = page * folios.count;
  for (ByteCount at; at < length;) {
    Resolved resolved;
    if (news == FolioNews::poisoned) {
      resolved = poison_range(*userfault_, start + at, length - at, page);
    } else {
      resolved = copy_range(*userfault_, start + at, pages.subspan(at.value), page);
      tally(&FaultStats::folios_mapped, resolved.mapped.value / page.value);
      tally(&FaultStats::bytes_mapped, resolved.mapped.value);
    }
    if (resolved.resolution == Resolution::try_later) return Supplied::later;
    if (resolved.resolution == Resolution::gone) break;
    // A page that is mapped no more, or is of another kind now, is not ours to fill; those behind it are.
    at += resolved.reached;
    if (resolved.resolution != Resolution::done) at += page;
  }
  return Supplied::done;
}

std::vector<FolioRange> AddressSpace::shown(const MemoryObject& object) const {
  std::vector<FolioRange> ranges;
  const SharedLock lock(lock_);
  for (const auto& mapping : mappings_) {
    if (mapping->object.get() == &object) ranges.push_back(mapping->folios());
  }
  return ranges;
}

UffdMode AddressSpace::mode_of_locked(const Mapping& mapping, FolioIndex index, bool kernel_has_it) {
  MemoryObject& object = *mapping.object;
  if (!object.cached() || !is_present(object.states().get(index))) return UffdMode::missing;
  if (kernel_has_it || os::has_page(object.backing().mapping_fd(), object.bytes_of({index, 1}).start))
    return UffdMode::minor;
  object.lost(index);  // somebody who has it mapped punched it
  return UffdMode::missing;
}

bool AddressSpace::is_monitors_locked(const Mapping& mapping, Address address, FolioIndex index, Touch touch) {
  const Address page{align_down(address.value, kPageSize.value)};
  if (os::poison_marker(page)) return true;  // which outlives the monitor
  if (mapping.monitor == nullptr) return false;
  if (mapping.armed.has(UffdMode::wp) && touch == Touch::store) {
    const os::PageEntry entry = os::page_entry(page);
    if (entry.present && entry.write_protected) return true;
  }
  return mapping.armed.has(mode_of_locked(mapping, index, false));
}

bool AddressSpace::goes_to_monitor_locked(Mapping& mapping, FolioIndex index, const uffd_msg& message,
                                          UffdContext::Told told_when) {
  const std::uint64_t flags = message.arg.pagefault.flags;
  const Address page = mapping.address_of(index);
  MemoryObject& object = *mapping.object;
  UffdMode mode = UffdMode::missing;
  if (mapping.tracks_writes()) return false;  // and has no monitor
  if ((flags & UFFD_PAGEFAULT_FLAG_WP) != 0) {
    mode = UffdMode::wp;
    if (mapping.monitor == nullptr || !mapping.armed.has(mode)) {  // protected by a monitor that is gone
      userfault_->writeprotect(page, object.folio_size(), os::Protect::no, os::Wake::yes);
      return true;
    }
  } else if (mapping.monitor == nullptr) {
    return false;
  } else {
    mode = mode_of_locked(mapping, index, (flags & UFFD_PAGEFAULT_FLAG_MINOR) != 0);
  }
  if (!mapping.armed.has(mode)) return false;
  uffd_msg told = message;
  told.arg.pagefault.flags = flags & UFFD_PAGEFAULT_FLAG_WRITE;
  if (mode == UffdMode::minor) told.arg.pagefault.flags |= UFFD_PAGEFAULT_FLAG_MINOR;
  if (mode == UffdMode::wp) told.arg.pagefault.flags |= UFFD_PAGEFAULT_FLAG_WP;
  if (!mapping.monitor->queue_fault(told, told_when)) wake_later(page, object.folio_size());
  return true;
}

void AddressSpace::poison_fault_locked(const Mapping& mapping, FolioIndex index) {
  const Address start = mapping.address_of(index);
  const ByteCount folio = mapping.object->folio_size();
  // Where there is no page, write protection is a marker, which POISON does not replace: the fault would come again for
  // ever. It may be there though no monitor is any more: a search for written pages also marks what is poisoned. And
  // where a page was evicted that was protected, its protection stays.
  if (mapping.object->watched() || mapping.tracks_writes())
    userfault_->writeprotect(start, folio, os::Protect::no, os::Wake::no);
  poison_locked(mapping, {.first = index, .count = 1});
}

void AddressSpace::poison_locked(const Mapping& mapping, FolioRange folios) {
  const Address start = mapping.address_of(folios.first);
  const ByteCount page = mapping.object->folio_size();
  const ByteCount length = page * folios.count;
  // Behind the end there is nothing to be had.
  if (lost_hook_ && folios.first < mapping.object->folios()) lost_hook_(*mapping.object, start);
  tally(&FaultStats::faults_poisoned);
  const Resolved resolved = poison_range(*userfault_, start, length, page);
  const bool comes_again = resolved.resolution == Resolution::try_later || resolved.resolution == Resolution::refused;
  if (comes_again) wake_later(start, length);
  if (resolved.resolution == Resolution::no_range) userfault_->wake(start, length);
}

bool AddressSpace::in_vain_for_long(Address page) {
  const TimePoint now = Clock::now();
  const Duration grace = std::min<Duration>(kUnknownGrace, core_->options().deadline);
  const MutexLock lock(unknown_mutex_);
  std::erase_if(unknown_, [&](const Unknown& other) { return now - other.since > 2 * grace; });
  const auto known = std::ranges::find(unknown_, page, &Unknown::page);
  if (known != unknown_.end()) return now - known->since >= grace;
  if (unknown_.size() == kMaxUnknown) return true;
  unknown_.push_back({.page = page, .since = now});
  return false;
}

void AddressSpace::forget_unknown(Address start, ByteCount length) {
  const MutexLock lock(unknown_mutex_);
  std::erase_if(unknown_, [&](const Unknown& other) { return other.page >= start && other.page - start < length; });
}

void AddressSpace::poison_unknown(Address address) {
  tally(&FaultStats::faults_unknown);
  const Address page{align_down(address.value, kPageSize.value)};
  {
    const SharedLock lock(lock_);
    // Still losing races; or the memory was registered, and we are about to be told of it.
    if (find_locked(address) != nullptr || !in_vain_for_long(page)) return wake_later(page, kPageSize);
    // Nobody told us what to show there, and zeroes would be a guess. If it was unmapped meanwhile, the wake lets the
    // thread see that.
    if (poison_range(*userfault_, page, kPageSize, kPageSize).resolution != Resolution::done) {
      userfault_->wake(page, kPageSize);
      return;
    }
  }
  // Once, or a client could fill the log.
  if (said_unknown_.exchange(true, std::memory_order_relaxed)) return;
  log(LogLevel::warning, "{}: a fault at {:#x}, which was registered but never mapped to an object: SIGBUS", name_,
      address.value);
}

AddressSpace::InlineOutcome AddressSpace::handle_inline(Address address, Touch touch) {
  bool filled = false;
  for (int attempt = 0; attempt < kAttempts * kAttempts; ++attempt) {
    std::shared_ptr<MemoryObject> object;
    FolioIndex index = 0;
    FolioWait wait;
    bool cached = false;
    bool later = false;
    {
      const SharedLock lock(lock_);
      Mapping* mapping = find_locked(address);
      if (mapping == nullptr) return InlineOutcome::not_ours;
      index = mapping->index_of(address);
      if (index >= mapping->object->folios()) return InlineOutcome::sigbus;  // beyond the end
      // What this fault itself has fetched is no minor fault: it was missing, and nobody wanted that.
      if (!filled && mapping->object->watched() && is_monitors_locked(*mapping, address, index, touch))
        return InlineOutcome::sigbus;
      const bool is_protected =
          touch == Touch::store && mapping->tracks_writes() && os::page_entry(mapping->address_of(index)).present;
      const Look look = map_cached_locked(*mapping, index, is_protected ? Touch::store_protected : touch);
      if (look == Look::done) {
        tally(&FaultStats::faults_cached);
        if (!mapping->object->triggers_read_ahead(index)) [[likely]]
          return InlineOutcome::resolved;
        cached = true;
      }
      if (look == Look::broken || look == Look::denied) return InlineOutcome::sigbus;
      later = look == Look::later;
      if (look == Look::lost) mapping->object->lost(index);
      object = mapping->object;
      if (!object->cached()) wait = {.waiter = shared_from_this(), .base = mapping->base()};
    }
    if (cached) {
      object->note_hit(index);
      return InlineOutcome::resolved;
    }
    if (later) {
      this_thread::sleep_for(kInlineWait);
      return InlineOutcome::resolved;  // the access faults again
    }
    if (object->states().get(index) == PageState::poisoned) return InlineOutcome::sigbus;
    tally(&FaultStats::faults_missing);
    if (!object->cached()) {
      // The bytes come by COPY, from whoever completes the fetch; until then the access is repeated.
      const FaultOutcome outcome = object->fault(index, wait);
      if (outcome == FaultOutcome::poisoned) return InlineOutcome::sigbus;
      if (outcome == FaultOutcome::later) continue;
      object->wait_while_filling(index, Deadline::after(core_->options().deadline));
      return InlineOutcome::resolved;
    }
    const FaultOutcome outcome = object->fill_now(index, Deadline::after(core_->options().deadline));
    if (outcome == FaultOutcome::poisoned) return InlineOutcome::sigbus;
    filled = outcome == FaultOutcome::ready;
  }
  return InlineOutcome::resolved;  // the access faults again
}

}  // namespace uffda
