// What a monitor has open: the messages that it has not read yet, and the features it asked for. (Linux:
// userfaultfd_ctx.)
//
// A thread whose fault is queued here waits in the kernel, on the engine's userfaultfd. A message that its monitor has
// not read when the thread is woken is taken back: the thread faults again.
#pragma once

#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "base/mutex.h"
#include "os/fd.h"
#include "os/kernel_abi.h"
#include "uffda/deadline.h"
#include "uffda/result.h"
#include "uffda/uffd_ops.h"
#include "uffda/units.h"

namespace uffda {

/// Threads: any.
class UffdContext {
 public:
  static constexpr std::size_t kMaxFaults = 65'536;  ///< threads that wait and were not reported yet
  static constexpr std::size_t kMaxEvents = 65'536;

  /// Errors: no_memory (descriptors).
  static Result<std::shared_ptr<UffdContext>> create(UffdFeatures features);

  [[nodiscard]] UffdFeatures features() const { return features_; }
  /// Readable while a message waits.
  [[nodiscard]] int fd() const { return readable_.get(); }

  /// Page faults before events, oldest first. Waits until there is one or `deadline` passes.
  Result<std::size_t> read(std::span<uffd_msg> messages, Deadline deadline);
  /// Whether an event was not read yet: until then what is where changes, and resolutions are EAGAIN.
  [[nodiscard]] bool changing() const;

  /// Whether a message is queued in the step that read it, so that messages come in the kernel's order, or some time
  /// afterwards: then its thread may wait elsewhere by now.
  enum class Told : std::uint8_t { at_once, later };
  /// A thread waits. False if there is no room: it has to fault again later. `message` is as the kernel sent it; what
  /// the monitor did not ask to know is taken out.
  bool queue_fault(const uffd_msg& message, Told told_when);
  void queue_event(const uffd_msg& message);
  /// Who waits in the range is woken: its unread messages go. Whether there were any; then the caller wakes the range
  /// afterwards, for who was woken before may have faulted again already, and its new message is gone, too.
  bool forget_faults(Address start, ByteCount length);

 private:
  UffdContext(UffdFeatures features, os::UniqueFd readable) : features_(features), readable_(std::move(readable)) {}
  void signal_locked() UFFDA_REQUIRES(mutex_);

  const UffdFeatures features_;
  os::UniqueFd readable_;
  mutable Mutex mutex_;
  CondVar arrived_;
  std::deque<uffd_msg> faults_ UFFDA_GUARDED_BY(mutex_);
  std::deque<uffd_msg> events_ UFFDA_GUARDED_BY(mutex_);
  bool signalled_ UFFDA_GUARDED_BY(mutex_) = false;
};

}  // namespace uffda
