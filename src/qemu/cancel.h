// What ends a wait for QEMU before its deadline: the user.
#pragma once

#include <atomic>

#include "uffda/deadline.h"
#include "uffda/result.h"

namespace uffda::qemu {

/// A flag that somebody sets, maybe a signal handler; without one nobody does. The flag outlives it. Threads: any.
class Cancel {
 public:
  /// How long a set flag may go unnoticed.
  static constexpr std::chrono::milliseconds kLook{200};

  Cancel() = default;
  explicit Cancel(const std::atomic<bool>* flag) : flag_(flag) {}

  /// Errors: cancelled.
  [[nodiscard]] Result<void> check() const;
  /// Until there is one of these events of poll() on the socket. Errors: cancelled, timed_out.
  [[nodiscard]] Result<void> wait(int socket, short events, Deadline deadline) const;

 private:
  const std::atomic<bool>* flag_ = nullptr;
};

}  // namespace uffda::qemu
