// Resolutions by a monitor: COPY, ZEROPAGE, CONTINUE, POISON, MOVE, WRITEPROTECT, WAKE, with the kernel's order of
// checks: an unread event, the range, the flags, the mapping, then folio by folio until one cannot be done.
#include <algorithm>
#include <array>
#include <cerrno>
#include <memory>

#include "mm/uffd_monitor.h"

namespace uffda {
namespace {

constexpr ByteCount kPart = 1_MiB;  // copied at a time
constexpr std::size_t kZeroes = 64 * 1024;

constexpr UffdOutcome invalid() { return {.error = EINVAL, .done = {}}; }
constexpr UffdOutcome event_unread() { return {.error = EAGAIN, .done = -EAGAIN}; }

constexpr bool only(ResolveFlags flags, ResolveFlags known) { return known.has_all(flags); }
constexpr os::Wake wake_of(ResolveFlags flags) {
  return flags.has(ResolveFlag::dontwake) ? os::Wake::no : os::Wake::yes;
}
constexpr os::Protect protect_of(ResolveFlags flags) {
  return flags.has(ResolveFlag::wp) ? os::Protect::yes : os::Protect::no;
}

bool takes(const Mapping& mapping, UffdIoctl ioctl) { return mapping.object->type().ops()->ioctls.has(ioctl); }

int errno_of(const Error& error) {
  switch (error.code()) {
    case Errc::already_exists:
      return EEXIST;
    case Errc::again:
      return EAGAIN;
    default:
      return error.sys_errno() != 0 ? error.sys_errno() : ENOMEM;
  }
}

}  // namespace

Mapping* UffdMonitor::target(Address start, ByteCount length) const {
  Mapping* mapping = space_->find_locked(start);
  if (mapping == nullptr || mapping->monitor == nullptr || mapping->end() < start + length) return nullptr;
  return mapping;
}

bool UffdMonitor::lost(const Mapping& mapping, FolioIndex index) {
  MemoryObject& object = *mapping.object;
  if (os::has_page(object.backing().mapping_fd(), object.bytes_of({index, 1}).start)) return false;
  object.lost(index);  // somebody who has it mapped punched it
  return true;
}

UffdOutcome UffdMonitor::finish(Address start, ByteCount length, ResolveFlags flags, os::Progress progress) {
  if (progress.done.value == 0) return {.error = progress.error, .done = -progress.error};
  if (wake_of(flags) == os::Wake::yes && context_->forget_faults(start, progress.done))
    space_->wake(start, progress.done);
  return {.error = progress.done == length ? 0 : EAGAIN, .done = static_cast<std::int64_t>(progress.done.value)};
}

os::Progress UffdMonitor::fill_cache(const Mapping& mapping, const Step& step, std::span<const std::byte> bytes) {
  MemoryObject& object = *mapping.object;
  const ByteCount folio = object.folio_size();
  if (step.protect == os::Protect::yes && !mapping.armed.has(UffdMode::wp)) return {.done = {}, .error = EINVAL};
  if ((step.start - mapping.start).value % folio.value != 0) return {.done = {}, .error = EINVAL};
  ByteCount done;
  while (done < step.length) {
    const FolioIndex index = mapping.index_of(step.start + done);
    if (index >= object.folios()) return {.done = done, .error = EFAULT};
    const std::uint64_t count =
        std::min((step.length - done).value / folio.value, static_cast<std::uint64_t>(object.folios() - index));
    if (count == 0) return {.done = done, .error = EINVAL};  // not whole folios
    const Result<std::uint64_t> filled =
        object.fill_absent({.first = index, .count = count}, bytes.subspan(done.value));
    if (!filled && filled.error().code() == Errc::already_exists && lost(mapping, index)) continue;
    if (!filled) return {.done = done, .error = errno_of(filled.error())};
    const os::Progress mapped = continue_part(mapping, {step.start + done, folio * *filled, step.wake, step.protect});
    done += mapped.done;
    if (mapped.error != 0) return {.done = done, .error = mapped.error};
  }
  return {.done = done, .error = 0};
}

os::Progress UffdMonitor::copy_part(const Step& step, Address from) {
  // Copied out first: what lies at `from` may be absent, and who serves it may need the lock.
  const auto bytes = std::make_unique_for_overwrite<std::byte[]>(step.length.value);
  const ByteCount found = os::copy_readable({bytes.get(), step.length.value}, from);
  const SharedLock lock(space_->lock_);
  const Mapping* mapping = target(step.start, step.length);
  if (mapping == nullptr) return {.done = {}, .error = ENOENT};
  const ByteCount readable{align_down(found.value, mapping->object->folio_size().value)};
  if (readable.value == 0) return {.done = {}, .error = EFAULT};
  const std::span<const std::byte> copied(bytes.get(), readable.value);
  os::Progress progress;
  if (mapping->shows_cache()) {
    progress = fill_cache(*mapping, {step.start, readable, step.wake, step.protect}, copied);
  } else {
    progress = space_->userfault_->copy(step.start, copied, step.wake, step.protect);
  }
  if (progress.error == 0 && readable < step.length) progress.error = EFAULT;
  return progress;
}

UffdOutcome UffdMonitor::copy(Address to, Address from, ByteCount length, ResolveFlags flags) {
  if (context_->changing()) return event_unread();
  const ByteCount whole{align_up(from.value % kPageSize.value + length.value, kPageSize.value)};
  const Address source{align_down(from.value, kPageSize.value)};
  if (length.value % kPageSize.value != 0 || !valid_uffd_range(source, whole) || !valid_uffd_range(to, length))
    return invalid();
  if (!only(flags, {ResolveFlag::dontwake, ResolveFlag::wp})) return invalid();
  ByteCount most = kPart;
  {
    const SharedLock lock(space_->lock_);
    const Mapping* mapping = target(to, length);
    if (mapping == nullptr) return {.error = ENOENT, .done = -ENOENT};
    const ByteCount folio = mapping->object->folio_size();
    if ((to - mapping->start).value % folio.value != 0 || length.value % folio.value != 0)
      return {.error = EINVAL, .done = -EINVAL};
    most = std::max(most, folio);
    if (flags.has(ResolveFlag::wp) && !mapping->armed.has(UffdMode::wp)) return {.error = EINVAL, .done = -EINVAL};
    if (!takes(*mapping, UffdIoctl::copy)) return {.error = EINVAL, .done = -EINVAL};
  }
  os::Progress all;
  while (all.done < length && all.error == 0) {
    const ByteCount part = std::min(length - all.done, most);
    const os::Progress progress = copy_part({to + all.done, part, wake_of(flags), protect_of(flags)}, from + all.done);
    all.done += progress.done;
    all.error = progress.error;
  }
  return finish(to, length, flags, all);
}

os::Progress UffdMonitor::zero_part(const Step& step) {
  static constexpr std::array<std::byte, kZeroes> kNothing{};
  const SharedLock lock(space_->lock_);
  const Mapping* mapping = target(step.start, step.length);
  if (mapping == nullptr) return {.done = {}, .error = ENOENT};
  if (!mapping->shows_cache()) return space_->userfault_->zeropage(step.start, step.length, step.wake);
  if (!takes(*mapping, UffdIoctl::zeropage)) return {.done = {}, .error = EINVAL};
  return fill_cache(*mapping, step, kNothing);
}

UffdOutcome UffdMonitor::zeropage(Address start, ByteCount length, ResolveFlags flags) {
  if (context_->changing()) return event_unread();
  if (!valid_uffd_range(start, length) || !only(flags, {ResolveFlag::dontwake})) return invalid();
  {
    const SharedLock lock(space_->lock_);
    if (target(start, length) == nullptr) return {.error = ENOENT, .done = -ENOENT};
  }
  os::Progress all;
  while (all.done < length && all.error == 0) {
    const ByteCount part = std::min(length - all.done, ByteCount{kZeroes});
    const os::Progress progress = zero_part({start + all.done, part, wake_of(flags), os::Protect::no});
    all.done += progress.done;
    all.error = progress.error;
  }
  return finish(start, length, flags, all);
}

os::Progress UffdMonitor::continue_part(const Mapping& mapping, const Step& step) {
  MemoryObject& object = *mapping.object;
  const ByteCount folio = object.folio_size();
  ByteCount done;
  while (done < step.length) {
    const FolioIndex index = mapping.index_of(step.start + done);
    const std::uint64_t left = (step.length - done).value / folio.value;
    FolioRange run{.first = index, .count = 0};
    if (index < object.folios()) {
      // Our state says what is cached, and a pin keeps it so; the kernel's cache alone says nothing.
      const FolioIndex stop = std::min<FolioIndex>(index + left, object.folios());
      if (!object.states().pin(index)) return {.done = done, .error = EFAULT};
      run = object.states().pin_around(index, {.first = index, .count = stop - index});
    }
    if (mapping.sharing == Sharing::shared_writable) object.note_written(run);
    const ByteCount length = folio * std::max<std::uint64_t>(run.count, 1);
    const os::Progress progress = space_->userfault_->continue_run(
        step.start + done, std::min(length, step.length - done), step.wake, step.protect);
    object.states().unpin(run);
    done += progress.done;
    if (progress.error == 0) continue;
    if (progress.done.value == 0) return {.done = done, .error = progress.error};
  }
  return {.done = done, .error = 0};
}

UffdOutcome UffdMonitor::continue_(Address start, ByteCount length, ResolveFlags flags) {
  if (context_->changing()) return event_unread();
  if (!valid_uffd_range(start, length) || !only(flags, {ResolveFlag::dontwake, ResolveFlag::wp})) return invalid();
  const SharedLock lock(space_->lock_);
  const Mapping* mapping = target(start, length);
  os::Progress progress{.done = {}, .error = ENOENT};
  if (mapping != nullptr) {
    const bool can = mapping->object->cached() && takes(*mapping, UffdIoctl::continue_) &&
                     (!flags.has(ResolveFlag::wp) || mapping->armed.has(UffdMode::wp));
    progress = can ? continue_part(*mapping, {start, length, wake_of(flags), protect_of(flags)})
                   : os::Progress{.done = {}, .error = EINVAL};
  }
  return finish(start, length, flags, progress);
}

UffdOutcome UffdMonitor::poison(Address start, ByteCount length, ResolveFlags flags) {
  if (context_->changing()) return event_unread();
  if (!valid_uffd_range(start, length) || !only(flags, {ResolveFlag::dontwake})) return invalid();
  const ExclusiveLock lock(space_->lock_);  // as writeprotect: who fills the page looks for the poison first
  const Mapping* mapping = target(start, length);
  if (mapping == nullptr) return {.error = ENOENT, .done = -ENOENT};
  if (!takes(*mapping, UffdIoctl::poison)) return {.error = EINVAL, .done = -EINVAL};
  return finish(start, length, flags, space_->userfault_->poison(start, length, wake_of(flags)));
}

UffdOutcome UffdMonitor::move(Address to, Address from, ByteCount length, ResolveFlags flags) {
  if (context_->changing()) return event_unread();
  if (!valid_uffd_range(to, length) || !valid_uffd_range(from, length)) return invalid();
  if (!only(flags, {ResolveFlag::dontwake, ResolveFlag::allow_src_holes})) return invalid();
  const SharedLock lock(space_->lock_);
  const Mapping* mapping = space_->find_locked(to);
  os::Progress progress{.done = {}, .error = EINVAL};
  const bool holes = flags.has(ResolveFlag::allow_src_holes);
  // Only memory without a page cache has pages of its own to replace.
  const bool own = mapping != nullptr && mapping->monitor == context_ && !mapping->object->cached();
  const Mapping* source = space_->find_locked(from);
  const bool whole =
      (mapping == nullptr || mapping->end() >= to + length) && (source == nullptr || source->end() >= from + length);
  if (whole && (own || mapping == nullptr))
    progress = space_->userfault_->move(to, from, length, wake_of(flags),
                                        holes ? os::SourceHoles::allow : os::SourceHoles::refuse);
  return finish(to, length, flags, progress);
}

UffdOutcome UffdMonitor::writeprotect(Address start, ByteCount length, ResolveFlags flags) {
  if (context_->changing()) return {.error = EAGAIN, .done = {}};
  if (!valid_uffd_range(start, length) || !only(flags, {ResolveFlag::dontwake, ResolveFlag::wp})) return invalid();
  if (flags.has_all({ResolveFlag::dontwake, ResolveFlag::wp})) return invalid();
  const Address end = start + length;
  int error = ENOENT;
  {
    // Exclusive: who maps a page looks whether it is protected, and maps it so; both are one step for us.
    const ExclusiveLock lock(space_->lock_);
    auto& mappings = space_->mappings_;
    Address at = start;
    for (std::size_t i = space_->first_ending_after_locked(start); i < mappings.size() && mappings[i]->start < end;
         ++i) {
      const Mapping part = mappings[i]->part(start, end);
      // Nothing between mappings is passed over, somebody else's memory is not.
      error = os::any_mapped(at, part.start - at) ? ENOENT : 0;
      if (error != 0) break;
      at = part.end();
      error = part.monitor != nullptr && part.armed.has(UffdMode::wp)
                  ? space_->userfault_->writeprotect(part.start, part.length, protect_of(flags), os::Wake::no)
                  : ENOENT;
      if (error != 0) break;
    }
    if (error == 0 && os::any_mapped(at, end - at)) error = ENOENT;
  }
  if (error != 0) return {.error = error, .done = {}};
  if (!flags.has(ResolveFlag::wp) && !flags.has(ResolveFlag::dontwake)) return wake(start, length);
  return {};
}

UffdOutcome UffdMonitor::wake(Address start, ByteCount length) {
  if (!valid_uffd_range(start, length)) return invalid();
  const SharedLock lock(space_->lock_);  // whoever reads messages has queued them, or reads them later
  (void)context_->forget_faults(start, length);
  space_->wake(start, length);
  return {};
}

bool UffdMonitor::tracks_writes(Address start, Address end) const {
  Address at = start;
  auto& mappings = space_->mappings_;
  for (std::size_t i = space_->first_ending_after_locked(start); i < mappings.size() && at < end; ++i) {
    const Mapping& mapping = *mappings[i];
    if (mapping.start > at || mapping.monitor != context_ || !mapping.armed.has(UffdMode::wp)) return false;
    at = mapping.end();
  }
  return at >= end;
}

Result<WrittenPages> UffdMonitor::written(Address start, ByteCount length, std::span<WrittenRange> found, Rearm rearm) {
  if (!valid_uffd_range(start, length)) return fail(Errc::invalid_argument, "not whole pages", EINVAL);
  if (found.empty()) return fail(Errc::invalid_argument, "no room for a range", EINVAL);
  const Address end = start + length;
  const SharedLock lock(space_->lock_);
  if (!context_->features().has(UffdFeature::wp_async) || !tracks_writes(start, end)) {
    return fail(Errc::permission_denied, "not all of the range is registered for wp by a monitor with wp_async", EPERM);
  }
  WrittenPages pages{.ranges = 0, .end = start};
  std::array<page_region, 64> regions{};
  while (pages.end < end && pages.ranges < found.size()) {
    const auto room = std::span(regions).first(std::min(regions.size(), found.size() - pages.ranges));
    const auto scan = os::scan_written(pages.end, end, room, rearm == Rearm::yes);
    if (!scan && pages.end == start) return std::unexpected(scan.error());
    if (!scan) {
      // What was found is protected again, and must be said; and of the rest nobody knows how far the search came.
      found[pages.ranges++] = {.start = pages.end, .length = end - pages.end};
      pages.end = end;
      break;
    }
    for (const page_region& region : room.first(scan->regions)) {
      WrittenRange* const last = pages.ranges != 0 ? &found[pages.ranges - 1] : nullptr;
      if (last != nullptr && last->start + last->length == Address{region.start}) {
        last->length += ByteCount{region.end - region.start};
      } else {
        found[pages.ranges++] = {.start = {region.start}, .length = {region.end - region.start}};
      }
    }
    pages.end = scan->end;
  }
  return pages;
}

}  // namespace uffda
