// What an address space keeps for a successor, and how that one takes it over.
#include "mm/kept_mappings.h"

#include <utility>

#include "base/log.h"

namespace uffda {

MappingRecord record_of(const Mapping& mapping) {
  return {.start = mapping.start.value,
          .length = mapping.length.value,
          .other = mapping.offset.value,
          .object = mapping.object->number(),
          .kind = MappingRecord::Kind::map,
          .sharing = std::to_underlying(mapping.sharing)};
}

void AddressSpace::keep(KeptSpace& space, KeepChild of_child) {
  const ExclusiveLock lock(lock_);
  log_.emplace(space);
  keep_child_ = std::move(of_child);
}

KeptSpace* AddressSpace::kept() const {
  const SharedLock lock(lock_);
  return log_ ? &log_->space() : nullptr;
}

KeptSpace* AddressSpace::forget_kept() {
  const ExclusiveLock lock(lock_);
  KeptSpace* const space = log_ ? &log_->space() : nullptr;
  log_.reset();
  return space;
}

void AddressSpace::record_locked(const MappingRecord& record) {
  if (!log_) return;
  // Not within a batch: how many of its events are recorded is counted from where it began. There is room for all.
  log_->append(record);
}

void AddressSpace::rewrite_log_locked() {
  const std::span mappings(mappings_);
  log_->rewrite(mappings.size(), [mappings](std::uint64_t i) { return record_of(*mappings[i]); });
}

void AddressSpace::replay_locked(const MappingRecord& record, const ObjectByNumber& object) {
  const Address start{record.start};
  const ByteCount length{record.length};
  switch (record.kind) {
    case MappingRecord::Kind::none:
      return;
    case MappingRecord::Kind::unmap:
      return cut_locked(start, start + length);
    case MappingRecord::Kind::move:
      return remap_locked(start, {record.other}, length);
    case MappingRecord::Kind::drop:
      return forget_copied_locked(start, start + length);
    case MappingRecord::Kind::map: {
      cut_locked(start, start + length);
      std::shared_ptr<MemoryObject> shown = object(record.object);
      if (shown == nullptr) return;
      return show_locked(start, length, std::move(shown), {record.other}, static_cast<Sharing>(record.sharing));
    }
  }
}

void AddressSpace::replay_messages_locked(const std::function<bool(int fd)>& known) {
  if (canary(Canary::forgets_messages)) return;
  std::uint64_t recorded = log_->recorded();
  for (const uffd_msg& message : log_->space().messages) {
    if (message.event == 0 || message.event == UFFD_EVENT_PAGEFAULT) continue;
    if (recorded != 0) {
      --recorded;
      continue;
    }
    if (message.event == UFFD_EVENT_FORK && known(static_cast<int>(message.arg.fork.ufd))) {
      record_locked({});
    } else {
      apply_event_locked(message);
    }
  }
  log_->end_batch(KeptSpace::kMessages);
}

void AddressSpace::adopt(const ObjectByNumber& object, const std::function<bool(int fd)>& known) {
  std::vector<std::shared_ptr<AddressSpace>> born;
  std::vector<std::unique_ptr<Mapping>> dropped;
  {
    const ExclusiveLock lock(lock_);
    for (const MappingRecord& record : log_->records()) replay_locked(record, object);
    replay_messages_locked(known);
    born.swap(born_);
    dropped.swap(cut_);
  }
  hand_over_born(std::move(born));
  if (!canary(Canary::adopts_without_wake)) os::wake_everything(*userfault_);
}

}  // namespace uffda
