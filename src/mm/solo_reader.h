// Which of the readers of a userfaultfd read, and which stand by.
//
// A fault wakes every thread that sleeps in read() (the kernel's queue of readers knows no exclusive waiter), and
// waking one on another CPU costs the faulting thread an inter-processor interrupt, although that reader finds nothing.
// So when one reader has served all faults for a while, and they come from its own CPU, it reads alone and the others
// stand by. They are back when a fault comes from another CPU, or several come at once.
//
//   1 after each batch a reader counts, and now and then looks: after(). Twice in a row nearly the only one, on the
//     faulting thread's CPU: it claims the solo;
//   2 a reader that sleeps in read() cannot be called away: the kernel puts it back to sleep when it finds nothing. It
//   has
//     to be given a message. So the soloist touches a page of its own that is registered (a doorbell), once for each of
//     the others; who reads that fault is called_away(), answers it and stands by;
//   3 the soloist's next looks find faults from elsewhere, or a batch has several: release().
//
// What is tricky: a call must find a reader, or the soloist would wait in its own fault for ever. So a reader leaves
// only when it is called, which it registers before it answers the bell, and as many are called as read. A bell that
// somebody else filled (mlockall) calls nobody; then one more goes on reading. stop() lets calls under way end, and
// later ones not begin.
#pragma once

#include <linux/userfaultfd.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <optional>
#include <span>

#include "base/mutex.h"

namespace uffda {

/// Threads: any, for everything public; `self` is the reader's own number, below kMost.
class SoloReader {
 public:
  static constexpr std::size_t kMost = 8;

  /// So many readers run. Until then, and with fewer than two, nobody reads alone.
  void start(unsigned readers) { readers_.store(readers, std::memory_order_relaxed); }
  /// From now on nobody reads alone, and who stands by comes back to read.
  void stop();

  /// Reader `self`, on CPU `cpu`, has served a batch. How many others to call away: as many bells to ring.
  unsigned after(unsigned self, int cpu, std::span<const uffd_msg> batch);
  /// Whether a call is still unanswered; for the soloist, after its bells.
  [[nodiscard]] bool calling() const;
  /// The soloist has rung enough.
  void end_calls();

  /// A ticket for stand_by, if the fault of `thread` on a bell is a call; to be taken before that fault is resolved.
  std::optional<std::uint64_t> called_away(std::uint32_t thread);
  /// Waits until the others are wanted again.
  void stand_by(std::uint64_t ticket);

 private:
  static constexpr int kNobody = -1;
  static constexpr std::uint64_t kLookEvery = 128;  // faults
  static constexpr std::uint64_t kByOthers = 8;     // of these, at most
  static constexpr unsigned kLooksAgree = 2;

  /// One reader's own, on a cache line of its own.
  struct alignas(64) Tally {
    std::atomic<std::uint64_t> served{0};
    std::uint64_t looked_at = 0;    // `served` at the last look
    std::uint64_t others_then = 0;  // what the others had served
    unsigned agreed = 0;
  };

  bool looks_alone(unsigned self, int cpu, std::uint32_t thread);
  unsigned claim(unsigned self);
  void release(unsigned self);

  std::array<Tally, kMost> tallies_;
  std::atomic<unsigned> readers_{0};
  std::atomic<int> soloist_{kNobody};

  mutable Mutex mutex_;
  CondVar changed_;
  std::uint64_t releases_ UFFDA_GUARDED_BY(mutex_) = 0;
  std::uint32_t soloist_thread_ UFFDA_GUARDED_BY(mutex_) = 0;
  unsigned calls_ UFFDA_GUARDED_BY(mutex_) = 0;  // not yet answered
  bool stopping_ UFFDA_GUARDED_BY(mutex_) = false;
};

}  // namespace uffda
