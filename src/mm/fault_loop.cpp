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
#include "os/threads.h"

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
  const std::vector<int> cpus = usable_cpus();
  UFFDA_TRY_VOID(loop->start(cpus, [raw = loop.get()](Reader reader) { raw->poll_loop(reader); }));
  loop->solo_poller_.start(std::span(cpus).first(loop->threads_.size()));
  return loop;
}

Result<std::unique_ptr<FaultLoop>> FaultLoop::start_blocking(std::shared_ptr<AddressSpace> space,
                                                             HandlerPolicy policy) {
  if (policy == HandlerPolicy::in_thread)
    return fail(Errc::invalid_argument, "faults in the faulting thread need no loop");
  std::unique_ptr<FaultLoop> loop(new FaultLoop(std::move(space)));
  std::vector<int> cpus = usable_cpus();
  if (policy != HandlerPolicy::per_cpu) cpus.assign(1, kAnyCpu);
  UFFDA_TRY_VOID(loop->make_doorbells(2 * cpus.size()));
  const bool spin = policy == HandlerPolicy::spinning;
  UFFDA_TRY_VOID(loop->start(cpus, [raw = loop.get(), spin](Reader reader) { raw->blocking_loop(reader, spin); }));
  loop->solo_.start(static_cast<unsigned>(loop->threads_.size()));
  return loop;
}

Result<void> FaultLoop::start(const std::vector<int>& cpus, const std::function<void(Reader)>& body) {
  for (const int cpu : cpus) {
    running_.fetch_add(1);
    try {
      threads_.emplace_back([this, body, reader = Reader{static_cast<unsigned>(threads_.size()), cpu}] {
        body(reader);
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
  solo_.stop();
  solo_poller_.stop();
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

void FaultLoop::ring(std::size_t bell) {
  std::byte* const page = &doorbells_.bytes()[bell * kPageSize.value];
  // Somebody else may have touched it before: absent again, or nobody would hear it.
  ::munlock(page, kPageSize.value);
  ::madvise(page, kPageSize.value, MADV_DONTNEED);
  [[maybe_unused]] const volatile std::byte rung = *page;
}

void FaultLoop::ring_doorbells() {
  // One after the other: the reader that gets a ring answers it and stops, so the next ring goes to one that still
  // reads.
  for (std::size_t i = 0; i < threads_.size() && !doorbells_.bytes().empty(); ++i) ring(i);
}

void FaultLoop::call_away(Reader reader, unsigned others) {
  if (others == 0) return;
  // Its own page: those of the others may be ringing to stop them.
  const std::size_t bell = doorbells_.bytes().size() / kPageSize.value / 2 + reader.number;
  for (unsigned i = 0; i < others && solo_.calling(); ++i) ring(bell);
  solo_.end_calls();
}

void FaultLoop::answer_bell(const uffd_msg& message, Rung& rung) {
  const Address page{align_down(message.arg.pagefault.address, kPageSize.value)};
  const bool stops = page - doorbells_.address() < ByteCount{doorbells_.bytes().size() / 2};
  rung.any = true;
  // Somebody else (mlockall) may touch it, too. Whoever is called away says so before the soloist goes on.
  if (stops) rung.stop = stopping_.load(std::memory_order_acquire);
  if (!stops && !rung.stand_by) rung.stand_by = solo_.called_away(message.arg.pagefault.feat.ptid);
  space_->userfault().zeropage(page, kPageSize, os::Wake::yes);
}

FaultLoop::Rung FaultLoop::handle_messages(std::span<uffd_msg> messages) {
  const Address begin = doorbells_.address();
  const ByteCount length{doorbells_.bytes().size()};
  Rung rung;
  for (const uffd_msg& message : messages) {
    if (message.event != UFFD_EVENT_PAGEFAULT) continue;
    const Address address{message.arg.pagefault.address};
    if (address >= begin && address - begin < length) {
      answer_bell(message, rung);
    } else {
      space_->handle_fault(address, &message);
    }
  }
  return rung;
}

void FaultLoop::blocking_loop(Reader reader, bool spin) {
  std::array<uffd_msg, kBatch> messages{};
  TimePoint last_message = Clock::now();
  while (true) {
    const bool keep_spinning = spin && Clock::now() - last_message < kSpin;
    const Result<std::size_t> count = space_->userfault().read(messages, keep_spinning ? os::Wait::no : os::Wait::yes);
    if (!count && count.error().code() == Errc::again) continue;
    if (!count) {
      log(LogLevel::error, "{}: {}; its faults wait until the process ends", space_->name(), count.error().message());
      solo_.start(0);
      return;
    }
    if (*count == 0) continue;
    const std::span<uffd_msg> batch = std::span(messages).first(*count);
    const Rung rung = handle_messages(batch);
    if (rung.stop) return;
    if (rung.stand_by) solo_.stand_by(*rung.stand_by);
    if (!rung.any) call_away(reader, solo_.after(reader.number, reader.cpu, batch));
    if (spin) last_message = Clock::now();
  }
}

FaultLoop::Woken FaultLoop::wait_for_messages(Reader reader) {
  const int fd = space_->userfault().fd();
  std::array<pollfd, 2> polled{pollfd{.fd = fd, .events = POLLIN, .revents = 0},
                               pollfd{.fd = stop_event_.get(), .events = POLLIN, .revents = 0}};
  int ready = ::poll(polled.data(), polled.size(), kProbeMs);
  if (ready == 0 && !space_->alive()) return Woken::gone;
  // What is left when it comes back, nobody has served.
  if (ready > 0 && polled[0].revents != 0 && solo_poller_.stood_aside(reader.number))
    ready = ::poll(polled.data(), polled.size(), 0);
  if (ready <= 0 || polled[0].revents == 0) return Woken::in_vain;
  // Whoever shares the description can make it blocking, which polls as an error: undo that.
  if ((polled[0].revents & POLLERR) != 0) ::fcntl(fd, F_SETFL, O_NONBLOCK);
  return Woken::by_messages;
}

void FaultLoop::note_served(Reader reader, std::span<const uffd_msg> messages) {
  constexpr auto kRemoves = [](const uffd_msg& message) { return message.event == UFFD_EVENT_REMOVE; };
  if (messages.empty()) return;
  const auto removes = static_cast<std::size_t>(std::ranges::count_if(messages, kRemoves));
  if (!solo_poller_.served(reader.number, messages.size(), removes)) return;
  const uffd_msg& last = messages.back();
  if (last.event != UFFD_EVENT_PAGEFAULT || last.arg.pagefault.feat.ptid == 0) return;  // it is not told
  solo_poller_.looked(os::cpu_of_thread(last.arg.pagefault.feat.ptid));
}

void FaultLoop::poll_loop(Reader reader) {
  std::array<uffd_msg, kBatch> messages{};
  bool contended = false;
  while (!stopping_.load(std::memory_order_acquire)) {
    const Woken woken = wait_for_messages(reader);
    if (woken == Woken::gone) break;
    if (woken == Woken::in_vain) continue;
    // Once only if nobody else is at it: most often there is nothing left then.
    const Result<std::size_t> count = contended ? space_->drain(messages) : space_->try_drain(messages);
    contended = !count && count.error().code() == Errc::again && !contended;
    if (count) {
      note_served(reader, std::span(messages).first(*count));
    } else if (count.error().code() == Errc::no_memory) {
      // A fork event needs a descriptor; it stays queued until there is one, and its process waits.
      log(LogLevel::error, "{}: {}", space_->name(), count.error().message());
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    } else if (count.error().code() != Errc::again) {
      log(LogLevel::error, "{}: {}", space_->name(), count.error().message());
      break;
    }
  }
  solo_poller_.stop();
}

}  // namespace uffda
