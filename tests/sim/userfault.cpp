// The simulated userfaultfd: messages, resolutions, events.
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
    expect(protect == os::Protect::no, "write protection is not simulated");
    return context_->copy(to, from, wake);
  }
  os::Progress zeropage(Address start, ByteCount length, os::Wake wake) override {
    return context_->zeropage(start, length, wake);
  }
  os::Progress continue_run(Address start, ByteCount length, os::Wake wake, os::Protect protect) override {
    expect(protect == os::Protect::no, "write protection is not simulated");
    return context_->continue_run(start, length, wake);
  }
  os::Progress poison(Address start, ByteCount length, os::Wake wake) override {
    return context_->poison(start, length, wake);
  }
  os::Progress move(Address, Address, ByteCount, os::Wake, os::SourceHoles) override {
    violation("MOVE is not simulated");
  }
  int writeprotect(Address, ByteCount, os::Protect, os::Wake) override {
    violation("write protection is not simulated");
  }
  int wake(Address start, ByteCount length) override { return context_->wake(start, length); }
  Result<UffdIoctls> register_range(Address start, ByteCount length, UffdModes modes) override {
    return context_->register_range(start, length, modes);
  }
  Result<void> unregister_range(Address start, ByteCount length) override {
    return context_->unregister_range(start, length);
  }
  bool alive() override { return context_->process().alive(); }

 private:
  std::shared_ptr<Context> context_;
};

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
    message.arg.pagefault.address = fault->page;
    message.arg.pagefault.flags = fault->reason == UffdMode::minor ? UFFD_PAGEFAULT_FLAG_MINOR : 0;
    trace("reads a fault at {:#x}", fault->page);
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

void Context::sleep_in_fault(std::uint64_t page, UffdMode reason) {
  const auto fault = std::make_shared<Fault>();
  fault->page = page;
  fault->reason = reason;
  fault->fiber = current();
  trace("faults at {:#x} ({})", page, reason == UffdMode::minor ? "minor" : "missing");
  pending_.push_back(fault);
  readers_.wake_one();
  point();
  // The entry is looked at again, so that what came between is not missed.
  if (process_->alive() && process_->kind(page) == Pte::Kind::none && !fault->woken) {
    const bool signalled = random().one_in(Kernel::running().faults().interrupted_one_in);
    fault->waiting.wait(signalled ? now() + random().up_to(std::chrono::milliseconds(1)) : kForever);
  }
  drop_fault(*fault);
}

int Context::wake(Address start, ByteCount length) {
  point();
  if (start.value % kPage != 0 || length.value % kPage != 0 || length.value == 0) return EINVAL;
  const auto inside = [&](const std::shared_ptr<Fault>& fault) {
    if (fault->page < start.value || fault->page >= start.value + length.value) return false;
    fault->woken = true;
    fault->waiting.wake_all();
    return true;
  };
  std::erase_if(pending_, inside);
  std::erase_if(delivered_, inside);
  return 0;
}

os::Progress Context::resolve(const char* name, Address start, ByteCount length, os::Wake wake_them,
                              const PageStep& step) {
  point();
  if (changing_ != 0) {
    trace("{} {:#x} + {}: EAGAIN, an event is not read", name, start.value, length.value / kPage);
    return {.done = {}, .error = EAGAIN};
  }
  if (start.value % kPage != 0 || length.value % kPage != 0 || length.value == 0) return {.done = {}, .error = EINVAL};
  if (!process_->alive()) return {.done = {}, .error = ESRCH};
  process_->mmap_lock_.lock_shared();
  os::Progress progress;
  Vma* const vma = process_->alive() ? process_->find(start.value) : nullptr;
  if (changing_ != 0) {
    progress.error = EAGAIN;
  } else if (vma == nullptr || vma->end() < start.value + length.value || !vma->uffd) {
    progress.error = ENOENT;
  }
  while (progress.error == 0 && progress.done < length) {
    if (progress.done.value != 0) point();
    const bool starved = random().one_in(Kernel::running().faults().no_memory_one_in);
    progress.error = starved ? ENOMEM : !process_->alive() ? ESRCH : step(*vma, start.value + progress.done.value);
    if (progress.error == 0) progress.done += kPageSize;
  }
  process_->mmap_lock_.unlock_shared();
  trace("{} {:#x} + {}: {} done, errno {}", name, start.value, length.value / kPage, progress.done.value / kPage,
        progress.error);
  if (progress.done.value != 0) {
    if (progress.error != 0) progress.error = EAGAIN;
    if (wake_them == os::Wake::yes) wake(start, progress.done);
  }
  return progress;
}

os::Progress Context::continue_run(Address start, ByteCount length, os::Wake wake_them) {
  return resolve("CONTINUE", start, length, wake_them, [&](Vma& vma, std::uint64_t page) {
    if (!vma.file) return EINVAL;
    const std::uint64_t index = (vma.offset + page - vma.start) / kPage;
    const Pte::Kind kind = process_->kind(page);
    if (index >= vma.file->pages()) return EFAULT;
    const auto cached = vma.file->cache.find(index);
    if (cached == vma.file->cache.end()) return EFAULT;
    if (kind != Pte::Kind::none && kind != Pte::Kind::poison) return EEXIST;
    process_->pte(page) = {.kind = Pte::Kind::cached, .page = cached->second};
    return 0;
  });
}

os::Progress Context::copy(Address to, std::span<const std::byte> from, os::Wake wake_them) {
  return resolve("COPY", to, {from.size()}, wake_them, [&](Vma& vma, std::uint64_t page) {
    const Pte::Kind kind = process_->kind(page);
    if (kind != Pte::Kind::none && kind != Pte::Kind::poison) return EEXIST;
    auto bytes = std::make_shared<PageBytes>();
    std::memcpy(bytes->data(), from.data() + (page - to.value), kPage);
    if (vma.file && vma.shared) {
      PageRef& cached = vma.file->cache[(vma.offset + page - vma.start) / kPage];
      if (cached) return EEXIST;
      cached = bytes;
      process_->pte(page) = {.kind = Pte::Kind::cached, .page = std::move(bytes)};
    } else {
      process_->pte(page) = {.kind = Pte::Kind::own, .page = std::move(bytes)};
    }
    return 0;
  });
}

os::Progress Context::zeropage(Address start, ByteCount length, os::Wake wake_them) {
  return resolve("ZEROPAGE", start, length, wake_them, [&](Vma& vma, std::uint64_t page) {
    if (process_->kind(page) != Pte::Kind::none) return EEXIST;
    process_->fill_unregistered(vma, page);
    return 0;
  });
}

os::Progress Context::poison(Address start, ByteCount length, os::Wake wake_them) {
  return resolve("POISON", start, length, wake_them, [&](Vma& vma, std::uint64_t page) {
    if (vma.file && (vma.offset + page - vma.start) / kPage >= vma.file->pages()) return EFAULT;
    if (process_->kind(page) != Pte::Kind::none) return EEXIST;
    process_->pte(page) = {.kind = Pte::Kind::poison};
    return 0;
  });
}

Result<UffdIoctls> Context::register_range(Address start, ByteCount length, UffdModes modes) {
  process_->mmap_lock_.lock();
  for (auto& [at, vma] : process_->vmas_) {
    if (vma.start < start.value || vma.end() > start.value + length.value) continue;
    vma.uffd = process_->context();
    vma.modes = modes;
  }
  process_->mmap_lock_.unlock();
  return UffdIoctls{};
}

Result<void> Context::unregister_range(Address start, ByteCount length) {
  process_->mmap_lock_.lock();
  for (auto& [at, vma] : process_->vmas_) {
    if (vma.start >= start.value && vma.end() <= start.value + length.value) vma.uffd = nullptr;
  }
  process_->mmap_lock_.unlock();
  wake(start, length);
  return {};
}

}  // namespace uffda::sim
