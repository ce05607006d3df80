// What reading through a file: source costs beside the plain system calls: cold and cached, random 4 KiB and
// sequential. Usage: source_file [FILE] [--rounds N] [--cpu N]. FILE is created if it is not there. The reading thread
// is pinned to the CPU, as the threads are that call sources in uffda. All ways take turns in every round; medians over
// rounds.
#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <numeric>
#include <random>
#include <semaphore>
#include <string>
#include <vector>

#include "uffda/page_source.h"

namespace {

using namespace uffda;

constexpr std::uint64_t kFileBytes = std::uint64_t{256} << 20U;
constexpr std::uint64_t kSmall = 4096;
constexpr std::uint64_t kLarge = std::uint64_t{1} << 20U;
constexpr std::size_t kInFlight = 4;
constexpr std::size_t kRandomReads = 2000;

[[noreturn]] void die(const std::string& what) {
  std::fprintf(stderr, "source_file: %s\n", what.c_str());
  std::exit(1);
}

void check(bool ok, const char* what) {
  if (!ok) die(what);
}

void pin(unsigned cpu) {
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  CPU_SET(cpu, &cpus);
  check(::sched_setaffinity(0, sizeof cpus, &cpus) == 0, "no such CPU");
}

/// Fetches with a bounded number in flight, from one thread.
class Client final : public FetchOwner {
 public:
  explicit Client(PageSource& source)
      : source_(source), arena_(static_cast<std::byte*>(std::aligned_alloc(kLarge, kInFlight * kLarge)), &std::free) {
    std::memset(arena_.get(), 1, kInFlight * kLarge);
    source_.set_arena({arena_.get(), kInFlight * kLarge});
  }

  void read(std::uint64_t offset, std::uint64_t length, std::size_t in_flight) {
    const std::size_t slot = next_++ % in_flight;
    done_.at(slot).acquire();
    source_.fetch(FetchTicket(*this, &done_.at(slot), {{offset}, {length}}, {arena_.get() + slot * kLarge, length},
                              Deadline::after(std::chrono::seconds(60))));
  }

  void drain(std::size_t in_flight) {
    for (std::size_t slot = 0; slot < in_flight; ++slot) {
      done_.at(slot).acquire();
      done_.at(slot).release();
    }
  }

 private:
  void fetched(void* request, Result<ByteCount> result) noexcept override {
    check(result.has_value(), "a fetch failed");
    static_cast<std::binary_semaphore*>(request)->release();
  }

  PageSource& source_;
  std::unique_ptr<std::byte, decltype(&std::free)> arena_;
  std::array<std::binary_semaphore, kInFlight> done_{std::binary_semaphore(1), std::binary_semaphore(1),
                                                     std::binary_semaphore(1), std::binary_semaphore(1)};
  std::size_t next_ = 0;
};

struct Bench {
  std::string path;
  int fd = -1;
  cpu_set_t all_cpus{};
  unsigned cpu = 0;
  std::vector<std::uint64_t> random_offsets;
  std::map<std::string, std::vector<double>> results;  // name -> one figure per round

  void drop() const {
    check(::fdatasync(fd) == 0 && ::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) == 0, "dropping the page cache");
  }

  void time(const std::string& name, double units, const std::function<void()>& run) {
    const auto start = std::chrono::steady_clock::now();
    run();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    results[name].push_back(units / took.count());
  }

  void source_round(const std::string& label, const std::string& uri, bool cached) {
    // Opened with all CPUs, so that it may use them; then back to one.
    check(::sched_setaffinity(0, sizeof all_cpus, &all_cpus) == 0, "affinity");
    auto source = open_source(uri);
    pin(cpu);
    if (!source) die(source.error().message());
    Client client(**source);
    if (!cached) drop();
    time("random 4K  " + label, kRandomReads, [&] {
      for (const std::uint64_t offset : random_offsets) {
        client.read(offset, kSmall, 1);
        client.drain(1);
      }
    });
    if (!cached) drop();
    time("seq 1M x4  " + label, kFileBytes / 1e6, [&] {
      for (std::uint64_t offset = 0; offset < kFileBytes; offset += kLarge) client.read(offset, kLarge, kInFlight);
      client.drain(kInFlight);
    });
    if (!cached) drop();
    time("seq 64K x4 " + label, kFileBytes / 1e6, [&] {
      for (std::uint64_t offset = 0; offset < kFileBytes; offset += 65536) client.read(offset, 65536, kInFlight);
      client.drain(kInFlight);
    });
  }

  void plain_round(const std::string& label, bool cached) {
    std::vector<std::byte> buffer(kLarge);
    if (!cached) drop();
    time("random 4K  " + label + "pread", kRandomReads, [&] {
      for (const std::uint64_t offset : random_offsets) {
        check(::pread(fd, buffer.data(), kSmall, static_cast<off_t>(offset)) == static_cast<ssize_t>(kSmall), "pread");
      }
    });
    if (!cached) drop();
    time("seq 1M     " + label + "pread", kFileBytes / 1e6, [&] {
      for (std::uint64_t offset = 0; offset < kFileBytes; offset += kLarge) {
        check(::pread(fd, buffer.data(), kLarge, static_cast<off_t>(offset)) == static_cast<ssize_t>(kLarge), "pread");
      }
    });
    void* const memory = ::mmap(nullptr, kFileBytes, PROT_READ, MAP_SHARED, fd, 0);
    check(memory != MAP_FAILED, "mmap");
    const auto* const bytes = static_cast<const volatile unsigned char*>(memory);
    if (!cached) drop();
    time("seq touch  " + label + "mmap", kFileBytes / 1e6, [&] {
      for (std::uint64_t offset = 0; offset < kFileBytes; offset += kSmall) static_cast<void>(bytes[offset]);
    });
    ::munmap(memory, kFileBytes);
    void* const again = ::mmap(nullptr, kFileBytes, PROT_READ, MAP_SHARED, fd, 0);
    check(again != MAP_FAILED && ::madvise(again, kFileBytes, MADV_RANDOM) == 0, "madvise");
    if (!cached) drop();
    time("random 4K  " + label + "mmap MADV_RANDOM", kRandomReads, [&] {
      for (const std::uint64_t offset : random_offsets)
        static_cast<void>(static_cast<const volatile unsigned char*>(again)[offset]);
    });
    ::munmap(again, kFileBytes);
  }

  void print() {
    std::printf("%-46s %14s %14s\n", "way", "median", "mean us/read");
    for (auto& [name, figures] : results) {
      std::ranges::sort(figures);
      const double median = figures[figures.size() / 2];
      const bool random = name.starts_with("random");
      std::printf("%-46s %9.0f %s", name.c_str(), median, random ? "/s  " : "MB/s");
      if (random) std::printf(" %14.1f", 1e6 / median);
      std::printf("\n");
    }
  }
};

void create(const std::string& path) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  check(fd >= 0, "cannot create the file");
  std::vector<std::uint64_t> block(kLarge / 8);
  std::mt19937_64 random(1);
  for (std::uint64_t done = 0; done < kFileBytes; done += kLarge) {
    std::ranges::generate(block, random);
    check(::write(fd, block.data(), kLarge) == static_cast<ssize_t>(kLarge), "write");
  }
  check(::fsync(fd) == 0 && ::close(fd) == 0, "fsync");
}

}  // namespace

int main(int argc, char** argv) {
  Bench bench;
  bench.path = "/var/tmp/uffda-bench-source.bin";
  int rounds = 5;
  for (int i = 1; i < argc; ++i) {
    if (std::string_view(argv[i]) == "--rounds" && i + 1 < argc) {
      rounds = std::max(1, std::atoi(argv[++i]));
    } else if (std::string_view(argv[i]) == "--cpu" && i + 1 < argc) {
      bench.cpu = static_cast<unsigned>(std::atoi(argv[++i]));
    } else {
      bench.path = argv[i];
    }
  }
  check(::sched_getaffinity(0, sizeof bench.all_cpus, &bench.all_cpus) == 0, "affinity");
  pin(bench.cpu);
  struct stat status{};
  if (::stat(bench.path.c_str(), &status) != 0) create(bench.path);
  bench.fd = ::open(bench.path.c_str(), O_RDONLY | O_CLOEXEC);
  check(bench.fd >= 0 && ::fstat(bench.fd, &status) == 0, "cannot open the file");
  check(static_cast<std::uint64_t>(status.st_size) >= kFileBytes, "the file is smaller than 256 MiB");

  std::mt19937_64 random(7);
  std::vector<std::uint64_t> pages(kFileBytes / kSmall);
  std::iota(pages.begin(), pages.end(), 0);
  std::ranges::shuffle(pages, random);
  for (std::size_t i = 0; i < kRandomReads; ++i) bench.random_offsets.push_back(pages[i] * kSmall);

  const std::string uri = "file:" + bench.path;
  for (int round = 0; round < rounds; ++round) {
    bench.plain_round("cold   ", false);
    bench.source_round("cold   file:", uri, false);
    bench.source_round("cold   file: io=threads", uri + "?io=threads", false);
    bench.source_round("cold   file: direct=on", uri + "?direct=on", false);
    bench.drop();
    std::vector<std::byte> all(kFileBytes);
    check(::pread(bench.fd, all.data(), kFileBytes, 0) == static_cast<ssize_t>(kFileBytes), "pread");
    bench.plain_round("cached ", true);
    bench.source_round("cached file:", uri, true);
    bench.source_round("cached file: io=threads", uri + "?io=threads", true);
  }
  bench.print();
}
