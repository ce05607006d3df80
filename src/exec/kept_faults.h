// Copies of every userfaultfd that programs handed over, kept outside of the server, so that a dead server means SIGBUS
// and not a hang (nobody answers) or zeroes (nobody holds the descriptor).
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "os/fd.h"
#include "os/userfault.h"
#include "uffda/result.h"

namespace uffda::exec {

/// Threads: any.
class KeptFaults {
 public:
  static Result<std::unique_ptr<KeptFaults>> create();
  ~KeptFaults();
  KeptFaults(const KeptFaults&) = delete;
  KeptFaults& operator=(const KeptFaults&) = delete;

  /// Keeps a userfaultfd that was opened with `features`. Errors: no_memory beyond kMaxKept, invalid_argument (no
  /// userfaultfd).
  Result<void> keep(os::UniqueFd userfaultfd, std::uint64_t features);
  /// Forgets those whose address space is dead. The number that is left.
  std::size_t forget_dead();
  /// From now on every fault of every kept address space ends in SIGBUS: those that the server had read and not
  /// answered, those that wait, and those that come. Call it when the server is dead, once.
  void poison_from_now_on();
  [[nodiscard]] std::size_t ever_kept() const { return ever_kept_.load(); }

  static constexpr std::size_t kMaxKept = 4096;  // address spaces at one time

 private:
  using Kept = std::vector<std::shared_ptr<os::Userfault>>;

  explicit KeptFaults(os::UniqueFd changed) : changed_(std::move(changed)) {}
  void run();
  Kept snapshot();

  Mutex mutex_;
  Kept kept_ UFFDA_GUARDED_BY(mutex_);
  os::UniqueFd changed_;  // eventfd: wakes the poisoner
  std::atomic<bool> stopping_ = false;
  std::atomic<bool> poisoning_ = false;
  std::atomic<std::size_t> ever_kept_ = 0;
  std::thread poisoner_;
};

}  // namespace uffda::exec
