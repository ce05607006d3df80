// The clock is replaceable: deadlines pass when it says so.
#include <gtest/gtest.h>

#include <chrono>

#include "os/clock.h"
#include "uffda/deadline.h"

namespace uffda {
namespace {

TimePoint simulated{};
TimePoint simulated_now() noexcept { return simulated; }

TEST(Clock, ADeadlinePassesWhenTheReplacedClockSaysSo) {
  os::replace_clock(simulated_now);
  simulated = TimePoint(std::chrono::hours(1));
  const Deadline deadline = Deadline::after(std::chrono::hours(24));
  EXPECT_FALSE(deadline.passed());
  simulated += std::chrono::hours(24);
  EXPECT_TRUE(deadline.passed());
  os::replace_clock(nullptr);
  EXPECT_GT(Clock::now(), TimePoint{});
  EXPECT_FALSE(Deadline::after(std::chrono::hours(1)).passed());
}

}  // namespace
}  // namespace uffda
