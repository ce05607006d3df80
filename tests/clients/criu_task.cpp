// A process for CRIU to dump and restore: fills memory with a pattern, and after each SIGUSR1 does something to it and
// checks every word.
//
//   criu_task WHAT MIB DIRECTORY
//
// WHAT: plain; tree (two children, who have written to some of it, and a zombie); changes (moves, unmaps and drops
// parts first); forks (a child is born first, and both check). Writes DIRECTORY/ready once, and a line to
// DIRECTORY/result for each process that has checked.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

namespace {

constexpr std::size_t kPage = 4096;
constexpr std::size_t kWords = kPage / sizeof(std::uint64_t);

struct Memory {
  std::uint64_t* start;
  std::size_t pages;
  [[nodiscard]] std::size_t touched() const { return pages - pages / 8; }  // behind it nobody ever wrote
  [[nodiscard]] std::uint64_t* page(std::size_t i) const { return start + i * kWords; }
};

std::string directory;

std::uint64_t word(std::size_t page, std::size_t i, std::uint64_t who) {
  return (page + 1) * 0x9e3779b97f4a7c15U + i * 0x100000001b3U + who;
}

void fill(std::uint64_t* page, std::size_t number, std::uint64_t who) {
  for (std::size_t i = 0; i < kWords; ++i) page[i] = word(number, i, who);
}

bool shows(const volatile std::uint64_t* page, std::size_t number, std::uint64_t who) {
  for (std::size_t i = 0; i < kWords; ++i) {
    if (page[i] != word(number, i, who)) return false;
  }
  return true;
}

bool zero(const volatile std::uint64_t* page) {
  for (std::size_t i = 0; i < kWords; ++i) {
    if (page[i] != 0) return false;
  }
  return true;
}

void say(const char* file, const std::string& line) {
  const int fd = ::open((directory + "/" + file).c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  if (fd < 0 || ::write(fd, line.data(), line.size()) != static_cast<ssize_t>(line.size())) ::_exit(3);
  ::close(fd);
}

void tell(std::size_t wrong, const char* who) {
  say("result",
      wrong == 0 ? std::string(who) + " right\n" : std::string(who) + " " + std::to_string(wrong) + " wrong\n");
}

/// Pages of [from, to) that are not as they should be: written by `who` up to `own`, by the parent behind it.
std::size_t wrong_pages(const Memory& memory, std::size_t from, std::size_t to, std::size_t own, std::uint64_t who) {
  std::size_t wrong = 0;
  for (std::size_t i = from; i < to; ++i) {
    const bool right = i >= memory.touched() ? zero(memory.page(i)) : shows(memory.page(i), i, i < own ? who : 0);
    wrong += right ? 0 : 1;
  }
  return wrong;
}

void wait_for_signal() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR1);
  int number = 0;
  ::sigwait(&set, &number);
}

[[noreturn]] void child(const Memory& memory, std::uint64_t who) {
  const std::size_t own = memory.touched() / 4;
  for (std::size_t i = 0; i < own; ++i) fill(memory.page(i), i, who);
  say("ready", "child\n");
  for (;;) {
    wait_for_signal();
    tell(wrong_pages(memory, 0, memory.pages, own, who), "child");
  }
}

void change(const Memory& memory) {
  const std::size_t eighth = memory.pages / 8;
  auto* const moved = static_cast<std::uint64_t*>(
      ::mmap(nullptr, eighth * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  // From back to front, so that the fill has not come by yet.
  bool done =
      ::mremap(memory.page(5 * eighth), eighth * kPage, eighth * kPage, MREMAP_MAYMOVE | MREMAP_FIXED, moved) == moved;
  done = done && ::munmap(memory.page(4 * eighth), eighth * kPage) == 0;
  done = done && ::madvise(memory.page(3 * eighth), eighth * kPage, MADV_DONTNEED) == 0;
  std::size_t wrong = done ? 0 : memory.pages;
  wrong += wrong_pages(memory, 0, 3 * eighth, 0, 0) + wrong_pages(memory, 6 * eighth, memory.pages, 0, 0);
  for (std::size_t i = 0; i < eighth; ++i) {
    wrong += zero(memory.page(3 * eighth + i)) ? 0 : 1;
    wrong += shows(moved + i * kWords, 5 * eighth + i, 0) ? 0 : 1;
  }
  // What is mapped anew where something was is nobody's but the kernel's.
  auto* const anew = static_cast<std::uint64_t*>(::mmap(memory.page(4 * eighth), eighth * kPage, PROT_READ | PROT_WRITE,
                                                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
  for (std::size_t i = 0; i < eighth; ++i) wrong += zero(anew + i * kWords) ? 0 : 1;
  tell(wrong, "changes");
}

/// Makes many mappings of one, and touches nothing. What is there is looked at the next time.
void split(const Memory& memory) {
  static bool is_split = false;
  std::size_t wrong = 0;
  if (is_split) {
    wrong = wrong_pages(memory, 0, memory.pages, 0, 0);
  } else {
    constexpr std::size_t kMost = 20'000;  // the kernel's limit is 65,530 mappings
    const std::size_t step = std::max<std::size_t>(3, memory.pages / kMost);
    for (std::size_t i = 0; i < memory.pages; i += step)
      wrong += ::mprotect(memory.page(i), kPage, PROT_READ) == 0 ? 0 : 1;
    is_split = true;
  }
  tell(wrong, "splits");
}

void fork_and_check(const Memory& memory) {
  const std::size_t own = memory.touched() / 8;
  const pid_t pid = ::fork();
  if (pid == 0) {
    for (std::size_t i = memory.touched(); i-- > memory.touched() - own;) fill(memory.page(i), i, 7);
    std::size_t wrong = wrong_pages(memory, 0, memory.touched() - own, 0, 0);
    for (std::size_t i = memory.touched() - own; i < memory.touched(); ++i)
      wrong += shows(memory.page(i), i, 7) ? 0 : 1;
    tell(wrong, "child");
    ::_exit(0);
  }
  tell(wrong_pages(memory, 0, memory.pages, 0, 0), "parent");
  ::waitpid(pid, nullptr, 0);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  const std::string what = argv[1];
  directory = argv[3];
  ::close_range(3, ~0U, 0);
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR1);
  ::sigprocmask(SIG_BLOCK, &set, nullptr);
  const std::size_t pages = std::strtoul(argv[2], nullptr, 10) << (20U - 12U);
  void* const start = ::mmap(nullptr, pages * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (start == MAP_FAILED) return 1;
  const Memory memory{.start = static_cast<std::uint64_t*>(start), .pages = pages};
  for (std::size_t i = 0; i < memory.touched(); ++i) fill(memory.page(i), i, 0);
  pid_t children[2] = {0, 0};
  if (what == "tree") {
    for (unsigned i = 0; i < 2; ++i) {
      children[i] = ::fork();
      if (children[i] == 0) child(memory, i + 1);
    }
    if (::fork() == 0) ::_exit(5);  // nobody waits for it
  }
  say("ready", "parent\n");
  for (;;) {
    wait_for_signal();
    if (what == "changes") {
      change(memory);
    } else if (what == "splits") {
      split(memory);
    } else if (what == "forks") {
      fork_and_check(memory);
    } else {
      for (const pid_t pid : children) {
        if (pid != 0) ::kill(pid, SIGUSR1);
      }
      tell(wrong_pages(memory, 0, memory.pages, 0, 0), "parent");
    }
  }
}
