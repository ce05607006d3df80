#include "common/floor.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "common/bench.h"

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif

namespace bench {
namespace {

std::atomic<Floor*> in_thread_floor{nullptr};

int open_userfaultfd(int flags) {
  // Faults of user code are all that is measured here, so the unprivileged kind is as good.
  const auto fd = static_cast<int>(::syscall(SYS_userfaultfd, flags | O_CLOEXEC));
  return fd >= 0 ? fd : static_cast<int>(::syscall(SYS_userfaultfd, flags | O_CLOEXEC | UFFD_USER_MODE_ONLY));
}

}  // namespace

std::optional<std::string> Floor::cannot() {
  const int fd = open_userfaultfd(0);
  if (fd < 0) return std::string("userfaultfd: ") + std::strerror(errno);
  ::close(fd);
  return std::nullopt;
}

Floor::Floor(const Setup& setup) : setup_(setup) {
  const bool in_thread = setup.handler == FloorHandler::in_thread;
  uffd_ = open_userfaultfd(setup.handler == FloorHandler::spinning ? O_NONBLOCK : 0);
  check(uffd_ >= 0, "userfaultfd");
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM | (in_thread ? UFFD_FEATURE_SIGBUS : 0);
  check(::ioctl(uffd_, UFFDIO_API, &api) == 0, "UFFDIO_API");

  // Behind the pages that are measured lie some that nobody touches but the destructor, to wake the handlers.
  mapped_ = setup.bytes + kMaxHandlers * kPageSize;
  if (setup.memfd >= 0) {
    memfd_ = ::dup(setup.memfd);
    check(memfd_ >= 0, "dup");
  } else {
    memfd_ = ::memfd_create("floor", MFD_CLOEXEC);
    check(memfd_ >= 0 && ::ftruncate(memfd_, static_cast<off_t>(setup.bytes)) == 0, "memfd");
  }
  // The file, and behind it anonymous pages that are touched to wake the handlers at the end.
  void* const memory = ::mmap(nullptr, mapped_, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  check(memory != MAP_FAILED, "mmap");
  check(::mmap(memory, setup.bytes, PROT_READ, MAP_SHARED | MAP_FIXED, memfd_, 0) != MAP_FAILED, "mmap");
  data_ = static_cast<std::byte*>(memory);
  const auto watch = [this](std::size_t offset, std::size_t length, std::uint64_t mode) {
    uffdio_register range{};
    range.range = {.start = reinterpret_cast<std::uintptr_t>(data_) + offset, .len = length};
    range.mode = mode;
    check(::ioctl(uffd_, UFFDIO_REGISTER, &range) == 0, "UFFDIO_REGISTER");
  };
  watch(0, setup.bytes, UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR);
  watch(setup.bytes, mapped_ - setup.bytes, UFFDIO_REGISTER_MODE_MISSING);

  const std::vector<int> cpus = usable_cpus();
  const auto other = std::ranges::find_if(cpus, [&](int cpu) { return cpu != setup.toucher_cpu; });
  const int elsewhere = other == cpus.end() ? setup.toucher_cpu : *other;
  switch (setup.handler) {
    case FloorHandler::same_cpu:
      start_handler(setup.toucher_cpu);
      break;
    case FloorHandler::other_cpu:
    case FloorHandler::spinning:
      start_handler(elsewhere);
      break;
    case FloorHandler::every_cpu:
      for (std::size_t i = 0; i < std::min(cpus.size(), kMaxHandlers); ++i) start_handler(cpus[i]);
      break;
    case FloorHandler::in_thread:
      break;
  }
}

Floor::~Floor() {
  spin_.store(true);
  spin_.notify_all();
  const std::size_t doorbells = mapped_ - kMaxHandlers * kPageSize;
  for (std::size_t i = 0; i < handlers_.size(); ++i) {
    [[maybe_unused]] const volatile std::byte rung = data_[doorbells + i * kPageSize];
  }
  for (std::thread& handler : handlers_) handler.join();
  ::munmap(data_, mapped_);
  ::close(memfd_);
  ::close(uffd_);
}

void Floor::start_handler(int cpu) {
  handlers_.emplace_back([this, cpu] {
    pin_thread({cpu});
    handler_loop();
  });
}

bool Floor::next_message(uffd_msg& message) {
  while (true) {
    const ssize_t size = ::read(uffd_, &message, sizeof message);
    if (size == static_cast<ssize_t>(sizeof message)) return message.event == UFFD_EVENT_PAGEFAULT;
    if (errno != EAGAIN) return false;
    if (!spin_.load(std::memory_order_relaxed)) spin_.wait(false);
  }
}

void Floor::handler_loop() {
  const std::uint64_t doorbells = reinterpret_cast<std::uintptr_t>(data_) + mapped_ - kMaxHandlers * kPageSize;
  uffd_msg message{};
  while (next_message(message)) {
    const std::uint64_t address = message.arg.pagefault.address & ~(kPageSize - 1);
    if (address >= doorbells) {
      uffdio_zeropage zero{};
      zero.range = {.start = address, .len = kPageSize};
      check(::ioctl(uffd_, UFFDIO_ZEROPAGE, &zero) == 0, "UFFDIO_ZEROPAGE");
      return;
    }
    resolve(address, (message.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_MINOR) == 0);
  }
}

void Floor::resolve(std::uint64_t address, bool missing) {
  const std::uint64_t offset = address - reinterpret_cast<std::uintptr_t>(data_);
  if (missing) {
    alignas(64) thread_local std::array<std::byte, kPageSize> page;
    const auto at = static_cast<off_t>(offset);
    check(::pread(setup_.source_fd, page.data(), page.size(), at) == static_cast<ssize_t>(kPageSize), "pread");
    check(::pwrite(memfd_, page.data(), page.size(), at) == static_cast<ssize_t>(kPageSize), "pwrite");
  }
  uffdio_continue request{};
  request.range = {.start = address, .len = std::min<std::uint64_t>(run_, setup_.bytes - offset)};
  check(::ioctl(uffd_, UFFDIO_CONTINUE, &request) == 0 || errno == EEXIST || errno == EAGAIN, "UFFDIO_CONTINUE");
}

void Floor::fill() {
  std::vector<std::byte> block(std::size_t{1} << 20U, std::byte{0x5A});
  for (std::size_t at = 0; at < setup_.bytes; at += block.size()) {
    const std::size_t length = std::min(block.size(), setup_.bytes - at);
    check(::pwrite(memfd_, block.data(), length, static_cast<off_t>(at)) == static_cast<ssize_t>(length), "pwrite");
  }
}

void Floor::unmap_pages() { check(::madvise(data_, setup_.bytes, MADV_DONTNEED) == 0, "MADV_DONTNEED"); }

void Floor::empty() {
  check(::fallocate(memfd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, static_cast<off_t>(setup_.bytes)) == 0,
        "punch");
}

void Floor::on_sigbus(int, siginfo_t* info, void*) {
  const int saved_errno = errno;
  Floor* const floor = in_thread_floor.load(std::memory_order_relaxed);
  const std::uint64_t address = reinterpret_cast<std::uintptr_t>(info->si_addr) & ~(kPageSize - 1);
  // Which of the two it is the signal does not say: CONTINUE does, by EFAULT for what is not cached.
  uffdio_continue request{};
  const std::uint64_t left = reinterpret_cast<std::uintptr_t>(floor->data_) + floor->setup_.bytes - address;
  request.range = {.start = address, .len = std::min<std::uint64_t>(floor->run_, left)};
  if (::ioctl(floor->uffd_, UFFDIO_CONTINUE, &request) != 0 && errno == EFAULT) floor->resolve(address, true);
  errno = saved_errno;
}

void Floor::enter() {
  if (setup_.handler == FloorHandler::spinning) {
    spin_.store(true);
    spin_.notify_all();
  }
  if (setup_.handler != FloorHandler::in_thread) return;
  in_thread_floor.store(this);
  struct sigaction action{};
  action.sa_sigaction = on_sigbus;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  check(::sigaction(SIGBUS, &action, &before_) == 0, "sigaction");
}

void Floor::leave() {
  spin_.store(false);
  if (setup_.handler == FloorHandler::in_thread) check(::sigaction(SIGBUS, &before_, nullptr) == 0, "sigaction");
}

}  // namespace bench
