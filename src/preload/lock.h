// The one lock of the shim. It orders everything that changes which memory is served: mmap, munmap, mremap, madvise,
// mprotect and fork. Faults never take it: the server resolves them in another process.
#pragma once

#include <stdint.h>  // NOLINT(modernize-deprecated-headers)

namespace uffda::shim {

/// Holds the lock with every signal of the thread blocked, so that no handler finds it held by its own thread. Taken
/// again by its owner (another library's fork handler that calls munmap) it does nothing.
class Guard {
 public:
  Guard() { acquire(); }
  ~Guard() { release(); }
  Guard(const Guard&) = delete;
  Guard& operator=(const Guard&) = delete;

  /// Gives the lock and the signals back early: for work that waits for a source.
  void release();

 private:
  void acquire();

  uint64_t signals_ = 0;  // the mask to restore
  bool owner_ = false;
};

/// For fork, which takes the lock in one function and gives it back in another. False if this thread had it already.
bool lock_for_fork(uint64_t& signals);
void unlock_after_fork(uint64_t signals);
}  // namespace uffda::shim
