// Writes through mappings whose object is written back. Clean folios are protected in all of them, so that the first
// write to each faults: the folio becomes Dirty, under a pin, before the write can happen.
#include <algorithm>
#include <array>
#include <cerrno>

#include "mm/address_space.h"

namespace uffda {

Admission AddressSpace::admit_locked(const Mapping& mapping, FolioIndex index, Touch touch) {
  if (touch == Touch::load || !mapping.tracks_writes()) [[likely]]
    return Admission::granted;
  return mapping.object->admit_write(index);
}

AddressSpace::Look AddressSpace::allow_write_locked(const Mapping& mapping, FolioIndex index) {
  MemoryObject& object = *mapping.object;
  const Address page = mapping.address_of(index);
  const Result<FolioRef> folio = object.find_folio(index);
  if (!folio) {  // on its way out, or gone: the fault comes again as another one
    wake_later(page, object.folio_size());
    return Look::done;
  }
  switch (admit_locked(mapping, index, Touch::store)) {
    case Admission::later:
      return Look::later;
    case Admission::denied:
      return Look::denied;
    case Admission::granted:
      break;
  }
  object.note_touched({.first = index, .count = 1});
  // Still pinned: no writeback starts between the state and the page table.
  switch (userfault_->writeprotect(page, object.folio_size(), os::Protect::no, os::Wake::yes)) {
    case 0:
    case ESRCH:
      break;
    case EAGAIN:
    case ENOMEM:
      return Look::later;
    default:  // unmapped meanwhile: the thread looks for itself
      userfault_->wake(page, object.folio_size());
  }
  return Look::done;
}

void AddressSpace::deny_write_locked(const Mapping& mapping, FolioIndex index) {
  const ByteCount folio = mapping.object->folio_size();
  // What is mapped takes no poison. It is clean: the source has it for who reads it elsewhere.
  const auto poison = [&]() UFFDA_REQUIRES_SHARED(lock_) { poison_fault_locked(mapping, index); };
  if (!mapping.object->drop_denied(index, poison)) wake_later(mapping.address_of(index), folio);
}

FolioMapper::Protected AddressSpace::protect_folios(const MemoryObject& object, FolioRange folios) {
  Protected outcome = Protected::done;
  const SharedLock lock(lock_);
  for (const auto& mapping : mappings_) {
    if (mapping->object.get() != &object || !mapping->tracks_writes()) continue;
    const FolioRange shown = mapping->folios();
    const FolioIndex first = std::max(shown.first, folios.first);
    const FolioIndex end = std::min(shown.end(), folios.end());
    if (first >= end) continue;
    const ByteCount page = object.folio_size();
    int error =
        userfault_->writeprotect(mapping->address_of(first), page * (end - first), os::Protect::yes, os::Wake::no);
    // Unmapped in part, and we are about to be told: page by page. What is not there cannot be written to.
    for (FolioIndex i = first; error == ENOENT && i < end; ++i) {
      const int one = userfault_->writeprotect(mapping->address_of(i), page, os::Protect::yes, os::Wake::no);
      if (one != ENOENT) error = one != 0 ? one : error;
    }
    // An event is unread, or memory is short. Anything else: whoever said that he maps it there does not.
    if (error == EAGAIN || error == ENOMEM || error == EINTR) outcome = Protected::again;
  }
  return outcome;
}

void AddressSpace::unmap_folios(const MemoryObject& object, std::span<const FolioRange> folios) {
  if (!userfault_->can_unmap()) return;
  constexpr std::size_t kAtOnce = 256;
  std::array<iovec, kAtOnce> ranges;
  std::size_t count = 0;
  const SharedLock lock(lock_);
  for (const auto& mapping : mappings_) {
    if (mapping->object.get() != &object || !mapping->shows_cache() || mapping->monitor != nullptr) continue;
    const FolioRange shown = mapping->folios();
    for (const FolioRange& run : folios) {
      const FolioIndex first = std::max(shown.first, run.first);
      const FolioIndex end = std::min(shown.end(), run.end());
      if (first >= end) continue;
      ranges.at(count++) = {.iov_base = reinterpret_cast<void*>(mapping->address_of(first).value),
                            .iov_len = object.folio_size().value * (end - first)};
      if (count < ranges.size()) continue;
      userfault_->unmap(ranges);
      count = 0;
    }
  }
  if (count != 0) userfault_->unmap(std::span(ranges).first(count));
}

}  // namespace uffda
