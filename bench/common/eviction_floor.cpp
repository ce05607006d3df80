#include "common/eviction_floor.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <thread>

#include "common/bench.h"

namespace bench {
namespace {

EvictionFloor* eviction_floor_here = nullptr;

/// This thread's buffer of one page, resident.
std::byte* page_buffer() {
  thread_local void* const buffer =
      ::mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  check(buffer != MAP_FAILED, "mmap");
  return static_cast<std::byte*>(buffer);
}

}  // namespace

EvictionFloor::EvictionFloor(const std::string& path, std::size_t bytes, std::size_t budget, Handler handler,
                             unsigned threads)
    : pages_(bytes / kPage),
      budget_(budget / kPage),
      file_(::open(path.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC)),
      states_(std::make_unique<std::atomic<std::uint8_t>[]>(pages_)) {
  check(file_ >= 0, path);
  uffd_ = static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC));
  check(uffd_ >= 0, "userfaultfd");
  uffdio_api api{};
  api.api = UFFD_API;
  api.features =
      UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM | (handler == Handler::in_thread ? UFFD_FEATURE_SIGBUS : 0);
  check(::ioctl(uffd_, UFFDIO_API, &api) == 0, "UFFDIO_API");
  memfd_ = ::memfd_create("floor", MFD_CLOEXEC);
  check(memfd_ >= 0 && ::ftruncate(memfd_, static_cast<off_t>(bytes)) == 0, "memfd");
  void* const memory = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, memfd_, 0);
  check(memory != MAP_FAILED, "mmap");
  data_ = static_cast<std::byte*>(memory);
  uffdio_register range{};
  range.range = {.start = reinterpret_cast<std::uintptr_t>(memory), .len = bytes};
  range.mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR;
  check(::ioctl(uffd_, UFFDIO_REGISTER, &range) == 0, "UFFDIO_REGISTER");
  if (handler == Handler::in_thread) {
    eviction_floor_here = this;
    struct sigaction action{};
    action.sa_sigaction = on_sigbus;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    check(::sigaction(SIGBUS, &action, nullptr) == 0, "sigaction");
    return;
  }
  const std::vector<int> cpus = usable_cpus();
  for (unsigned i = 0; i < std::max(threads, static_cast<unsigned>(cpus.size())); ++i) {
    std::thread([this, cpu = cpus[i % cpus.size()]] {
      pin_thread({cpu});
      read_messages();
    }).detach();
  }
}

void EvictionFloor::read_messages() {
  for (;;) {
    uffd_msg message{};
    const ssize_t got = ::read(uffd_, &message, sizeof message);
    if (got < 0 && errno == EAGAIN) continue;
    check(got == sizeof message, "reading the userfaultfd");
    resolve(reinterpret_cast<std::byte*>(message.arg.pagefault.address));
  }
}

void EvictionFloor::on_sigbus(int /*signal*/, siginfo_t* info, void* /*context*/) {
  eviction_floor_here->resolve(static_cast<std::byte*>(info->si_addr));
}

bool EvictionFloor::becomes(Page page, State from, State to) {
  std::uint8_t expected = from;
  return states_[page].compare_exchange_strong(expected, to);
}

void EvictionFloor::resolve(std::byte* address) {
  const Page page = static_cast<std::size_t>(address - data_) / kPage;
  for (;;) {
    if (becomes(page, absent, filling)) return fill(page);
    if (becomes(page, unmapped, mapped) || states_[page] == mapped) return map(page);
    std::this_thread::yield();
  }
}

void EvictionFloor::fill(Page page) {
  if (resident_.fetch_add(1) >= budget_) make_room();
  const auto offset = static_cast<off_t>(page * kPage);
  check(::pread(file_, page_buffer(), kPage, offset) == kPage, "pread");
  check(::pwrite(memfd_, page_buffer(), kPage, offset) == kPage, "pwrite");
  states_[page] = mapped;
  map(page);
}

void EvictionFloor::map(Page page) {
  uffdio_continue page_range{};
  page_range.range = {.start = reinterpret_cast<std::uintptr_t>(data_ + page * kPage), .len = kPage};
  // Its eviction may have come in between: the fault comes again.
  if (::ioctl(uffd_, UFFDIO_CONTINUE, &page_range) == 0) return;
  check(errno == EEXIST || errno == EFAULT, "UFFDIO_CONTINUE");
  ::ioctl(uffd_, UFFDIO_WAKE, &page_range.range);
}

void EvictionFloor::make_room() {
  const std::scoped_lock lock(evicting_);
  while (resident_ >= budget_) {
    while (unmapped_pages_ < budget_ / 4) unmap_block();
    punch_block();
  }
}

void EvictionFloor::unmap_block() {
  const Page block = hand_;
  hand_ = (hand_ + kBlock) % pages_;
  std::size_t count = 0;
  for (Page page = block; page < block + kBlock; ++page) count += becomes(page, mapped, unmapped) ? 1 : 0;
  check(::madvise(data_ + block * kPage, kBlock * kPage, MADV_DONTNEED) == 0, "MADV_DONTNEED");
  unmapped_.push_back({.block = block, .pages = count});
  unmapped_pages_ += count;
}

void EvictionFloor::punch_block() {
  const Unmapped next = unmapped_[oldest_++];
  unmapped_pages_ -= next.pages;
  for (Page page = next.block; page < next.block + kBlock;) {
    Page end = page;
    while (end < next.block + kBlock && becomes(end, unmapped, filling)) ++end;
    if (end == page) {
      ++page;
      continue;
    }
    check(::fallocate(memfd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(page * kPage),
                      static_cast<off_t>((end - page) * kPage)) == 0,
          "punching");
    resident_ -= end - page;
    for (; page < end; ++page) states_[page] = absent;
  }
}

}  // namespace bench
