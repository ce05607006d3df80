// The list of mappings of an address space, and the events that keep it true.
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/log.h"
#include "mm/address_space.h"
#include "mm/kept_mappings.h"

namespace uffda {
namespace {

constexpr std::uint8_t kHandled = 0;  // of a message: no event has this number

}  // namespace

FolioIndex Mapping::index_of(Address address) const {
  return (offset.value + (address - start).value) / object->folio_size().value;
}

Address Mapping::address_of(FolioIndex index) const {
  return start + ByteCount{index * object->folio_size().value - offset.value};
}

FolioRange Mapping::folios() const {
  const std::uint64_t folio = object->folio_size().value;
  const FolioIndex first = offset.value / folio;
  const FolioIndex end = std::min(object->folios(), (offset.value + length.value) / folio);
  return {.first = first, .count = end > first ? end - first : 0};
}

Mapping Mapping::part(Address from, Address to) const {
  const Address first = std::max(start, from);
  return {.start = first,
          .length = std::min(end(), to) - first,
          .offset = offset + (first - start),
          .object = object,
          .sharing = sharing,
          .monitor = monitor,
          .armed = armed};
}

std::size_t AddressSpace::first_ending_after_locked(Address address) const {
  const auto at =
      std::ranges::partition_point(mappings_, [&](const auto& mapping) { return mapping->end() <= address; });
  return static_cast<std::size_t>(at - mappings_.begin());
}

Mapping* AddressSpace::find_locked(Address address) const {
  const std::size_t at = first_ending_after_locked(address);
  if (at == mappings_.size() || mappings_[at]->start > address) return nullptr;
  return mappings_[at].get();
}

std::size_t AddressSpace::mapping_count() const {
  const SharedLock lock(lock_);
  return mappings_.size();
}

bool AddressSpace::maps(Address address) const {
  const SharedLock lock(lock_);
  return find_locked(address) != nullptr;
}

Result<void> AddressSpace::attach(Address start, ByteCount length, std::shared_ptr<MemoryObject> object,
                                  ByteOffset offset, Sharing sharing) {
  const std::uint64_t folio = object->folio_size().value;
  if (length.value == 0 || start.value % folio != 0 || length.value % folio != 0 || offset.value % folio != 0) {
    return fail(Errc::invalid_argument,
                fmt::format("address, length and offset must be multiples of {} and the length not 0", folio));
  }
  if (start.value + length.value < start.value) return fail(Errc::invalid_argument, "the range wraps around");
  if (offset.value >= object->size().value)
    return fail(Errc::invalid_argument, "the offset lies beyond the end of the object");
  std::vector<std::unique_ptr<Mapping>> dropped;
  bool replaces = false;
  {
    const ExclusiveLock lock(lock_);
    if (mappings_.size() + 2 > kMaxMappings)
      return fail(Errc::no_memory, fmt::format("more than {} mappings in one address space", kMaxMappings));
    if (log_ && log_->nearly_full()) rewrite_log_locked();
    const std::size_t at = first_ending_after_locked(start);
    replaces = at < mappings_.size() && mappings_[at]->start < start + length;
    cut_locked(start, start + length);
    dropped.swap(cut_);
    forget_unknown(start, length);
    show_locked(start, length, std::move(object), offset, sharing);
    record_locked(record_of(*find_locked(start)));
  }
  // A thread that waits there for what was shown before is told of it no more.
  if (replaces) wake(start, length);
  return {};
}

void AddressSpace::detach(Address start, ByteCount length) {
  std::vector<std::unique_ptr<Mapping>> dropped;
  {
    const ExclusiveLock lock(lock_);
    if (log_ && log_->nearly_full()) rewrite_log_locked();
    cut_locked(start, start + length);
    record_locked({.start = start.value, .length = length.value, .kind = MappingRecord::Kind::unmap});
    dropped.swap(cut_);
  }
  wake(start, length);
}

void AddressSpace::show_locked(Address start, ByteCount length, std::shared_ptr<MemoryObject> object, ByteOffset offset,
                               Sharing sharing) {
  Mapping mapping{.start = start, .length = length, .offset = offset, .object = std::move(object), .sharing = sharing};
  if ((mapping.shows_cache() && userfault_->can_unmap()) || mapping.tracks_writes())
    mapping.object->add_mapper(weak_from_this());
  insert_locked(std::move(mapping));
}

void AddressSpace::close() {
  std::vector<std::unique_ptr<Mapping>> dropped;
  const ExclusiveLock lock(lock_);
  dropped.swap(mappings_);
}

void AddressSpace::insert_locked(Mapping mapping) {
  const auto at =
      std::ranges::partition_point(mappings_, [&](const auto& other) { return other->start < mapping.start; });
  mappings_.insert(at, std::make_unique<Mapping>(std::move(mapping)));
}

void AddressSpace::cut_locked(Address start, Address end) {
  for (std::size_t i = first_ending_after_locked(start); i < mappings_.size() && mappings_[i]->start < end;) {
    Mapping& mapping = *mappings_[i];
    const Address old_end = mapping.end();
    if (mapping.start >= start && old_end <= end) {
      cut_.push_back(std::move(mappings_[i]));
      mappings_.erase(mappings_.begin() + static_cast<std::ptrdiff_t>(i));
      continue;
    }
    if (old_end > end) {  // a part stays behind the cut
      Mapping tail = mapping.part(end, old_end);
      if (mapping.start >= start) {
        mapping.offset = tail.offset;
        mapping.start = end;
        mapping.length = tail.length;
        return;
      }
      mapping.length = start - mapping.start;
      if (mappings_.size() < kMaxMappings) {
        insert_locked(std::move(tail));
      } else if (!std::exchange(said_crowded_, true)) {
        log(LogLevel::error, "{}: more than {} mappings: what lies behind the last hole is lost, and gets SIGBUS",
            name_, kMaxMappings);
      }
      return;
    }
    mapping.length = start - mapping.start;
    ++i;
  }
}

void AddressSpace::remap_locked(Address from, Address to, ByteCount length) {
  std::vector<Mapping> moved;
  const Address end = from + length;
  for (std::size_t i = first_ending_after_locked(from); i < mappings_.size() && mappings_[i]->start < end; ++i) {
    Mapping mapping = mappings_[i]->part(from, end);
    mapping.start = to + (mapping.start - from);
    // As in the kernel: a monitor that does not hear of the move loses what moves.
    if (mapping.monitor != nullptr && !mapping.monitor->features().has(UffdFeature::event_remap)) {
      mapping.monitor = nullptr;
      mapping.armed = {};
    }
    moved.push_back(std::move(mapping));
  }
  cut_locked(from, end);
  cut_locked(to, to + length);
  for (Mapping& mapping : moved) insert_locked(std::move(mapping));
  std::vector<Dropped> dropped = lately_dropped_locked(from, end);
  for (Dropped& range : dropped) {
    range.start = to + (range.start - from);
    range.end = to + (range.end - from);
  }
  leave_again_locked(dropped);
}

void AddressSpace::forget_copied_locked(Address start, Address end) {
  for (Address at = start; at < end;) {
    const std::size_t i = first_ending_after_locked(at);
    if (i == mappings_.size() || mappings_[i]->start >= end) return;
    const Address next = std::min(mappings_[i]->end(), end);
    if (mappings_[i]->sharing == Sharing::copied) {
      const Address from = std::max(mappings_[i]->start, at);
      cut_locked(from, next);
      note_dropped_locked(from, next);
    }
    at = next;
  }
}

void AddressSpace::note_dropped_locked(Address start, Address end) {
  const TimePoint now = Clock::now();
  while (!dropped_.empty() && (dropped_.size() == kMaxDropped || now - dropped_.front().when > kLately))
    dropped_.pop_front();
  if (!dropped_.empty() && dropped_.back().end == start) {
    dropped_.back() = {.start = dropped_.back().start, .end = end, .when = now};
  } else {
    dropped_.push_back({.start = start, .end = end, .when = now});
  }
}

std::vector<AddressSpace::Dropped> AddressSpace::lately_dropped_locked(Address start, Address end) const {
  const TimePoint now = Clock::now();
  std::vector<Dropped> found;
  for (const Dropped& range : dropped_) {
    const Address from = std::max(range.start, start);
    const Address to = std::min(range.end, end);
    if (from < to && now - range.when <= kLately) found.push_back({.start = from, .end = to, .when = range.when});
  }
  return found;
}

void AddressSpace::leave_again_locked(const std::vector<Dropped>& dropped) {
  for (const Dropped& range : dropped) {
    note_dropped_locked(range.start, range.end);
    for (Address at = range.start; at < range.end;) {
      const std::size_t i = first_ending_after_locked(at);
      const bool shown = i < mappings_.size() && mappings_[i]->start <= at;
      const Address next = i == mappings_.size() ? range.end : shown ? mappings_[i]->end() : mappings_[i]->start;
      const ByteCount length = std::min(next, range.end) - at;
      // It may have moved on, or be gone: that is still to be told.
      if (!shown && !userfault_->unregister_range(at, length)) wake(at, length);
      at = next;
    }
  }
}

void AddressSpace::leave_to_kernel_locked(Address start, Address end) {
  for (std::size_t i = first_ending_after_locked(start); i < mappings_.size() && mappings_[i]->start < end; ++i) {
    if (mappings_[i]->sharing != Sharing::copied) continue;
    const Address from = std::max(mappings_[i]->start, start);
    const Address to = std::min(mappings_[i]->end(), end);
    const auto left = userfault_->unregister_range(from, to - from);
    if (left || !userfault_->alive()) continue;  // of one that has exited the kernel says ENOMEM, too
    // Still trapped, and nobody's: SIGBUS. What was dropped never shows the object's bytes again.
    wake(from, to - from);
    if (left.error().sys_errno() == EINVAL) continue;  // it was moved or unmapped meanwhile: that event is to come
    if (std::exchange(said_crowded_, true)) continue;
    log(LogLevel::error, "{}: memory that was dropped cannot be left to the kernel, and gets SIGBUS: {}{}", name_,
        left.error().message(), left.error().sys_errno() == ENOMEM ? " (raise vm.max_map_count)" : "");
  }
}

void AddressSpace::apply_event_locked(const uffd_msg& message) {
  tally(&FaultStats::events);
  MappingRecord record;
  switch (message.event) {
    // A thread that waits in the range has lost its mapping: no fetch will reach it, and the kernel does not wake it.
    case UFFD_EVENT_UNMAP: {
      const Address start{message.arg.remove.start};
      const Address end{message.arg.remove.end};
      tell_monitors_locked(message, start, end);
      tell_moved_locked(message);
      cut_locked(start, end);
      record = {.start = start.value, .length = (end - start).value, .kind = MappingRecord::Kind::unmap};
      wake(start, end - start);
      break;
    }
    case UFFD_EVENT_REMAP:
      tell_monitors_locked(message, {message.arg.remap.from},
                           Address{message.arg.remap.from} + ByteCount{message.arg.remap.len});
      remap_locked({message.arg.remap.from}, {message.arg.remap.to}, {message.arg.remap.len});
      record = {.start = message.arg.remap.from,
                .length = message.arg.remap.len,
                .other = message.arg.remap.to,
                .kind = MappingRecord::Kind::move};
      wake({message.arg.remap.from}, {message.arg.remap.len});
      break;
    case UFFD_EVENT_REMOVE: {
      // Dropped pages of the cache show its bytes again. Those of anonymous memory are zeroes, which the kernel makes
      // of them without us: that outlives this process, too.
      const Address start{message.arg.remove.start};
      const Address end{message.arg.remove.end};
      tell_monitors_locked(message, start, end);
      leave_to_kernel_locked(start, end);
      forget_copied_locked(start, end);
      record = {.start = start.value, .length = (end - start).value, .kind = MappingRecord::Kind::drop};
      break;
    }
    case UFFD_EVENT_FORK:
      born_.push_back(fork_locked(static_cast<int>(message.arg.fork.ufd)));
      break;
    default:
      log(LogLevel::warning, "{}: unknown userfaultfd event {:#x}", name_, message.event);
  }
  record_locked(record);
}

std::shared_ptr<AddressSpace> AddressSpace::fork_locked(int fd) {
  os::UniqueFd owned(fd);
  auto userfault = os::adopt_userfault(std::move(owned), userfault_->features());
  if (!userfault) {
    log(LogLevel::error, "{}: a fork event without a userfaultfd: {}", name_, userfault.error().message());
    return nullptr;
  }
  auto child = create(core_, std::move(*userfault), name_ + " (child)");
  const ExclusiveLock lock(child->lock_);
  for (const auto& mapping : mappings_) {
    Mapping copy = mapping->part(mapping->start, mapping->end());
    copy.monitor = nullptr;
    copy.armed = {};
    // In the same step as the event: until it is read, the parent's pages cannot be protected.
    if (copy.tracks_writes()) copy.object->add_mapper(child);
    child->insert_locked(std::move(copy));
  }
  child->leave_again_locked(lately_dropped_locked({}, Address{~std::uint64_t{0}}));
  child->fork_hook_ = fork_hook_;
  child->keep_child_ = keep_child_;
  KeptSpace* const space = keep_child_ ? keep_child_(fd, child->userfault().features()) : nullptr;
  if (space == nullptr) return child;
  child->log_.emplace(*space);
  child->rewrite_log_locked();
  space->used.store(1, std::memory_order_release);
  preemption_point();
  return child;
}

bool AddressSpace::told_monitor_locked(const uffd_msg& message) {
  const Address address{message.arg.pagefault.address};
  Mapping* const mapping = find_locked(address);
  if (mapping == nullptr || mapping->monitor == nullptr) return false;
  const FolioIndex index = mapping->index_of(address);
  return index < mapping->object->folios() &&
         goes_to_monitor_locked(*mapping, index, message, UffdContext::Told::at_once);
}

void AddressSpace::hand_over_born(std::vector<std::shared_ptr<AddressSpace>> born) {
  for (auto& child : born) {
    if (child == nullptr) continue;
    if (fork_hook_) {
      fork_hook_(std::move(child));
    } else {
      log(LogLevel::error, "{}: a child that nobody serves: its faults wait until it is killed", name_);
    }
  }
}

Result<AddressSpace::Drained> AddressSpace::read_locked(std::span<uffd_msg> messages) {
  Drained drained;
  if (log_ && log_->nearly_full()) rewrite_log_locked();
  const std::span<uffd_msg> kept = log_ ? log_->begin_batch() : messages;
  const std::span<uffd_msg> batch = kept.first(std::min(kept.size(), messages.size()));
  const std::size_t count = UFFDA_TRY(userfault_->read(batch, os::Wait::no));
  for (uffd_msg& message : batch.first(count)) {
    if (message.event != UFFD_EVENT_PAGEFAULT) {
      apply_event_locked(message);
    } else if (told_monitor_locked(message)) {
      message.event = kHandled;
    }
  }
  if (log_) std::ranges::copy(batch.first(count), messages.begin());
  if (log_) log_->end_batch(count);
  drained.count = count;
  drained.born.swap(born_);
  drained.dropped.swap(cut_);
  return drained;
}

std::size_t AddressSpace::handle_drained(Drained drained, std::span<const uffd_msg> messages) {
  hand_over_born(std::move(drained.born));
  for (const uffd_msg& message : messages.first(drained.count)) {
    if (message.event == UFFD_EVENT_PAGEFAULT) handle_fault({message.arg.pagefault.address}, &message);
  }
  return drained.count;
}

Result<std::size_t> AddressSpace::drain(std::span<uffd_msg> messages) {
  Drained drained;
  {
    const ExclusiveLock lock(lock_);
    drained = UFFDA_TRY(read_locked(messages));
  }
  return handle_drained(std::move(drained), messages);
}

Result<std::size_t> AddressSpace::try_drain(std::span<uffd_msg> messages) {
  if (!lock_.try_lock()) return fail(Errc::again);
  auto drained = read_locked(messages);
  lock_.unlock();
  return handle_drained(UFFDA_TRY(std::move(drained)), messages);
}

}  // namespace uffda
