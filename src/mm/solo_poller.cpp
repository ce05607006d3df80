#include "mm/solo_poller.h"

#include <algorithm>
#include <utility>

namespace uffda {

void SoloPoller::start(std::span<const int> cpus) {
  const MutexLock lock(mutex_);
  std::ranges::copy(cpus, cpus_.begin());
  readers_ = static_cast<unsigned>(cpus.size());
}

void SoloPoller::stop() {
  const MutexLock lock(mutex_);
  readers_ = 0;
  soloist_.store(kNobody, std::memory_order_relaxed);
  released_.notify_all();
}

bool SoloPoller::served(unsigned self, std::size_t messages, std::size_t removes) {
  const int soloist = soloist_.load(std::memory_order_relaxed);
  const bool alone = soloist == static_cast<int>(self);
  if (alone) reads_.store(reads_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  Tally& mine = tallies_.at(self);
  const bool flooded = mine.flood >= kFlood;
  mine.flood = removes == messages ? mine.flood + messages : 0;
  if (mine.flood >= kFlood) {
    if (soloist == kNobody) take(self);
    return false;
  }
  if (alone && (flooded || messages > 1)) release();  // there is work for more than one
  if (++mine.since_look < (alone ? kLookEveryAlone : kLookEvery)) return false;
  mine.since_look = 0;
  return messages == 1;
}

void SoloPoller::looked(int cpu) {
  const MutexLock lock(mutex_);
  if (readers_ < 2) return;
  const auto readers = std::span(cpus_).first(readers_);
  const auto found = std::ranges::find(readers, cpu);
  const int near = found == readers.end() ? kNobody : static_cast<int>(found - readers.begin());
  const int before = std::exchange(seen_, near);
  const int soloist = near == before ? near : kNobody;
  if (soloist_.exchange(soloist, std::memory_order_relaxed) != soloist) released_.notify_all();
}

bool SoloPoller::stood_aside(unsigned self) {
  const auto aside = [&] {
    const int soloist = soloist_.load(std::memory_order_relaxed);
    return soloist != kNobody && soloist != static_cast<int>(self);
  };
  if (!aside()) return false;
  const TimePoint until = Clock::now() + aside_;
  const std::uint64_t before = reads_.load(std::memory_order_relaxed);
  const MutexLock lock(mutex_);
  while (aside() && Clock::now() < until) released_.wait_until(mutex_, until);
  if (aside() && reads_.load(std::memory_order_relaxed) == before) release_locked();
  return true;
}

void SoloPoller::take(unsigned self) {
  const MutexLock lock(mutex_);
  if (readers_ >= 2 && soloist_.load(std::memory_order_relaxed) == kNobody)
    soloist_.store(static_cast<int>(self), std::memory_order_relaxed);
}

void SoloPoller::release() {
  const MutexLock lock(mutex_);
  release_locked();
}

void SoloPoller::release_locked() {
  seen_ = kNobody;
  soloist_.store(kNobody, std::memory_order_relaxed);
  released_.notify_all();
}

}  // namespace uffda
