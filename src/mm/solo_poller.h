// Which of the readers that poll a userfaultfd read, and which stand aside.
//
// A fault wakes every thread that polls. Waking one on another CPU costs the faulting thread an inter-processor
// interrupt, and then the readers are in each other's way, for reading is exclusive. So now and then whoever reads
// looks where the faulting thread is. If twice in a row it is on one CPU, that one's reader polls alone, and the others
// stand aside until a look finds it elsewhere, or several faults come at once.
//
// A flood of events (a balloon that gives back page after page) wakes all of them for each, on CPUs that others' faults
// need. So whoever reads one reads it alone, until something else is among the events.
//
// Who stands aside looks at the descriptor now and then: the soloist may be held up (by a lock of the client's, say).
// Readers that block in read() need more than this: solo_reader.h.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <span>

#include "base/mutex.h"
#include "uffda/deadline.h"

namespace uffda {

/// Threads: any, for everything public; `self` is the reader's own number, below kMost.
class SoloPoller {
 public:
  static constexpr std::size_t kMost = 8;
  static constexpr unsigned kLookEvery = 8;        ///< faults that one has served
  static constexpr unsigned kLookEveryAlone = 64;  ///< while it reads alone
  static constexpr unsigned kFlood = 256;          ///< times that memory is given back, and nothing else, in a row
  static constexpr Duration kAside = std::chrono::milliseconds(10);

  /// `aside`: how long one stands aside before it looks.
  explicit SoloPoller(Duration aside = kAside) : aside_(aside) {}
  /// The CPU of each reader, by its number. Until then, and with fewer than two, nobody reads alone.
  void start(std::span<const int> cpus);
  /// From now on nobody reads alone, and who stands aside comes back.
  void stop();

  /// Reader `self` has read so many messages at once, of which `removes` tell that memory was given back. Whether it is
  /// to look where the faulting thread is, and say so.
  bool served(unsigned self, std::size_t messages, std::size_t removes);
  void looked(int cpu);
  /// Whether another one reads alone. Then it returns when that is over, or after a while: look at the descriptor. If
  /// that one has read nothing meanwhile, though something was there, it is held up and reads alone no more.
  bool stood_aside(unsigned self);

 private:
  static constexpr int kNobody = -1;

  void take(unsigned self);
  void release();
  void release_locked() UFFDA_REQUIRES(mutex_);

  struct alignas(64) Tally {  // one reader's own, on a cache line of its own
    unsigned since_look = 0;
    std::size_t flood = 0;  // events of it until now
  };
  const Duration aside_;
  std::array<Tally, kMost> tallies_;
  std::atomic<int> soloist_{kNobody};
  std::atomic<std::uint64_t> reads_{0};  // of whoever reads alone; a lost one is no harm

  Mutex mutex_;
  CondVar released_;
  std::array<int, kMost> cpus_ UFFDA_GUARDED_BY(mutex_){};
  unsigned readers_ UFFDA_GUARDED_BY(mutex_) = 0;
  int seen_ UFFDA_GUARDED_BY(mutex_) = kNobody;  // the reader of the CPU that the last look found
};

}  // namespace uffda
