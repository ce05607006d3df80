// The simulated userfaultfd as the core sees it, and its messages. What resolves faults is in resolve.cpp.
#include <algorithm>
#include <cerrno>

#include "sim/kernel.h"

namespace uffda::sim {
namespace {

class SimulatedUserfault final : public os::Userfault {
 public:
  explicit SimulatedUserfault(std::shared_ptr<Context> context) : context_(std::move(context)) {}

  [[nodiscard]] int fd() const override { return context_->fd(); }
  [[nodiscard]] std::uint64_t features() const override { return context_->features(); }
  Result<std::size_t> read(std::span<uffd_msg> messages, os::Wait wait) override {
    return context_->read(messages, wait);
  }
  os::Progress copy(Address to, std::span<const std::byte> from, os::Wake wake, os::Protect protect) override {
    return progress(context_->copy(to, from, {from.size()}, mode(wake, protect)));
  }
  os::Progress zeropage(Address start, ByteCount length, os::Wake wake) override {
    return progress(context_->zeropage(start, length, mode(wake)));
  }
  os::Progress continue_run(Address start, ByteCount length, os::Wake wake, os::Protect protect) override {
    return progress(context_->continue_run(start, length, mode(wake, protect)));
  }
  os::Progress poison(Address start, ByteCount length, os::Wake wake) override {
    return progress(context_->poison(start, length, mode(wake)));
  }
  os::Progress move(Address to, Address from, ByteCount length, os::Wake wake, os::SourceHoles holes) override {
    const std::uint64_t allowed = holes == os::SourceHoles::allow ? UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES : 0U;
    return progress(context_->move(to, from, length, mode(wake) | allowed));
  }
  int writeprotect(Address start, ByteCount length, os::Protect protect, os::Wake wake) override {
    const bool protects = protect == os::Protect::yes;
    const std::uint64_t quietly = wake == os::Wake::no ? UFFDIO_WRITEPROTECT_MODE_DONTWAKE : 0U;
    return context_->writeprotect(start, length, protects ? UFFDIO_WRITEPROTECT_MODE_WP : quietly);
  }
  [[nodiscard]] bool can_unmap() const override {
    constexpr std::uint64_t kTold =
        UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP;
    return (context_->features() & kTold) == 0;  // the memory of this process
  }
  bool unmap(std::span<const iovec> ranges) override {
    for (const iovec& range : ranges) {
      context_->process().madvise_dontneed(reinterpret_cast<std::uintptr_t>(range.iov_base), range.iov_len);
    }
    return true;
  }
  int wake(Address start, ByteCount length) override { return context_->wake(start, length); }
  Result<UffdIoctls> register_range(Address start, ByteCount length, UffdModes modes) override {
    std::uint64_t ioctls = 0;
    const int error = context_->register_range(start, length, modes.bits(), ioctls);
    if (error != 0) return fail_errno(error, "UFFDIO_REGISTER");
    return UffdIoctls::from_bits(ioctls);
  }
  Result<void> unregister_range(Address start, ByteCount length) override {
    const int error = context_->unregister_range(start, length);
    if (error != 0) return fail_errno(error, "UFFDIO_UNREGISTER");
    return {};
  }
  bool alive() override { return context_->process().alive(); }

 private:
  static std::uint64_t mode(os::Wake wake, os::Protect protect = os::Protect::no) {
    return (wake == os::Wake::no ? UFFDIO_COPY_MODE_DONTWAKE : 0U) |
           (protect == os::Protect::yes ? UFFDIO_COPY_MODE_WP : 0U);  // the same bits in all of them
  }
  static os::Progress progress(const Resolved& resolved) {
    const std::int64_t done = resolved.field.value_or(0);
    return {.done = {static_cast<std::uint64_t>(std::max<std::int64_t>(done, 0))}, .error = resolved.error};
  }

  std::shared_ptr<Context> context_;
};

std::uint64_t flags_of(Access access, UffdMode reason) {
  return (access == Access::write ? UFFD_PAGEFAULT_FLAG_WRITE : 0U) |
         (reason == UffdMode::minor ? UFFD_PAGEFAULT_FLAG_MINOR : 0U) |
         (reason == UffdMode::wp ? UFFD_PAGEFAULT_FLAG_WP : 0U);
}

std::string_view name_of(UffdMode reason) {
  return reason == UffdMode::minor ? "minor" : reason == UffdMode::wp ? "write-protected" : "missing";
}

}  // namespace

std::unique_ptr<os::Userfault> Kernel::wrap(std::shared_ptr<Context> context) {
  return std::make_unique<SimulatedUserfault>(std::move(context));
}

bool Context::wait_readable(TimePoint until) {
  while (pending_.empty() && events_.empty()) {
    if (interrupted_ || !readers_.wait(until)) return false;
  }
  return !interrupted_;
}

void Context::interrupt() {
  interrupted_ = true;
  readers_.wake_all();
}

Result<std::size_t> Context::read(std::span<uffd_msg> messages, os::Wait wait) {
  const SystemCall entered;
  point();
  if (wait == os::Wait::yes) {
    expect_no_lock("a read of a userfaultfd that waits");
    if (!wait_readable(kForever)) return uffda::fail(Errc::again);
  }
  std::size_t count = 0;
  while (count < messages.size() && !pending_.empty()) {
    const auto fault = pending_.front();
    pending_.pop_front();
    delivered_.push_back(fault);
    uffd_msg& message = messages[count++] = {};
    message.event = UFFD_EVENT_PAGEFAULT;
    message.arg.pagefault.address = has(UFFD_FEATURE_EXACT_ADDRESS) ? fault->address : fault->page();
    message.arg.pagefault.flags = flags_of(fault->access, fault->reason);
    if (has(UFFD_FEATURE_THREAD_ID)) message.arg.pagefault.feat.ptid = fault->thread;
    trace("reads a fault at {:#x}", fault->address);
  }
  while (count < messages.size() && !events_.empty()) {
    const auto event = events_.front();
    if (event->child) {
      if (random().one_in(Kernel::running().faults().no_descriptor_one_in)) {
        if (count != 0) break;
        return uffda::fail(Errc::no_memory, "no descriptor left", EMFILE);
      }
      event->message.arg.fork.ufd = static_cast<__u32>(event->child->fd());
    }
    note(Moment::event_read);
    events_.pop_front();
    messages[count++] = event->message;
    trace("reads event {:#x}", event->message.event);
    event->read = true;
    --changing_;
    event->waiting.wake_all();
  }
  point();
  return count;
}

void Context::send(Event event) {
  if (!process_->alive()) return;
  const auto queued = std::make_shared<Event>(std::move(event));
  events_.push_back(queued);
  readers_.wake_one();
  while (!queued->read) queued->waiting.wait();
}

void Context::drop_fault(const Fault& fault) {
  const auto same = [&](const auto& other) { return other.get() == &fault; };
  std::erase_if(pending_, same);
  std::erase_if(delivered_, same);
}

std::shared_ptr<Context::Fault> Context::queue_fault(std::uint64_t address, UffdMode reason, Access access) {
  const auto fault = std::make_shared<Fault>();
  fault->address = address;
  fault->reason = reason;
  fault->access = access;
  fault->thread = number_of(current());
  trace("faults at {:#x} ({})", address, name_of(reason));
  pending_.push_back(fault);
  readers_.wake_one();
  point();
  return fault;
}

bool Context::must_wait(const Fault& fault) const {
  const Pte pte = process_->pte(fault.page());
  return process_->alive() && (pte.vacant() || (fault.reason == UffdMode::wp && pte.protected_));
}

void Context::sleep_in(const std::shared_ptr<Fault>& fault, bool must_wait) {
  if (must_wait && process_->alive() && !fault->woken) {
    const bool signalled = random().one_in(Kernel::running().faults().interrupted_one_in);
    fault->waiting.wait(signalled ? now() + random().up_to(std::chrono::milliseconds(1)) : kForever);
  }
  drop_fault(*fault);
}

void Context::wake_range(Address start, ByteCount length) {
  const auto inside = [&](const std::shared_ptr<Fault>& fault) {
    if (fault->page() < start.value || fault->page() >= start.value + length.value) return false;
    fault->woken = true;
    fault->waiting.wake_all();
    return true;
  };
  std::erase_if(pending_, inside);
  std::erase_if(delivered_, inside);
}

}  // namespace uffda::sim
