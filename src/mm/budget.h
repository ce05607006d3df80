// How much may be resident: cached folios, and those that are being fetched. A hard limit: who finds no room waits, and
// somebody evicts.
#pragma once

#include <atomic>

#include "uffda/deadline.h"
#include "uffda/units.h"

namespace uffda {

/// Threads: any, for everything.
class Budget {
 public:
  /// What comes unasked leaves the reserve to what somebody waits for.
  enum class Reserve : std::uint8_t { use, leave };

  explicit Budget(ByteCount limit) : limit_(limit) {}

  [[nodiscard]] ByteCount limit() const { return limit_; }
  [[nodiscard]] ByteCount used() const { return {used_.load(std::memory_order_relaxed)}; }

  /// Room for `bytes`, all or nothing. False: there is none.
  bool take(ByteCount bytes, Reserve reserve);
  void give_back(ByteCount bytes);

  /// Less than the reserve is free: it is time to evict, until wants_room() is false.
  [[nodiscard]] bool is_short() const { return used() > limit_ - reserve(); }
  [[nodiscard]] bool wants_room() const { return used() > limit_ - reserve() - reserve(); }
  /// How long what somebody waits for has been refused, with nothing given back in between. 0: it is not.
  [[nodiscard]] Duration refused_for() const;

 private:
  [[nodiscard]] ByteCount reserve() const { return {limit_.value / 16}; }
  void note_refused();

  const ByteCount limit_;
  std::atomic<std::uint64_t> used_{0};
  std::atomic<TimePoint> refused_since_{TimePoint{}};
  std::atomic<TimePoint> last_refused_{TimePoint{}};
};

}  // namespace uffda
