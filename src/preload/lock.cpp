#include "preload/lock.h"

#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>  // NOLINT(modernize-deprecated-headers)

#include <atomic>

#include "preload/kernel.h"
#include "preload/memory_mark.h"

namespace uffda::shim {
namespace {

enum : uint32_t { kFree = 0, kHeld = 1, kContended = 2 };

constinit std::atomic<uint32_t> g_word{kFree};
// pthread_self of who holds it: it stays the same for the one thread that a forked child has.
constinit std::atomic<pthread_t> g_owner{0};

// The kernel's sigset is 64 bits; libc's wrapper would leave its own two signals unblocked, and their handlers run
// code of ours' callers (thread cancellation).
uint64_t block_signals() {
  const uint64_t all = ~uint64_t{0};
  uint64_t before = 0;
  (void)kernel(SYS_rt_sigprocmask, SIG_SETMASK, &all, &before, sizeof all);
  return before;
}

void restore_signals(uint64_t mask) { (void)kernel(SYS_rt_sigprocmask, SIG_SETMASK, &mask, nullptr, sizeof mask); }

void take() {
  if (was_copied(Owned::kLock)) g_word.store(kFree, std::memory_order_relaxed);
  uint32_t seen = kFree;
  if (!g_word.compare_exchange_strong(seen, kHeld, std::memory_order_acquire)) {
    while (g_word.exchange(kContended, std::memory_order_acquire) != kFree) {
      (void)kernel(SYS_futex, &g_word, FUTEX_WAIT_PRIVATE, kContended, nullptr, nullptr, 0);
    }
  }
  g_owner.store(pthread_self(), std::memory_order_relaxed);
}

void give() {
  g_owner.store(0, std::memory_order_relaxed);
  if (g_word.exchange(kFree, std::memory_order_release) == kContended) {
    (void)kernel(SYS_futex, &g_word, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
  }
}

bool mine() { return g_owner.load(std::memory_order_relaxed) == pthread_self(); }

}  // namespace

bool lock_for_fork(uint64_t& signals) {
  if (mine()) return false;
  signals = block_signals();
  take();
  return true;
}

void unlock_after_fork(uint64_t signals) {
  give();
  restore_signals(signals);
}

void Guard::acquire() { owner_ = lock_for_fork(signals_); }

void Guard::release() {
  if (!owner_) return;
  owner_ = false;
  unlock_after_fork(signals_);
}

}  // namespace uffda::shim
