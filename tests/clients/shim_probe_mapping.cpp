// Cases of shim_probe: making mappings, and what they show.
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <thread>

#include "shim_pattern.h"
#include "shim_probe.h"

namespace probe {
namespace {

void whole_file() {
  for (const int flags : {MAP_SHARED, MAP_PRIVATE, MAP_SHARED_VALIDATE}) {
    uint8_t* memory = map_file(g_file.size, PROT_READ, flags);
    check_random(memory, 50, 7);
    check_bytes(memory, pages() * kPage);
    CHECK(munmap(memory, g_file.size) == 0);
  }
}

void parts() {
  const struct {
    uint64_t page;
    size_t length;
  } parts[] = {{0, 1}, {1, 4096}, {3, 5000}, {pages() - 1, 1}, {pages() - 3, 2 * kPage + 17}, {100, 64 * kPage}};
  for (const auto& part : parts) {
    uint8_t* memory = map_file(part.length, PROT_READ, MAP_SHARED, part.page * kPage);
    check_bytes(memory, (part.length + kPage - 1) / kPage * kPage, part.page * kPage);
    CHECK(munmap(memory, part.length) == 0);
  }
}

void last_page() {
  uint8_t* memory = map_file((pages() + 2) * kPage, PROT_READ, MAP_SHARED);
  check_bytes(memory + (pages() - 1) * kPage, kPage, (pages() - 1) * kPage);
  CHECK(in_child([&] { (void)*const_cast<volatile uint8_t*>(memory + pages() * kPage); }) == SIGBUS);
  CHECK(in_child([&] { (void)*const_cast<volatile uint8_t*>(memory + (pages() + 1) * kPage); }) == SIGBUS);
  munmap(memory, (pages() + 2) * kPage);
  void* beyond = mmap(nullptr, kPage, PROT_READ, MAP_SHARED, g_file.fd, static_cast<off_t>((pages() + 5) * kPage));
  CHECK(beyond != MAP_FAILED);
  CHECK(in_child([&] { (void)*static_cast<volatile uint8_t*>(beyond); }) == SIGBUS);
  munmap(beyond, kPage);
}

void private_writes() {
  uint8_t* memory = map_file(g_file.size, PROT_READ | PROT_WRITE, MAP_PRIVATE);
  uint8_t* other = map_file(g_file.size, PROT_READ, MAP_SHARED);
  for (size_t page = 0; page < 64; page += 2) std::memset(memory + page * kPage + 100, 0xEE, 50);
  for (size_t page = 0; page < 64; ++page) {
    CHECK(memory[page * kPage + 120] == (page % 2 == 0 ? 0xEE : pattern_byte(page * kPage + 120)));
    check_bytes(memory + page * kPage, 100, page * kPage);
  }
  check_bytes(other, 64 * kPage);
  CHECK(madvise(memory, 64 * kPage, MADV_DONTNEED) == 0);
  check_bytes(memory, 64 * kPage);
  munmap(memory, g_file.size);
  munmap(other, g_file.size);
}

void system_calls() {
  uint8_t* memory = map_file(g_file.size, PROT_READ, MAP_SHARED);
  int ends[2];
  CHECK(pipe(ends) == 0);
  std::vector<uint8_t> got(3 * kPage);
  for (size_t page = 1; page + 4 < pages(); page += 97) {
    CHECK(write(ends[1], memory + page * kPage + 11, got.size()) == static_cast<ssize_t>(got.size()));
    CHECK(read(ends[0], got.data(), got.size()) == static_cast<ssize_t>(got.size()));
    check_bytes(got.data(), got.size(), page * kPage + 11);
  }
  close(ends[0]);
  close(ends[1]);
  munmap(memory, g_file.size);
}

void refusals() {
  errno = 0;
  CHECK(mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_SHARED, g_file.fd, 0) == MAP_FAILED && errno == EACCES);
  CHECK(mmap(nullptr, 0, PROT_READ, MAP_SHARED, g_file.fd, 0) == MAP_FAILED && errno == EINVAL);
  CHECK(mmap(nullptr, kPage, PROT_READ, MAP_SHARED, g_file.fd, 7) == MAP_FAILED && errno == EINVAL);
  CHECK(mmap(nullptr, kPage, PROT_READ, 0, g_file.fd, 0) == MAP_FAILED && errno == EINVAL);
  const int path_only = open(g_file.path, O_PATH | O_CLOEXEC);
  CHECK(mmap(nullptr, kPage, PROT_READ, MAP_SHARED, path_only, 0) == MAP_FAILED && errno == EBADF);
  close(path_only);
  CHECK(mmap(nullptr, kPage, PROT_READ, MAP_SHARED, path_only, 0) == MAP_FAILED && errno == EBADF);
  CHECK(munmap(reinterpret_cast<void*>(1), kPage) == -1 && errno == EINVAL);
  errno = 77;
  uint8_t* memory = map_file(kPage, PROT_READ, MAP_SHARED);
  munmap(memory, kPage);
  CHECK(errno == 77 || g_file.served);
}

void fixed_places() {
  const size_t length = 32 * kPage;
  uint8_t* memory = map_file(length, PROT_READ, MAP_SHARED, 0);
  check_bytes(memory, 8 * kPage, 0);
  // The same place shows another part of the file, then anonymous memory, then the file again.
  CHECK(map_file(8 * kPage, PROT_READ, MAP_PRIVATE | MAP_FIXED, 200 * kPage, memory + 4 * kPage) == memory + 4 * kPage);
  check_bytes(memory + 4 * kPage, 8 * kPage, 200 * kPage);
  check_bytes(memory, 4 * kPage, 0);
  check_bytes(memory + 12 * kPage, 20 * kPage, 12 * kPage);
  void* anonymous =
      mmap(memory + 6 * kPage, 4 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  CHECK(anonymous == memory + 6 * kPage);
  for (size_t i = 0; i < 4 * kPage; ++i) CHECK(memory[6 * kPage + i] == 0);
  std::memset(anonymous, 5, 4 * kPage);
  check_bytes(memory + 4 * kPage, 2 * kPage, 200 * kPage);
  check_bytes(memory + 10 * kPage, 2 * kPage, 206 * kPage);
  CHECK(in_child([&] { CHECK(memory[6 * kPage] == 5 && memory[10 * kPage - 1] == 5); }) == 0);
  errno = 0;
  CHECK(mmap(memory, kPage, PROT_READ, MAP_SHARED | MAP_FIXED_NOREPLACE, g_file.fd, 0) == MAP_FAILED);
  CHECK(errno == EEXIST);
  CHECK(munmap(memory, length) == 0);
  CHECK(map_file(kPage, PROT_READ, MAP_SHARED | MAP_FIXED_NOREPLACE, kPage, memory) == memory);
  check_bytes(memory, kPage, kPage);
  munmap(memory, kPage);
}

void hints() {
  for (const int flag : {MAP_POPULATE, MAP_LOCKED, MAP_POPULATE | MAP_LOCKED, MAP_POPULATE | MAP_NONBLOCK}) {
    uint8_t* memory = map_file(300 * kPage, PROT_READ, MAP_SHARED | flag, 64 * kPage);
    check_bytes(memory, 300 * kPage, 64 * kPage);
    munmap(memory, 300 * kPage);
  }
  uint8_t* memory = map_file(g_file.size, PROT_READ, MAP_PRIVATE);
  CHECK(madvise(memory, g_file.size, MADV_WILLNEED) == 0);
  CHECK(posix_madvise(memory, g_file.size, POSIX_MADV_WILLNEED) == 0);
  CHECK(posix_madvise(memory, g_file.size, POSIX_MADV_RANDOM) == 0);
  CHECK(mlock(memory + 10 * kPage, 20 * kPage) == 0);
  CHECK(munlock(memory, 100 * kPage) == 0);
  CHECK(madvise(memory, g_file.size, 22 /* MADV_POPULATE_READ */) == 0);
  check_bytes(memory, pages() * kPage);
  munmap(memory, g_file.size);
}

// Small parts: an ordinary user may lock 8 MiB.
void locked_future() {
  CHECK(in_child([] {
          CHECK(mlockall(MCL_FUTURE) == 0);
          const uint8_t* memory = map_file(256 * kPage, PROT_READ, MAP_SHARED, 300 * kPage);
          check_bytes(memory, 256 * kPage, 300 * kPage);
          const uint8_t* writable = map_file(64 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE, 128 * kPage);
          check_bytes(writable, 64 * kPage, 128 * kPage);
          CHECK(in_child([&] { check_bytes(memory, 256 * kPage, 300 * kPage); }) == 0);
        }) == 0);
  CHECK(in_child([] {
          const uint8_t* memory = map_file(g_file.size, PROT_READ, MAP_SHARED);
          CHECK(mlockall(MCL_CURRENT) == 0 || errno == ENOMEM);
          check_bytes(memory, pages() * kPage);
        }) == 0);
}

// A daemon closes every descriptor it does not know. Then it uses the numbers for other things, also for a
// userfaultfd of its own.
void closed_descriptors() {
  CHECK(in_child([] {
          uint8_t* before = map_file(g_file.size, PROT_READ, MAP_SHARED);
          check_random(before, 20, 3);
          for (int fd = 3; fd < 4096; ++fd) close(fd);
          check_random(before, 200, 4);
          g_file.fd = open(g_file.path, O_RDONLY | O_CLOEXEC);
          uint8_t* after = map_file(g_file.size, PROT_READ, MAP_SHARED);
          check_bytes(after, pages() * kPage);
          const long own = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
          uffdio_api api{};
          api.api = UFFD_API;
          CHECK(own >= 0 && ioctl(static_cast<int>(own), UFFDIO_API, &api) == 0);
          for (int fd = 3; fd < 2048; ++fd) {
            if (fd != g_file.fd && fd != own) dup2(static_cast<int>(own), fd);
          }
          uint8_t* third = map_file(g_file.size, PROT_READ, MAP_PRIVATE);
          check_bytes(third, pages() * kPage);
          CHECK(in_child([&] {
                  check_bytes(before, pages() * kPage);
                  check_bytes(after, pages() * kPage);
                  check_bytes(third, pages() * kPage);
                }) == 0);
          uffd_msg message;
          CHECK(read(static_cast<int>(own), &message, sizeof message) == -1 && errno == EAGAIN);
        }) == 0);
}

std::atomic<int> g_alarms{0};

void on_alarm(int) {
  const int saved = errno;
  auto* memory = static_cast<uint8_t*>(mmap(nullptr, kPage, PROT_READ, MAP_SHARED, g_file.fd, 5 * kPage));
  CHECK(memory != MAP_FAILED && memory[9] == pattern_byte(5 * kPage + 9));
  munmap(memory, kPage);
  ++g_alarms;
  errno = saved;
}

void signal_handlers() {
  struct sigaction action{};
  action.sa_handler = on_alarm;
  action.sa_flags = SA_RESTART;
  sigaction(SIGALRM, &action, nullptr);
  itimerval every{{0, 500}, {0, 500}};
  setitimer(ITIMER_REAL, &every, nullptr);
  while (g_alarms < 20) {
    uint8_t* memory = map_file(64 * kPage, PROT_READ, MAP_SHARED, 64 * kPage);
    check_bytes(memory, 64 * kPage, 64 * kPage);
    munmap(memory, 64 * kPage);
  }
  every = {};
  setitimer(ITIMER_REAL, &every, nullptr);
  signal(SIGALRM, SIG_DFL);
}

void worker(int seed) {
  for (int round = 0; round < 30; ++round) {
    const uint64_t first = static_cast<uint64_t>(seed * 37 + round * 11) % (pages() - 40);
    uint8_t* memory = map_file(32 * kPage, PROT_READ, MAP_SHARED, first * kPage);
    check_bytes(memory + 8 * kPage, 8 * kPage, (first + 8) * kPage);
    CHECK(munmap(memory + 4 * kPage, 8 * kPage) == 0);
    check_bytes(memory, 4 * kPage, first * kPage);
    check_bytes(memory + 12 * kPage, 20 * kPage, (first + 12) * kPage);
    munmap(memory, 32 * kPage);
  }
}

void threads() {
  std::vector<std::thread> all;
  for (int i = 0; i < 8; ++i) all.emplace_back(worker, i);
  uint8_t* memory = map_file(g_file.size, PROT_READ, MAP_SHARED);
  for (int i = 0; i < 4; ++i) all.emplace_back([=] { check_random(memory, 2000, 99 + (i % 2)); });
  for (auto& one : all) one.join();
  munmap(memory, g_file.size);
}

void executable() {
  uint8_t* memory = map_file(8 * kPage, PROT_READ | PROT_EXEC, MAP_PRIVATE);
  check_bytes(memory, 8 * kPage);
  munmap(memory, 8 * kPage);
}

}  // namespace

std::vector<Case> mapping_cases() {
  return {{"whole_file", whole_file},
          {"parts", parts},
          {"last_page", last_page},
          {"private_writes", private_writes},
          {"system_calls", system_calls},
          {"refusals", refusals},
          {"fixed_places", fixed_places},
          {"hints", hints},
          {"locked_future", locked_future},
          {"closed_descriptors", closed_descriptors},
          {"signal_handlers", signal_handlers},
          {"threads", threads},
          {"executable", executable}};
}

}  // namespace probe
