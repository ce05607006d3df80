#include "support/mm_fake_userfault.h"

#include <algorithm>
#include <cerrno>

namespace uffda::test {

void FakeUserfault::push(const uffd_msg& message) {
  const std::scoped_lock lock(mutex_);
  messages_.push_back(message);
}

FakeUserfault::Page FakeUserfault::page(Address address) const {
  const std::scoped_lock lock(mutex_);
  const auto at = pages_.find(align_down(address.value, kPageSize.value));
  return at == pages_.end() ? Page::none : at->second.page;
}

std::vector<std::byte> FakeUserfault::copied(Address address) const {
  const std::scoped_lock lock(mutex_);
  const auto at = pages_.find(align_down(address.value, kPageSize.value));
  return at == pages_.end() ? std::vector<std::byte>{} : at->second.bytes;
}

void FakeUserfault::clear() {
  const std::scoped_lock lock(mutex_);
  pages_.clear();
  calls_.clear();
  woken_.clear();
}

std::vector<FakeUserfault::Call> FakeUserfault::calls() const {
  const std::scoped_lock lock(mutex_);
  return calls_;
}

std::size_t FakeUserfault::wakes(Address address) const {
  const std::scoped_lock lock(mutex_);
  return static_cast<std::size_t>(std::ranges::count_if(
      woken_, [&](const Call& call) { return address >= call.start && address < call.start + call.length; }));
}

bool FakeUserfault::wait_until(const std::function<bool()>& condition) const {
  const TimePoint until = Clock::now() + kPatience;
  while (!condition()) {
    std::unique_lock lock(mutex_);
    // The condition is looked at without the lock, so a call may slip in between: look again soon.
    called_.wait_until(lock, std::min(until, Clock::now() + std::chrono::milliseconds(5)));
    if (Clock::now() >= until) return false;
  }
  return true;
}

Result<std::size_t> FakeUserfault::read(std::span<uffd_msg> messages, os::Wait) {
  const std::scoped_lock lock(mutex_);
  std::size_t count = 0;
  while (count < messages.size() && !messages_.empty()) {
    messages[count++] = messages_.front();
    messages_.pop_front();
  }
  return count;
}

os::Progress FakeUserfault::resolve(const Call& call, const std::function<bool(Entry&, std::uint64_t)>& step) {
  const std::optional<os::Progress> scripted = script_ ? script_(call) : std::nullopt;
  os::Progress progress;
  {
    const std::scoped_lock lock(mutex_);
    calls_.push_back(call);
    if (scripted) {
      progress = *scripted;
    } else {
      while (progress.done < call.length && step(pages_[call.start.value + progress.done.value], progress.done.value)) {
        progress.done += kPageSize;
      }
      // As the kernel has it: what stopped it is hidden by progress.
      if (progress.done < call.length) progress.error = progress.done.value == 0 ? EEXIST : EAGAIN;
    }
    if (progress.done.value != 0) woken_.push_back({call.kind, call.start, progress.done});
  }
  called_.notify_all();
  return progress;
}

os::Progress FakeUserfault::copy(Address to, std::span<const std::byte> from, os::Wake, os::Protect) {
  return resolve({Kind::copy, to, {from.size()}}, [&](Entry& entry, std::uint64_t at) {
    if (entry.page == Page::mapped) return false;
    const auto bytes = from.subspan(at, kPageSize.value);
    entry = {.page = Page::mapped, .bytes = {bytes.begin(), bytes.end()}};
    return true;
  });
}

os::Progress FakeUserfault::zeropage(Address start, ByteCount length, os::Wake) {
  return resolve({Kind::zeropage, start, length}, [](Entry& entry, std::uint64_t) {
    if (entry.page == Page::mapped) return false;
    entry.page = Page::mapped;
    return true;
  });
}

os::Progress FakeUserfault::continue_run(Address start, ByteCount length, os::Wake, os::Protect) {
  if (on_continue_) on_continue_(start, length);
  return resolve({Kind::continue_run, start, length}, [](Entry& entry, std::uint64_t) {
    if (entry.page == Page::mapped) return false;
    entry.page = Page::mapped;  // CONTINUE overwrites a poison marker
    return true;
  });
}

os::Progress FakeUserfault::poison(Address start, ByteCount length, os::Wake) {
  return resolve({Kind::poison, start, length}, [](Entry& entry, std::uint64_t) {
    if (entry.page != Page::none) return false;
    entry.page = Page::poisoned;
    return true;
  });
}

bool FakeUserfault::unmap(std::span<const iovec> ranges) {
  const std::scoped_lock lock(mutex_);
  for (const iovec& range : ranges) {
    const auto start = reinterpret_cast<std::uintptr_t>(range.iov_base);
    pages_.erase(pages_.lower_bound(start), pages_.lower_bound(start + range.iov_len));
  }
  return true;
}

int FakeUserfault::wake(Address start, ByteCount length) {
  if (start.value % kPageSize.value != 0 || length.value % kPageSize.value != 0 || length.value == 0) return EINVAL;
  {
    const std::scoped_lock lock(mutex_);
    calls_.push_back({Kind::wake, start, length});
    woken_.push_back({Kind::wake, start, length});
  }
  called_.notify_all();
  if (on_wake_) on_wake_();
  return 0;
}

Result<void> FakeUserfault::unregister_range(Address start, ByteCount length) {
  const os::Progress progress = resolve({Kind::unregister, start, length}, [](Entry&, std::uint64_t) { return true; });
  if (progress.error != 0) return fail_errno(progress.error, "UFFDIO_UNREGISTER");
  return {};
}

FakeSpace::FakeSpace(const std::shared_ptr<Core>& core) {
  auto fake = std::make_unique<FakeUserfault>();
  userfault = fake.get();
  space = AddressSpace::create(core, std::move(fake), "fake");
}

uffd_msg remove_event(Address start, ByteCount length) {
  uffd_msg message = unmap_event(start, length);
  message.event = UFFD_EVENT_REMOVE;
  return message;
}

uffd_msg unmap_event(Address start, ByteCount length) {
  uffd_msg message{};
  message.event = UFFD_EVENT_UNMAP;
  message.arg.remove.start = start.value;
  message.arg.remove.end = (start + length).value;
  return message;
}

uffd_msg remap_event(Address from, Address to, ByteCount length) {
  uffd_msg message{};
  message.event = UFFD_EVENT_REMAP;
  message.arg.remap.from = from.value;
  message.arg.remap.to = to.value;
  message.arg.remap.len = length.value;
  return message;
}

uffd_msg fault_event(Address address) {
  uffd_msg message{};
  message.event = UFFD_EVENT_PAGEFAULT;
  message.arg.pagefault.address = address.value;
  return message;
}

}  // namespace uffda::test
