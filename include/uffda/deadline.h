// Deadlines: every wait has one.
#pragma once

#include <chrono>

namespace uffda {

using Clock = std::chrono::steady_clock;
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
