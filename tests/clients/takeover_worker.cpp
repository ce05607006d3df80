// A program that must not notice that its server is killed: takeover_worker PATH STORED OFFSET PROGRESS.
//
// Threads write, read, store (msync, fsync) and check pages of PATH that are theirs, through one shared mapping and
// through system calls; another one maps, moves and unmaps a second view and forks children that look at everything.
// What msync or fsync said is stored has to be in STORED, where the source has it from byte OFFSET on. PROGRESS counts
// steps, one word a thread; the program ends when its word 15 is not 0.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

namespace {

constexpr std::size_t kPage = 4096;
constexpr std::size_t kWords = kPage / 8;
constexpr unsigned kWriters = 4;
constexpr unsigned kStop = 15;

int g_fd = -1;
int g_stored = -1;
off_t g_offset = 0;
std::size_t g_pages = 0;
volatile std::uint64_t* g_memory = nullptr;
std::atomic<std::uint64_t>* g_progress = nullptr;

[[noreturn]] void die(const char* what, std::size_t page, std::uint64_t wanted, std::uint64_t got) {
  std::printf("WRONG %s: page %zu: wanted %llx, got %llx (errno %s)\n", what, page, (unsigned long long)wanted,
              (unsigned long long)got, std::strerror(errno));
  std::fflush(stdout);
  std::_Exit(1);
}

bool stopped() { return g_progress[kStop].load() != 0; }

/// One that a page was given before anything is written to it is its own number.
std::uint64_t word_of(std::size_t page, std::uint64_t version) { return version << 32U | page; }

void check(const char* what, const volatile std::uint64_t* words, std::size_t page, std::uint64_t version) {
  const std::uint64_t wanted = word_of(page, version);
  for (std::size_t i = 0; i < kWords; ++i) {
    if (words[i] != wanted) die(what, page, wanted, words[i]);
  }
}

class Writer {
 public:
  Writer(unsigned number, unsigned seed) : number_(number), random_(seed), versions_(g_pages), buffer_(kWords) {}

  void run() {
    while (!stopped()) {
      step();
      g_progress[number_].fetch_add(1);
    }
    for (std::size_t page = number_; page < g_pages; page += kWriters) check("end", words(page), page, versions_[page]);
  }

 private:
  static volatile std::uint64_t* words(std::size_t page) { return g_memory + page * kWords; }

  void step() {
    const std::size_t page = random_() % (g_pages / kWriters) * kWriters + number_;
    const unsigned what = static_cast<unsigned>(random_() % 16);
    if (what < 6) return check("mapped", words(page), page, versions_[page]);
    if (what < 8) return read(page);
    if (what < 14) write(page, what >= 12);
    if (what >= 11) store(page, what == 15);
  }
  void read(std::size_t page) {
    if (::pread(g_fd, buffer_.data(), kPage, (off_t)(page * kPage)) != (ssize_t)kPage) die("pread", page, 0, 0);
    check("pread", buffer_.data(), page, versions_[page]);
  }
  void write(std::size_t page, bool by_call) {
    const std::uint64_t word = word_of(page, ++versions_[page]);
    if (by_call) {
      for (std::uint64_t& one : buffer_) one = word;
      if (::pwrite(g_fd, buffer_.data(), kPage, (off_t)(page * kPage)) != (ssize_t)kPage) die("pwrite", page, 0, 0);
    } else {
      for (std::size_t i = 0; i < kWords; ++i) words(page)[i] = word;
    }
  }
  void store(std::size_t page, bool all) {
    void* const start = const_cast<std::uint64_t*>(words(page));
    if (all ? ::fsync(g_fd) != 0 : ::msync(start, kPage, MS_SYNC) != 0) die("sync", page, 0, 0);
    if (versions_[page] == 0) return;
    if (::pread(g_stored, buffer_.data(), kPage, g_offset + (off_t)(page * kPage)) != (ssize_t)kPage)
      die("stored", page, 0, 0);
    check("stored", buffer_.data(), page, versions_[page]);
  }

  unsigned number_;
  std::mt19937_64 random_;
  std::vector<std::uint64_t> versions_;
  std::vector<std::uint64_t> buffer_;
};

/// Whoever looks at another's page sees a page of that number, of some version that is not torn within a word.
void look(const char* what, const volatile std::uint64_t* view, std::size_t first, std::size_t pages,
          std::mt19937_64& random) {
  for (int i = 0; i < 16; ++i) {
    const std::size_t page = random() % pages;
    const std::uint64_t word = view[page * kWords + random() % kWords];
    if ((word & UINT32_MAX) != first + page) die(what, first + page, first + page, word);
  }
}

void look_as_child(std::mt19937_64& random) {
  const pid_t child = ::fork();
  if (child == 0) {
    look("child", g_memory, 0, g_pages, random);
    std::_Exit(0);
  }
  int status = -1;
  if (child < 0 || ::waitpid(child, &status, 0) != child || status != 0) die("fork", 0, 0, (std::uint64_t)status);
}

void change_mappings(unsigned number, unsigned seed) {
  std::mt19937_64 random(seed);
  while (!stopped()) {
    const std::size_t first = random() % (g_pages / 2);
    const std::size_t pages = g_pages / 2;
    const int flags = random() % 2 == 0 ? MAP_SHARED : MAP_PRIVATE;
    void* view = ::mmap(nullptr, pages * kPage, PROT_READ, flags, g_fd, (off_t)(first * kPage));
    if (view == MAP_FAILED) die("mmap", first, 0, 0);
    look("view", (std::uint64_t*)view, first, pages, random);
    void* const place = ::mmap(nullptr, pages * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    view = ::mremap(view, pages * kPage, pages * kPage, MREMAP_MAYMOVE | MREMAP_FIXED, place);
    if (view == MAP_FAILED) die("mremap", first, 0, 0);
    look("moved view", (std::uint64_t*)view, first, pages, random);
    ::munmap(view, pages / 2 * kPage);
    look("half view", (std::uint64_t*)view + pages / 2 * kWords, first + pages / 2, pages - pages / 2, random);
    if (random() % 4 == 0) look_as_child(random);
    ::munmap(view, pages * kPage);
    g_progress[number].fetch_add(1);
  }
}

}  // namespace

int main(int count, char** words) {
  if (count != 5) return 2;
  g_fd = ::open(words[1], O_RDWR);
  g_stored = ::open(words[2], O_RDONLY);
  g_offset = std::atol(words[3]);
  const int progress = ::open(words[4], O_RDWR);
  struct stat status{};
  if (g_fd < 0 || g_stored < 0 || progress < 0 || ::fstat(g_fd, &status) != 0) return 2;
  g_pages = (std::size_t)status.st_size / kPage;
  g_memory = (std::uint64_t*)::mmap(nullptr, g_pages * kPage, PROT_READ | PROT_WRITE, MAP_SHARED, g_fd, 0);
  g_progress = (std::atomic<std::uint64_t>*)::mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_SHARED, progress, 0);
  if (g_memory == MAP_FAILED || g_progress == MAP_FAILED) return 2;
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < kWriters; ++i) threads.emplace_back([i] { Writer(i, 1000 + i).run(); });
  threads.emplace_back(change_mappings, kWriters, 2000U);
  for (std::thread& thread : threads) thread.join();
  std::printf("right\n");
  return 0;
}
