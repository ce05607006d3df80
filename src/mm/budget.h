// How much may be resident: cached folios, and those that are being fetched. A hard limit: who finds no room waits, and
// somebody evicts.
#pragma once

#include <algorithm>
#include <atomic>

#include "uffda/units.h"

namespace uffda {

/// Threads: any, for everything.
class Budget {
 public:
  /// For what somebody waits for; for what comes before it is asked for, which leaves the reserve to that; and for what
  /// may as well not come: for that nothing is evicted.
  enum class Reserve : std::uint8_t { use, leave, spare };

  explicit Budget(ByteCount limit) : limit_(limit) {}

  [[nodiscard]] ByteCount limit() const { return limit_; }
  [[nodiscard]] ByteCount used() const { return {used_.load(std::memory_order_relaxed)}; }
  [[nodiscard]] bool half_free() const { return used().value <= limit().value / 2; }

  /// Room for `bytes`, all or nothing. False: there is none.
  bool take(ByteCount bytes, Reserve reserve);
  void give_back(ByteCount bytes) { used_.fetch_sub(bytes.value, std::memory_order_relaxed); }

  /// Less than the reserve is free, or than somebody was refused: it is time to evict, until wants_room() is false.
  [[nodiscard]] bool is_short() const { return free() < std::max(reserve(), wanted()); }
  [[nodiscard]] bool wants_room() const { return free() < std::max(reserve() + reserve(), wanted()); }
  /// What was refused until now is not waited for any more.
  void forget_wanted() { wanted_.store(0, std::memory_order_relaxed); }

 private:
  /// More than a moment's fetches would be memory that nobody uses.
  [[nodiscard]] ByteCount reserve() const { return std::min<ByteCount>({limit_.value / 16}, 4_MiB); }
  [[nodiscard]] ByteCount free() const { return limit_ - used(); }
  [[nodiscard]] ByteCount wanted() const { return {wanted_.load(std::memory_order_relaxed)}; }

  const ByteCount limit_;
  std::atomic<std::uint64_t> used_{0};
  std::atomic<std::uint64_t> wanted_{0};  ///< free bytes with which what was refused last would have gone through
};

}  // namespace uffda
