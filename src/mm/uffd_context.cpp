#include "mm/uffd_context.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "base/log.h"

namespace uffda {

Result<std::shared_ptr<UffdContext>> UffdContext::create(UffdFeatures features) {
  os::UniqueFd readable(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!readable) return fail_errno(errno, "eventfd");
  return std::shared_ptr<UffdContext>(new UffdContext(features, std::move(readable)));
}

Result<std::size_t> UffdContext::read(std::span<uffd_msg> messages, Deadline deadline) {
  if (messages.empty()) return fail(Errc::invalid_argument, "no room for a message", EINVAL);
  const MutexLock lock(mutex_);
  while (faults_.empty() && events_.empty()) {
    if (!arrived_.wait_until(mutex_, deadline.when()) && deadline.passed()) return 0U;
  }
  std::size_t count = 0;
  for (std::deque<uffd_msg>* queue : {&faults_, &events_}) {
    while (count < messages.size() && !queue->empty()) {
      messages[count] = queue->front();
      if (queue == &faults_ && !features_.has(UffdFeature::thread_id)) messages[count].arg.pagefault.feat.ptid = 0;
      ++count;
      queue->pop_front();
    }
  }
  signal_locked();
  return count;
}

bool UffdContext::changing() const {
  const MutexLock lock(mutex_);
  return !events_.empty();
}

bool UffdContext::queue_fault(const uffd_msg& message, Told told_when) {
  uffd_msg told = message;
  if (!features_.has(UffdFeature::exact_address))
    told.arg.pagefault.address = align_down(told.arg.pagefault.address, kPageSize.value);
  const auto of_thread = [thread = told.arg.pagefault.feat.ptid](const uffd_msg& other) {
    return other.arg.pagefault.feat.ptid == thread;
  };
  const MutexLock lock(mutex_);
  // A thread waits in one place. What was read later is of the later wait; an older wait was ended by a signal, say.
  if (told_when == Told::later && std::ranges::any_of(faults_, of_thread)) return true;
  std::erase_if(faults_, of_thread);
  if (faults_.size() == kMaxFaults) return false;
  faults_.push_back(told);
  signal_locked();
  arrived_.notify_one();
  return true;
}

void UffdContext::queue_event(const uffd_msg& message) {
  const MutexLock lock(mutex_);
  if (events_.size() == kMaxEvents) {
    log(LogLevel::error, "a monitor does not read its events: {} wait, and one more is dropped", kMaxEvents);
    return;
  }
  events_.push_back(message);
  signal_locked();
  arrived_.notify_one();
}

bool UffdContext::forget_faults(Address start, ByteCount length) {
  const MutexLock lock(mutex_);
  const std::size_t gone = std::erase_if(faults_, [&](const uffd_msg& message) {
    const Address address{message.arg.pagefault.address};
    return address >= start && address - start < length;
  });
  signal_locked();
  return gone != 0;
}

void UffdContext::signal_locked() {
  const bool waits = !faults_.empty() || !events_.empty();
  if (waits == signalled_) return;
  signalled_ = waits;
  std::uint64_t one = 1;
  // Neither can fail: the counter is 0 or 1.
  [[maybe_unused]] const ssize_t done =
      waits ? ::write(readable_.get(), &one, sizeof one) : ::read(readable_.get(), &one, sizeof one);
}

}  // namespace uffda
