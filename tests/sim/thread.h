// What base/thread.h is made of in the simulated build: threads that are fibers of the scheduler, and the faults that
// are put into the code under test to see that the simulation finds them.
#pragma once

#include "sim/scheduler.h"

namespace uffda {

inline constexpr bool kSimulated = true;

class Thread {
 public:
  using Id = const sim::Fiber*;
  Thread() = default;
  explicit Thread(std::function<void()> body) : fiber_(sim::spawn("thread", std::move(body))) {}
  [[nodiscard]] Id get_id() const { return fiber_; }
  [[nodiscard]] bool joinable() const { return fiber_ != nullptr; }
  void join() {
    sim::expect_no_lock("the end of a thread");
    sim::join(fiber_);
    fiber_ = nullptr;
  }
  void detach() { fiber_ = nullptr; }

 private:
  const sim::Fiber* fiber_ = nullptr;
};

namespace this_thread {
inline Thread::Id get_id() { return sim::current(); }
inline void sleep_for(Duration wait) {
  sim::expect_no_lock("a sleep");
  sim::sleep_for(wait);
}
}  // namespace this_thread

inline void preemption_point() { sim::point(); }

/// Known faults. The simulation must find each of them.
enum class Canary : std::uint8_t {
  none,
  shown_before_filled,       ///< a fetched folio is marked clean before its bytes are published
  evicts_pinned,             ///< an eviction does not wait for pins,
  clean_before_written,      ///< a folio is clean before the source has its bytes
  copied_before_protected,   ///< a folio is copied for the source while it can still be written to
  logged_despite_pins,       ///< a log does not wait for who was let through before it was looked at
  adopts_awaiting_as_clean,  ///< a successor takes a folio for clean of which a write was under way
  forgets_messages,          ///< a successor does not apply the messages that were read before it
  adopts_without_wake,       ///< it does not make faults come again that were read before it
};
inline Canary the_canary = Canary::none;
inline bool canary(Canary which) { return the_canary == which; }

}  // namespace uffda
