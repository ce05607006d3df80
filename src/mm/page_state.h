// The state of a folio, and the one function that changes it.
//
//                 fetch_started                 filled                written
//     Absent ------------------> Filling ------------------> Clean -----------> Dirty
//       ^  ^  ^                   |   |                      |  ^               |  ^
//       |  |  '---- given_up -----'   | failed               |  | written_back  |  | written, writeback_failed
//       |  |                          v                      |  '------ AwaitingClean <-- writeback_started
//       |  '------- invalidated -- Poisoned                  |       Filling -- supplied --> Dirty
//       '---------------------------- evicted -- Evicting <--' evict_started   (evict_aborted: back to Clean)
//
// Filling is owned by exactly one request; Clean and Dirty may be mapped; nobody maps any other state. A write during
// writeback makes the folio Dirty again, so that the writeback that ends afterwards does not make it Clean. Clean comes
// only after success. Whoever has the memory may punch it: what is present is then lost, and Absent.
#pragma once

#include <cstdint>
#include <string_view>

#include "uffda/result.h"

namespace uffda {

enum class PageState : std::uint8_t {
  absent,          ///< not cached; what the kernel's cache may hold there is no concern of ours and is never mapped
  filling,         ///< claimed by one request
  clean,           ///< cached, equal to the source
  dirty,           ///< cached, newer than the source
  awaiting_clean,  ///< cached, being written to the source
  evicting,        ///< being punched; unpinned
  poisoned,        ///< the source failed for good; touching it is SIGBUS
};
inline constexpr int kPageStates = 7;

enum class PageEvent : std::uint8_t {
  fetch_started,      ///< a request claims the folio
  filled,             ///< its bytes are in the page cache
  given_up,           ///< the request ends without bytes; somebody may try again
  failed,             ///< the request ends without bytes, for good
  written,            ///< somebody may have written to it
  writeback_started,  ///< its bytes are on the way to the source
  written_back,       ///< the source has them
  writeback_failed,   ///< the source refused them
  evict_started,      ///< nobody has it pinned; the hole is about to be punched
  evicted,            ///< the hole is punched
  evict_aborted,      ///< the hole was not punched
  invalidated,        ///< poison is lifted
  supplied,           ///< a monitor's bytes are in the page cache, newer than the source
  lost,               ///< somebody else punched the hole
};
inline constexpr int kPageEvents = 14;

/// The state after `event`. Pure. Errors: invalid_argument, if the event cannot happen in this state.
Result<PageState> next(PageState state, PageEvent event);

/// The state in which a successor finds a folio after its server died: what was half done starts again.
PageState adopted(PageState state);

/// Whether the folio may be mapped and read.
constexpr bool is_present(PageState state) {
  return state == PageState::clean || state == PageState::dirty || state == PageState::awaiting_clean;
}

std::string_view to_string(PageState state);

}  // namespace uffda
