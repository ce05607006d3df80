#include "mm/fault_loop.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <system_error>

#include "base/log.h"

namespace uffda {
namespace {

constexpr std::size_t kBatch = 16;
constexpr std::size_t kMaxReaders = 8;  // of one address space
constexpr int kProbeMs = 1000;          // how long the exit of a process can go unnoticed
constexpr Duration kSpin =
    std::chrono::microseconds(50);  // then sleep: longer than that the CPU is better used elsewhere

std::vector<int> usable_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> cpus;
  if (::sched_getaffinity(0, sizeof set, &set) != 0) return cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE && cpus.size() < kMaxReaders; ++cpu) {
    if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  }
  return cpus;
}

void pin_to(std::thread& thread, int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  ::pthread_setaffinity_np(thread.native_handle(), sizeof set, &set);  // only a matter of speed
}

}  // namespace

Result<std::unique_ptr<FaultLoop>> FaultLoop::start_polling(std::shared_ptr<AddressSpace> space) {
  std::unique_ptr<FaultLoop> loop(new FaultLoop(std::move(space)));
  loop->stop_event_ = os::UniqueFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!loop->stop_event_) return fail_errno(errno, "eventfd");
  UFFDA_TRY_VOID(loop->start(usable_cpus(), [raw = loop.get()] { raw->poll_loop(); }));
  return loop;
}

Result<std::unique_ptr<FaultLoop>> FaultLoop::start_blocking(std::shared_ptr<AddressSpace> space,
                                                             HandlerPolicy policy) {
  if (policy == HandlerPolicy::in_thread)
    return fail(Errc::invalid_argument, "faults in the faulting thread need no loop");
  std::unique_ptr<FaultLoop> loop(new FaultLoop(std::move(space)));
  std::vector<int> cpus = usable_cpus();
  if (policy != HandlerPolicy::per_cpu) cpus.assign(1, kAnyCpu);
  UFFDA_TRY_VOID(loop->make_doorbells(cpus.size()));
  UFFDA_TRY_VOID(
      loop->start(cpus, [raw = loop.get(), spin = policy == HandlerPolicy::spinning] { raw->blocking_loop(spin); }));
  return loop;
}

Result<void> FaultLoop::start(const std::vector<int>& cpus, const std::function<void()>& body) {
  for (const int cpu : cpus) {
    running_.fetch_add(1);
    try {
      threads_.emplace_back([this, body] {
        body();
        running_.fetch_sub(1, std::memory_order_release);
      });
    } catch (const std::system_error& error) {  // the only way std::thread fails
      running_.fetch_sub(1);
      if (!threads_.empty()) break;
      return fail_errno(error.code().value(), "starting a fault handler thread (limits: ulimit -u, threads-max)");
    }
    if (cpu != kAnyCpu) pin_to(threads_.back(), cpu);
  }
  return {};
}

FaultLoop::~FaultLoop() {
  stopping_.store(true, std::memory_order_release);
  if (stop_event_) {
    const std::uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = ::write(stop_event_.get(), &one, sizeof one);
  }
  ring_doorbells();
  for (std::thread& thread : threads_) thread.join();
  space_->close();
}

Result<void> FaultLoop::make_doorbells(std::size_t count) {
  // Without access until it is registered, so that nothing (mlockall) fills it before.
  doorbells_ = UFFDA_TRY(os::map_memory(kPageSize * count, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS));
  const ByteCount length{doorbells_.bytes().size()};
  UFFDA_TRY(space_->userfault().register_range(doorbells_.address(), length, UffdMode::missing));
  if (::mprotect(doorbells_.bytes().data(), length.value, PROT_READ) != 0) return fail_errno(errno, "mprotect");
  if (::madvise(doorbells_.bytes().data(), length.value, MADV_DONTFORK) != 0) return fail_errno(errno, "madvise");
  return {};
}

void FaultLoop::ring_doorbells() {
  // One after the other: the reader that gets a ring answers it and stops, so the next ring goes to one that still
  // reads.
  for (std::size_t i = 0; i < threads_.size() && !doorbells_.bytes().empty(); ++i) {
    std::byte* const bell = &doorbells_.bytes()[i * kPageSize.value];
    // Somebody else may have touched it before: absent again, or nobody would hear it.
    ::munlock(bell, kPageSize.value);
    ::madvise(bell, kPageSize.value, MADV_DONTNEED);
    [[maybe_unused]] const volatile std::byte rung = *bell;
  }
}

bool FaultLoop::handle_messages(std::span<uffd_msg> messages) {
  const Address begin = doorbells_.address();
  const ByteCount length{doorbells_.bytes().size()};
  bool rung = false;
  for (const uffd_msg& message : messages) {
    if (message.event != UFFD_EVENT_PAGEFAULT) continue;
    const Address address{message.arg.pagefault.address};
    if (address >= begin && address - begin < length) {
      space_->userfault().zeropage({align_down(address.value, kPageSize.value)}, kPageSize, os::Wake::yes);
      // Somebody else (mlockall) may touch it, too.
      rung = stopping_.load(std::memory_order_acquire);
    } else {
      space_->handle_fault(address, &message);
    }
  }
  return !rung;
}

void FaultLoop::blocking_loop(bool spin) {
  std::array<uffd_msg, kBatch> messages{};
  TimePoint last_message = Clock::now();
  while (true) {
    const bool keep_spinning = spin && Clock::now() - last_message < kSpin;
    const Result<std::size_t> count = space_->userfault().read(messages, keep_spinning ? os::Wait::no : os::Wait::yes);
    if (!count && count.error().code() == Errc::again) continue;
    if (!count) {
      log(LogLevel::error, "{}: {}; its faults wait until the process ends", space_->name(), count.error().message());
      return;
    }
    if (*count == 0) continue;
    if (!handle_messages(std::span(messages).first(*count))) return;
    if (spin) last_message = Clock::now();
  }
}

void FaultLoop::poll_loop() {
  std::array<uffd_msg, kBatch> messages{};
  const int fd = space_->userfault().fd();
  while (!stopping_.load(std::memory_order_acquire)) {
    std::array<pollfd, 2> polled{pollfd{.fd = fd, .events = POLLIN, .revents = 0},
                                 pollfd{.fd = stop_event_.get(), .events = POLLIN, .revents = 0}};
    const int ready = ::poll(polled.data(), polled.size(), kProbeMs);
    if (ready == 0 && !space_->alive()) return;
    if (ready <= 0 || polled[0].revents == 0) continue;
    // Whoever shares the description can make it blocking, which polls as an error: undo that.
    if ((polled[0].revents & POLLERR) != 0) ::fcntl(fd, F_SETFL, O_NONBLOCK);
    const Result<std::size_t> count = space_->drain(messages);
    if (!count && count.error().code() == Errc::no_memory) {
      // A fork event needs a descriptor; it stays queued until there is one, and its process waits.
      log(LogLevel::error, "{}: {}", space_->name(), count.error().message());
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    } else if (!count && count.error().code() != Errc::again) {
      log(LogLevel::error, "{}: {}", space_->name(), count.error().message());
      return;
    }
  }
}

}  // namespace uffda
