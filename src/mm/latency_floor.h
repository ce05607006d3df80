// The least time that a source takes to answer: what is left of its latency when nothing queues in front of it.
//
// The lowest of some seconds, not a mean: a mean grows with the requests that are in flight, and whoever sizes them by
// it would feed a queue of his own.
#pragma once

#include <algorithm>

#include "uffda/deadline.h"

namespace uffda {

/// Threads: the caller serialises.
class LatencyFloor {
 public:
  static constexpr Duration kEpoch = std::chrono::seconds(5);

  void note(TimePoint now, Duration latency) {
    if (now - since_ >= kEpoch) {
      before_ = now - since_ < 2 * kEpoch ? current_ : Duration::max();
      current_ = Duration::max();
      since_ = now;
    }
    current_ = std::min(current_, latency);
  }
  /// Of this epoch and the one before; 0 if nothing is known.
  [[nodiscard]] Duration lowest() const {
    const Duration lowest = std::min(current_, before_);
    return lowest == Duration::max() ? Duration{} : lowest;
  }

 private:
  TimePoint since_;
  Duration current_ = Duration::max();
  Duration before_ = Duration::max();
};

}  // namespace uffda
