// Registration of a monitor's ranges, and the events that it hears of.
#include <algorithm>
#include <cerrno>
#include <vector>

#include "mm/uffd_monitor.h"

namespace uffda {
namespace {

constexpr std::uint64_t kTaskSize = 0x7fff'ffff'f000;
constexpr UffdModes kAllModes{UffdMode::missing, UffdMode::wp, UffdMode::minor};
constexpr std::uint64_t kWakeBit = std::uint64_t{1} << _UFFDIO_WAKE;

std::unexpected<Error> refused(int error, const char* why) { return fail(Errc::invalid_argument, why, error); }

/// The resolutions that a range of such memory takes after registering it for `modes`.
UffdIoctls ioctls_of(const UffdOps& ops, UffdModes modes) {
  std::uint64_t bits = ops.ioctls.bits();
  if (!modes.has(UffdMode::wp)) bits &= ~UffdIoctls(UffdIoctl::writeprotect).bits();
  if (!modes.has(UffdMode::minor)) bits &= ~UffdIoctls(UffdIoctl::continue_).bits();
  return UffdIoctls::from_bits(bits);
}

}  // namespace

bool valid_uffd_range(Address start, ByteCount length) {
  return start.value % kPageSize.value == 0 && length.value % kPageSize.value == 0 && length.value != 0 &&
         start.value < kTaskSize && length.value <= kTaskSize - start.value;
}

void AddressSpace::split_at_locked(Address address) {
  const std::size_t at = first_ending_after_locked(address);
  if (at == mappings_.size() || mappings_[at]->start >= address) return;
  Mapping& mapping = *mappings_[at];
  Mapping tail = mapping.part(address, mapping.end());
  mapping.length = address - mapping.start;
  insert_locked(std::move(tail));
}

void AddressSpace::merge_locked(Address start, Address end) {
  const auto continues = [](const Mapping& a, const Mapping& b) {
    return a.end() == b.start && a.object == b.object && a.base() == b.base() && a.sharing == b.sharing &&
           a.monitor == b.monitor && a.armed == b.armed;
  };
  std::size_t at = first_ending_after_locked(start);
  if (at != 0) --at;
  while (at + 1 < mappings_.size() && mappings_[at]->start < end) {
    Mapping& mapping = *mappings_[at];
    if (!continues(mapping, *mappings_[at + 1])) {
      ++at;
      continue;
    }
    mapping.length += mappings_[at + 1]->length;
    mappings_.erase(mappings_.begin() + static_cast<std::ptrdiff_t>(at + 1));
  }
}

void AddressSpace::tell_monitors_locked(const uffd_msg& message, Address start, Address end) {
  const UffdFeature wanted = message.event == UFFD_EVENT_UNMAP   ? UffdFeature::event_unmap
                             : message.event == UFFD_EVENT_REMAP ? UffdFeature::event_remap
                                                                 : UffdFeature::event_remove;
  std::vector<const UffdContext*> told;
  for (std::size_t i = first_ending_after_locked(start); i < mappings_.size() && mappings_[i]->start < end; ++i) {
    const Mapping& mapping = *mappings_[i];
    if (mapping.monitor == nullptr || !mapping.monitor->features().has(wanted)) continue;
    // One REMOVE for each mapping, as it lies in the range; one UNMAP or REMAP for the whole.
    uffd_msg said = message;
    if (wanted == UffdFeature::event_remove) {
      said.arg.remove.start = std::max(mapping.start, start).value;
      said.arg.remove.end = std::min(mapping.end(), end).value;
    } else if (std::ranges::find(told, mapping.monitor.get()) != told.end()) {
      continue;
    }
    told.push_back(mapping.monitor.get());
    mapping.monitor->queue_event(said);
    if (wanted == UffdFeature::event_remap && mapping.monitor->features().has(UffdFeature::event_unmap))
      moved_.push_back({.start = start, .length = end - start, .monitor = mapping.monitor});
  }
}

void AddressSpace::tell_moved_locked(const uffd_msg& message) {
  // mremap ends by unmapping where the memory was, and says so; by then the mapping is known elsewhere.
  for (const Moved& moved : moved_) {
    if (moved.start.value == message.arg.remove.start && (moved.start + moved.length).value == message.arg.remove.end)
      moved.monitor->queue_event(message);
  }
  moved_.clear();
}

int UffdMonitor::can_register(UffdModes modes, Address start, Address end) const {
  auto& mappings = space_->mappings_;
  bool found = false;
  for (std::size_t i = space_->first_ending_after_locked(start); i < mappings.size() && mappings[i]->start < end; ++i) {
    const Mapping& mapping = *mappings[i];
    const ByteCount folio = mapping.object->folio_size();
    if (!found && start > mapping.start && start.value % folio.value != 0) return EINVAL;
    found = true;
    const UffdOps& ops = *mapping.object->type().ops();
    // What raises no faults is registered in the kernel to track its writes, or not at all.
    if (!ops.modes.has_all(modes) || (!mapping.object->faults() && !ops.wp_async_only)) return EINVAL;
    const bool async = context_->features().has(UffdFeature::wp_async);
    if (ops.wp_async_only && modes.has(UffdMode::wp) && !async) return EINVAL;
    if (end < mapping.end() && end.value % folio.value != 0) return EINVAL;
    if (mapping.monitor != nullptr && mapping.monitor != context_) return EBUSY;
    if (mapping.object->writes_back()) return EINVAL;  // its faults say what is dirty
  }
  return found ? 0 : EINVAL;
}

void UffdMonitor::arm(Mapping& mapping, UffdModes modes) {
  // As the kernel: what is registered for all of them already stays as it is.
  if (mapping.monitor == context_ && mapping.armed.has_all(modes)) return;
  if (mapping.armed.has(UffdMode::wp) && !modes.has(UffdMode::wp))
    space_->userfault_->writeprotect(mapping.start, mapping.length, os::Protect::no, os::Wake::no);
  mapping.monitor = context_;
  mapping.armed = modes;
  mapping.object->watch();
}

Result<UffdIoctls> UffdMonitor::register_range(Address start, ByteCount length, UffdModes modes) {
  if (modes.empty() || !kAllModes.has_all(modes)) return refused(EINVAL, "no mode, or one that does not exist");
  if (!valid_uffd_range(start, length)) return refused(EINVAL, "the range is not whole pages of an address space");
  const Address end = start + length;
  const ExclusiveLock lock(space_->lock_);
  switch (can_register(modes, start, end)) {
    case 0:
      break;
    case EBUSY:
      return fail(Errc::busy, "another monitor has registered memory there", EBUSY);
    default:
      return refused(EINVAL, "no memory of this engine there, or of a type that lacks a mode, or it is written back");
  }
  space_->split_at_locked(start);
  space_->split_at_locked(end);
  std::uint64_t ioctls = ~std::uint64_t{0};
  auto& mappings = space_->mappings_;
  for (std::size_t i = space_->first_ending_after_locked(start); i < mappings.size() && mappings[i]->start < end; ++i) {
    arm(*mappings[i], modes);
    ioctls &= ioctls_of(*mappings[i]->object->type().ops(), modes).bits();
  }
  space_->merge_locked(start, end);
  return UffdIoctls::from_bits(ioctls | kWakeBit);
}

void UffdMonitor::disarm(Mapping& mapping) {
  // The engine goes on to trap it; what was protected by the monitor is so no more.
  if (mapping.armed.has(UffdMode::wp))
    space_->userfault_->writeprotect(mapping.start, mapping.length, os::Protect::no, os::Wake::no);
  mapping.monitor = nullptr;
  mapping.armed = {};
  context_->forget_faults(mapping.start, mapping.length);
}

Result<void> UffdMonitor::unregister_range(Address start, ByteCount length) {
  if (!valid_uffd_range(start, length)) return refused(EINVAL, "the range is not whole pages of an address space");
  const Address end = start + length;
  {
    const ExclusiveLock lock(space_->lock_);
    auto& mappings = space_->mappings_;
    const std::size_t first = space_->first_ending_after_locked(start);
    if (first == mappings.size() || mappings[first]->start >= end)
      return refused(EINVAL, "no memory of this engine there");
    for (std::size_t i = first; i < mappings.size() && mappings[i]->start < end; ++i) {
      const Mapping& mapping = *mappings[i];
      if (mapping.monitor != nullptr && mapping.monitor != context_)
        return refused(EINVAL, "another monitor has registered memory there");
      if (mapping.monitor == nullptr && !mapping.object->faults())
        return refused(EINVAL, "not registered, and of a type that raises no faults");
      const std::uint64_t folio = mapping.object->folio_size().value;
      if (start.value % folio != 0 || (end < mapping.end() && end.value % folio != 0))
        return refused(EINVAL, "not whole folios");
    }
    space_->split_at_locked(start);
    space_->split_at_locked(end);
    for (std::size_t i = space_->first_ending_after_locked(start); i < mappings.size() && mappings[i]->start < end;
         ++i) {
      if (mappings[i]->monitor != nullptr) disarm(*mappings[i]);
    }
    space_->merge_locked(start, end);
  }
  space_->wake(start, length);
  return {};
}

UffdMonitor::~UffdMonitor() {
  std::vector<std::pair<Address, ByteCount>> ranges;
  {
    const ExclusiveLock lock(space_->lock_);
    for (const auto& mapping : space_->mappings_) {
      if (mapping->monitor != context_) continue;
      disarm(*mapping);
      ranges.emplace_back(mapping->start, mapping->length);
    }
    for (const auto& [start, length] : ranges) space_->merge_locked(start, start + length);
  }
  for (const auto& [start, length] : ranges) space_->wake(start, length);
}

}  // namespace uffda
