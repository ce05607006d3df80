// What a dead server left of an object, put in order for its successor.
#include <fmt/format.h>

#include "base/log.h"
#include "mm/memory_object.h"

namespace uffda {

Result<void> MemoryObject::recover_folios() {
  // What cannot be had again first: it has to have room.
  for (const bool dirty : {true, false}) {
    for (FolioIndex i = states_.next_known(0); i < folios(); i = states_.next_known(i + 1))
      UFFDA_TRY_VOID(recover_folio(i, dirty));
  }
  if (writeback_) writeback_->hold();
  for (FolioIndex i = states_.next_known(0); writeback_ && i < folios(); i = states_.next_known(i + 1)) {
    if (states_.get(i) == PageState::dirty) writeback_->recover(i);
  }
  return {};
}

Result<void> MemoryObject::recover_folio(FolioIndex index, bool dirty) {
  const PageState found = states_.get(index);
  if ((adopted(found) == PageState::dirty) != dirty) return {};
  const FolioRange folio{.first = index, .count = 1};
  // Half filled, or on its way out and mapped for the last time: whoever maps it comes again. It counts as absent when
  // it is, for this server may die, too.
  if (found == PageState::filling || found == PageState::evicting) UFFDA_TRY_VOID(backing_->drop(bytes_of(folio)));
  states_.recover(index);
  if (!is_present(states_.get(index))) return {};
  const MutexLock lock(mutex_);
  if (dirty && !writeback_) {
    apart_ += 1;
    core_.add_apart(folio_size_);
  } else if (!take_room_locked(1, Budget::Reserve::use)) {
    if (dirty) {
      return fail(Errc::no_memory, fmt::format("{}: the budget of {} bytes is less than what is written there and not "
                                               "stored yet: give more",
                                               name(), budget_.limit().value));
    }
    UFFDA_ASSERT(states_.apply(index, PageEvent::evict_started));
    UFFDA_TRY_VOID(backing_->drop(bytes_of(folio)));
    UFFDA_ASSERT(states_.apply(index, PageEvent::evicted));
    return {};
  }
  count_present(folio);
  return {};
}

}  // namespace uffda
