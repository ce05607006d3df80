#include "mm/budget.h"

namespace uffda {
namespace {

constexpr Duration kForgotten = std::chrono::seconds(1);  // who waits asks far more often than that

}  // namespace

bool Budget::take(ByteCount bytes, Reserve reserve_use) {
  const std::uint64_t most = limit_.value - (reserve_use == Reserve::leave ? reserve().value : 0);
  std::uint64_t used = used_.load(std::memory_order_relaxed);
  do {
    if (used > most || bytes.value > most - used) {
      if (reserve_use == Reserve::use) note_refused();
      return false;
    }
  } while (!used_.compare_exchange_weak(used, used + bytes.value, std::memory_order_relaxed));
  return true;
}

void Budget::give_back(ByteCount bytes) {
  used_.fetch_sub(bytes.value, std::memory_order_relaxed);
  if (refused_since_.load(std::memory_order_relaxed) != TimePoint{}) [[unlikely]]
    refused_since_.store(TimePoint{}, std::memory_order_relaxed);
}

void Budget::note_refused() {
  const TimePoint now = Clock::now();
  const TimePoint last = last_refused_.exchange(now, std::memory_order_relaxed);
  if (refused_since_.load(std::memory_order_relaxed) == TimePoint{} || now - last > kForgotten)
    refused_since_.store(now, std::memory_order_relaxed);
}

Duration Budget::refused_for() const {
  const TimePoint since = refused_since_.load(std::memory_order_relaxed);
  return since == TimePoint{} ? Duration{} : last_refused_.load(std::memory_order_relaxed) - since;
}

}  // namespace uffda
