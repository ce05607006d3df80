#include "mm/solo_reader.h"

#include <utility>

#include "os/threads.h"
#include "uffda/deadline.h"

namespace uffda {

unsigned SoloReader::after(unsigned self, int cpu, std::span<const uffd_msg> batch) {
  if (readers_.load(std::memory_order_relaxed) < 2) return 0;
  Tally& mine = tallies_.at(self);
  const std::uint64_t served = mine.served.load(std::memory_order_relaxed) + batch.size();
  mine.served.store(served, std::memory_order_relaxed);
  const bool alone = soloist_.load(std::memory_order_relaxed) == static_cast<int>(self);
  if (alone && batch.size() > 1) release(self);
  if (served - mine.looked_at < kLookEvery) return 0;
  mine.looked_at = served;
  const uffd_msg& last = batch.back();
  const bool agrees = last.event == UFFD_EVENT_PAGEFAULT && looks_alone(self, cpu, last.arg.pagefault.feat.ptid);
  if (alone && !agrees) release(self);
  mine.agreed = agrees ? mine.agreed + 1 : 0;
  return mine.agreed < kLooksAgree ? 0 : claim(self);
}

bool SoloReader::looks_alone(unsigned self, int cpu, std::uint32_t thread) {
  std::uint64_t others = 0;
  for (unsigned i = 0; i < tallies_.size(); ++i) {
    if (i != self) others += tallies_.at(i).served.load(std::memory_order_relaxed);
  }
  const std::uint64_t by_others = others - std::exchange(tallies_.at(self).others_then, others);
  return by_others <= kByOthers && os::cpu_of_thread(thread) == cpu;
}

unsigned SoloReader::claim(unsigned self) {
  if (soloist_.load(std::memory_order_relaxed) != kNobody) return 0;
  const MutexLock lock(mutex_);
  if (stopping_ || soloist_.load(std::memory_order_relaxed) != kNobody) return 0;
  soloist_.store(static_cast<int>(self), std::memory_order_relaxed);
  soloist_thread_ = os::this_thread_id();
  calls_ = readers_.load(std::memory_order_relaxed) - 1;
  return calls_;
}

void SoloReader::release(unsigned self) {
  tallies_.at(self).agreed = 0;
  const MutexLock lock(mutex_);
  if (soloist_.load(std::memory_order_relaxed) != static_cast<int>(self)) return;
  soloist_.store(kNobody, std::memory_order_relaxed);
  ++releases_;
  changed_.notify_all();
}

bool SoloReader::calling() const {
  const MutexLock lock(mutex_);
  return calls_ != 0;
}

void SoloReader::end_calls() {
  const MutexLock lock(mutex_);
  calls_ = 0;
  changed_.notify_all();
}

std::optional<std::uint64_t> SoloReader::called_away(std::uint32_t thread) {
  const MutexLock lock(mutex_);
  if (calls_ == 0 || thread != soloist_thread_) return std::nullopt;
  --calls_;
  return releases_;
}

void SoloReader::stand_by(std::uint64_t ticket) {
  const MutexLock lock(mutex_);
  while (!stopping_ && releases_ == ticket) changed_.wait_until(mutex_, Clock::now() + std::chrono::seconds(10));
}

void SoloReader::stop() {
  const MutexLock lock(mutex_);
  stopping_ = true;
  changed_.notify_all();
  while (calls_ != 0) changed_.wait_until(mutex_, Clock::now() + std::chrono::milliseconds(1));
}

}  // namespace uffda
