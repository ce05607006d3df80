#include "os/clock.h"

#include <atomic>

namespace uffda {
namespace {

std::atomic<os::NowFunction> replacement{nullptr};

}  // namespace

TimePoint Clock::now() noexcept {
  const os::NowFunction now = replacement.load(std::memory_order_relaxed);
  return now == nullptr ? std::chrono::steady_clock::now() : now();
}

void os::replace_clock(NowFunction now) noexcept { replacement.store(now, std::memory_order_relaxed); }

}  // namespace uffda
