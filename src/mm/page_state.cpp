#include "mm/page_state.h"

#include <array>
#include <optional>
#include <utility>

#include "base/thread.h"

namespace uffda {
namespace {

struct Transition {
  PageState from;
  PageEvent event;
  PageState to;
};

constexpr std::array kTransitions{
    Transition{PageState::absent, PageEvent::fetch_started, PageState::filling},
    Transition{PageState::filling, PageEvent::filled, PageState::clean},
    Transition{PageState::filling, PageEvent::given_up, PageState::absent},
    Transition{PageState::filling, PageEvent::failed, PageState::poisoned},
    Transition{PageState::clean, PageEvent::written, PageState::dirty},
    Transition{PageState::clean, PageEvent::evict_started, PageState::evicting},
    Transition{PageState::dirty, PageEvent::written, PageState::dirty},
    Transition{PageState::dirty, PageEvent::writeback_started, PageState::awaiting_clean},
    Transition{PageState::awaiting_clean, PageEvent::written, PageState::dirty},
    Transition{PageState::awaiting_clean, PageEvent::written_back, PageState::clean},
    Transition{PageState::awaiting_clean, PageEvent::writeback_failed, PageState::dirty},
    Transition{PageState::dirty, PageEvent::written_back, PageState::dirty},
    Transition{PageState::dirty, PageEvent::writeback_failed, PageState::dirty},
    Transition{PageState::evicting, PageEvent::evicted, PageState::absent},
    Transition{PageState::evicting, PageEvent::evict_aborted, PageState::clean},
    Transition{PageState::poisoned, PageEvent::invalidated, PageState::absent},
    Transition{PageState::filling, PageEvent::supplied, PageState::dirty},
    Transition{PageState::clean, PageEvent::lost, PageState::absent},
    Transition{PageState::dirty, PageEvent::lost, PageState::absent},
    Transition{PageState::awaiting_clean, PageEvent::lost, PageState::absent},
};

using Row = std::array<std::optional<PageState>, kPageEvents>;

constexpr std::array<Row, kPageStates> make_table() {
  std::array<Row, kPageStates> table{};
  for (const Transition& t : kTransitions) table.at(std::to_underlying(t.from)).at(std::to_underlying(t.event)) = t.to;
  return table;
}

constexpr std::array<Row, kPageStates> kTable = make_table();

}  // namespace

Result<PageState> next(PageState state, PageEvent event) {
  const std::optional<PageState> to = kTable.at(std::to_underlying(state)).at(std::to_underlying(event));
  if (!to) return fail(Errc::invalid_argument);
  return *to;
}

PageState adopted(PageState state) {
  switch (state) {
    case PageState::filling:
    case PageState::evicting:
      return PageState::absent;
    case PageState::awaiting_clean:
      return canary(Canary::adopts_awaiting_as_clean) ? PageState::clean : PageState::dirty;
    default:
      return state;
  }
}

std::string_view to_string(PageState state) {
  constexpr std::array<std::string_view, kPageStates> kNames{"absent",         "filling",  "clean",   "dirty",
                                                             "awaiting clean", "evicting", "poisoned"};
  return kNames.at(std::to_underlying(state));
}

}  // namespace uffda
