// Signals and threads: a library's threads handle none of the program's signals.
#pragma once

#include <pthread.h>
#include <signal.h>

namespace uffda::os {

/// Blocks every signal in the calling thread while it lives. Threads that are started meanwhile inherit that.
class BlockedSignals {
 public:
  BlockedSignals() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  BlockedSignals(const BlockedSignals&) = delete;
  BlockedSignals& operator=(const BlockedSignals&) = delete;
  ~BlockedSignals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

 private:
  sigset_t before_{};
};

}  // namespace uffda::os
