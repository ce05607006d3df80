#include "exec/kept_faults.h"

#include <poll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <span>

namespace uffda::exec {

namespace {

constexpr int kProbeMilliseconds = 1000;  // a dead address space says nothing to poll

void poison_page(os::Userfault& faults, Address page) {
  const os::Progress progress = faults.poison(page, kPageSize, os::Wake::yes);
  // EEXIST: the server had mapped it; or it was protected when it was evicted, and that goes first. ENOENT: unmapped
  // meanwhile. EAGAIN: an event comes first. The fault comes again.
  if (progress.error == EEXIST) (void)faults.writeprotect(page, kPageSize, os::Protect::no, os::Wake::no);
  if (progress.error != 0) (void)faults.wake(page, kPageSize);
}

/// Answers what waits in one userfaultfd.
void answer(os::Userfault& faults) {
  std::array<uffd_msg, 32> messages;
  for (;;) {
    const auto count = faults.read(messages, os::Wait::no);
    if (!count || *count == 0) return;
    for (const uffd_msg& message : std::span(messages).first(*count)) {
      if (message.event == UFFD_EVENT_FORK) os::UniqueFd(static_cast<int>(message.arg.fork.ufd)).reset();
      if (message.event != UFFD_EVENT_PAGEFAULT) continue;  // unmaps and moves: later faults name the new addresses
      const Address page{align_down(message.arg.pagefault.address, kPageSize.value)};
      // A page that is there takes no poison: it can be written to, as the cache of a file can whose disk is gone, and
      // msync says that nobody stores it.
      if ((message.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP) != 0) {
        (void)faults.writeprotect(page, kPageSize, os::Protect::no, os::Wake::yes);
      } else {
        poison_page(faults, page);
      }
    }
  }
}

}  // namespace

Result<std::unique_ptr<KeptFaults>> KeptFaults::create() {
  os::UniqueFd changed(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!changed) return fail_errno(errno, "eventfd");
  return std::unique_ptr<KeptFaults>(new KeptFaults(std::move(changed)));
}

KeptFaults::~KeptFaults() {
  stopping_ = true;
  (void)::eventfd_write(changed_.get(), 1);
  if (poisoner_.joinable()) poisoner_.join();
}

Result<void> KeptFaults::keep(os::UniqueFd userfaultfd, std::uint64_t features) {
  std::shared_ptr<os::Userfault> faults = UFFDA_TRY(os::adopt_userfault(std::move(userfaultfd), features));
  (void)forget_dead();
  const MutexLock lock(mutex_);
  if (kept_.size() >= kMaxKept) return fail(Errc::no_memory, "too many address spaces use the map");
  kept_.push_back(std::move(faults));
  ever_kept_.fetch_add(1);
  (void)::eventfd_write(changed_.get(), 1);
  return {};
}

KeptFaults::Kept KeptFaults::snapshot() {
  const MutexLock lock(mutex_);
  return kept_;
}

std::size_t KeptFaults::forget_dead() {
  Kept dead = snapshot();
  std::erase_if(dead, [](const auto& faults) { return faults->alive(); });
  const MutexLock lock(mutex_);
  std::erase_if(kept_, [&](const auto& faults) { return std::ranges::find(dead, faults) != dead.end(); });
  return kept_.size();
}

void KeptFaults::poison_from_now_on() {
  if (poisoning_.exchange(true)) return;
  for (const auto& faults : snapshot()) os::wake_everything(*faults);
  poisoner_ = std::thread([this] { run(); });
}

void KeptFaults::run() {
  while (!stopping_.load()) {
    Kept current = snapshot();
    std::vector<pollfd> entries{{.fd = changed_.get(), .events = POLLIN, .revents = 0}};
    for (const auto& faults : current) entries.push_back({.fd = faults->fd(), .events = POLLIN, .revents = 0});
    const int ready = ::poll(entries.data(), entries.size(), kProbeMilliseconds);
    if (ready == 0) (void)forget_dead();
    eventfd_t ignored = 0;
    (void)::eventfd_read(changed_.get(), &ignored);
    for (std::size_t i = 0; ready > 0 && i < current.size(); ++i) {
      if ((entries[i + 1].revents & POLLIN) != 0) answer(*current[i]);
    }
  }
}

}  // namespace uffda::exec
