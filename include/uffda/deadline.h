// Deadlines: every wait has one.
#pragma once

#include <chrono>

namespace uffda {

/// The clock of every deadline and every latency: the system's steady clock, or the one that a simulation puts in its
/// place.
struct Clock {
  using duration = std::chrono::steady_clock::duration;
  using rep = duration::rep;
  using period = duration::period;
  using time_point = std::chrono::steady_clock::time_point;
  static constexpr bool is_steady = true;
  /// Threads: any.
  static time_point now() noexcept;
};

using TimePoint = Clock::time_point;
using Duration = Clock::duration;

/// A point in time after which a wait gives up. Passed down by value, so that nested waits share one budget.
class Deadline {
 public:
  static Deadline after(Duration wait) { return Deadline(Clock::now() + wait); }
  static Deadline at(TimePoint when) { return Deadline(when); }

  [[nodiscard]] TimePoint when() const { return when_; }
  [[nodiscard]] bool passed() const { return Clock::now() >= when_; }

 private:
  explicit Deadline(TimePoint when) : when_(when) {}
  TimePoint when_;
};

}  // namespace uffda
