// More data than memory: a file of 512 MiB with a quarter of it resident, by uffda with a budget and by plain mmap
// under MADV_RANDOM in a memory cgroup. Uffda reads past the page cache, so that nobody has a second copy. Each way
// does the same random touches; the first of them, unmeasured, fill what may be resident.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <random>
#include <thread>

#include "common/bench.h"
#include "common/uffda_memory.h"

namespace {

using namespace bench;

constexpr std::size_t kBytes = std::size_t{512} << 20U;
constexpr std::size_t kBudget = kBytes / 4;
constexpr std::size_t kPages = kBytes / kPage;
/// Of a process beside the data.
constexpr std::size_t kOwn = std::size_t{48} << 20U;

struct Work {
  const char* name;
  unsigned threads;
  bool zipf;
  bool writes;
  Target target;
};

/// The pages that one thread touches, in order.
std::vector<std::uint32_t> trace(const Work& work, std::size_t touches, unsigned thread) {
  std::mt19937_64 random(thread + 1);
  std::vector<std::uint32_t> pages(touches);
  if (!work.zipf) {
    for (std::uint32_t& page : pages) page = static_cast<std::uint32_t>(random() % kPages);
    return pages;
  }
  // Zipf with exponent 0.99; the popular pages lie anywhere.
  static const std::vector<double> kSums = [] {
    std::vector<double> sums(kPages);
    double sum = 0;
    for (std::size_t i = 0; i < kPages; ++i) sums[i] = sum += std::pow(static_cast<double>(i + 1), -0.99);
    return sums;
  }();
  static const std::vector<std::uint32_t> kPlaces = shuffled(kPages);
  std::uniform_real_distribution<double> anywhere(0, kSums.back());
  for (std::uint32_t& page : pages) {
    const auto rank = std::ranges::lower_bound(kSums, anywhere(random)) - kSums.begin();
    page = kPlaces[static_cast<std::size_t>(rank)];
  }
  return pages;
}

/// Touches a second, of all threads together.
double run(const Work& work, std::byte* data, std::size_t warm, std::size_t measured,
           const std::function<void()>& store) {
  std::vector<std::vector<std::uint32_t>> traces;
  for (unsigned t = 0; t < work.threads; ++t) traces.push_back(trace(work, warm + measured, t));
  const auto touch_all = [&](std::size_t from, std::size_t to) {
    std::vector<std::thread> threads;
    for (unsigned t = 0; t < work.threads; ++t) {
      threads.emplace_back([&, t] {
        for (std::size_t i = from; i < to; ++i) {
          volatile std::byte* const at = data + traces[t][i] * kPage + t * 8;
          if (work.writes) {
            *at = static_cast<std::byte>(i);
          } else {
            [[maybe_unused]] const std::byte read = *at;
          }
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
  };
  touch_all(0, warm);
  const std::int64_t start = now_ns();
  touch_all(warm, warm + measured);
  if (work.writes) store();
  return static_cast<double>(work.threads * measured) * 1e9 / static_cast<double>(now_ns() - start);
}

void drop_cache(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  check(fd >= 0, path);
  ::fdatasync(fd);
  ::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
  ::close(fd);
}

/// A memory cgroup (version 1 or 2) for children of this process.
class MemoryGroup {
 public:
  MemoryGroup() {
    const bool v1 = std::filesystem::exists("/sys/fs/cgroup/memory/memory.limit_in_bytes");
    path_ = std::string(v1 ? "/sys/fs/cgroup/memory" : "/sys/fs/cgroup") + "/uffda-bench-" + std::to_string(::getpid());
    std::error_code error;
    std::filesystem::create_directory(path_, error);
    made_ = !error && write(v1 ? "memory.limit_in_bytes" : "memory.max", std::to_string(kBudget + kOwn));
  }
  MemoryGroup(const MemoryGroup&) = delete;
  MemoryGroup& operator=(const MemoryGroup&) = delete;
  ~MemoryGroup() { ::rmdir(path_.c_str()); }
  [[nodiscard]] bool made() const { return made_; }
  /// What a child of this process, in the group, gives.
  double in_child(const std::function<double()>& measure) const {
    std::array<int, 2> pipe{};
    check(::pipe(pipe.data()) == 0, "pipe");
    const pid_t child = ::fork();
    check(child >= 0, "fork");
    if (child == 0) {
      check(write("cgroup.procs", std::to_string(::getpid())), "entering the memory cgroup");
      const double result = measure();
      check(::write(pipe[1], &result, sizeof result) == sizeof result, "pipe");
      ::_exit(0);
    }
    ::close(pipe[1]);
    double result = 0;
    const bool got = ::read(pipe[0], &result, sizeof result) == sizeof result;
    ::close(pipe[0]);
    int status = 0;
    ::waitpid(child, &status, 0);
    check(got, "a child in the memory cgroup");
    return result;
  }

 private:
  bool write(const std::string& name, const std::string& text) const {
    std::ofstream file(path_ + "/" + name);
    file << text << std::flush;
    return file.good();
  }
  std::string path_;
  bool made_ = false;
};

double by_mmap(const Work& work, const std::string& path, std::size_t warm, std::size_t measured) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  check(fd >= 0, path);
  void* const memory = ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  check(memory != MAP_FAILED, "mmap");
  check(::madvise(memory, kBytes, MADV_RANDOM) == 0, "MADV_RANDOM");
  return run(work, static_cast<std::byte*>(memory), warm, measured,
             [&] { check(::msync(memory, kBytes, MS_SYNC) == 0, "msync"); });
}

double by_uffda(const Work& work, const std::string& path, std::size_t warm, std::size_t measured) {
  uffda::Engine engine = must(uffda::Engine::create({.budget = {kBudget}}));
  const uffda::Access access = work.writes ? uffda::Access::written_back : uffda::Access::read_only;
  uffda::Memory memory = must(engine.map("file:" + path + "?direct=on", {.access = access}));
  auto* const data = const_cast<std::byte*>(memory.bytes().data());
  return run(work, data, warm, measured, [&] {
    const auto stored = memory.sync(uffda::Deadline::after(std::chrono::minutes(2)));
    if (!stored) die(stored.error().message());
  });
}

constexpr std::array kWorks{
    Work{"uniform reads, 8 threads", 8, false, false, {.bound = Bound::at_least, .ratio = 1}},
    Work{"uniform reads, 1 thread", 1, false, false, {.bound = Bound::at_least, .ratio = 0.75}},
    Work{"Zipf 0.99 reads, 8 threads", 8, true, false, {.bound = Bound::at_least, .ratio = 1}},
    Work{"random writes and a sync, 8 threads", 8, false, true, {.bound = Bound::at_least, .ratio = 1}},
};

}  // namespace

int main(int argc, char** argv) {
  Report report("budget", argc, argv);
  const std::string path = report.option("dir", "build/bench") + "/budget.data";
  {
    std::ofstream file(path, std::ios::binary);
    std::vector<char> bytes(1 << 20);
    for (std::size_t at = 0; at < kBytes; at += bytes.size()) {
      std::mt19937_64 random(at);
      for (std::size_t i = 0; i + 8 <= bytes.size(); i += 8) {
        const std::uint64_t word = random();
        std::memcpy(&bytes[i], &word, sizeof word);
      }
      file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    }
  }
  const MemoryGroup group;
  if (!group.made()) {
    report.skip("more data than memory", "a memory cgroup cannot be made here: that needs root");
    report.finish();
    return 0;
  }
  const std::size_t rounds = report.quick() ? 1 : 5;
  for (const Work& work : kWorks) {
    Report::progress(work.name);
    const std::size_t measured = 24'000 / work.threads;
    const std::size_t warm = (kBudget / kPage + 8'000) / work.threads;
    std::vector<double> ours;
    std::vector<double> peer;
    for (std::size_t round = 0; round < rounds; ++round) {
      drop_cache(path);
      ours.push_back(group.in_child([&] { return by_uffda(work, path, warm, measured); }));
      drop_cache(path);
      peer.push_back(group.in_child([&] { return by_mmap(work, path, warm, measured); }));
    }
    report.compare_rounds({.name = fmt::format("a quarter resident: {}", work.name),
                           .unit = "touches/s",
                           .peer_name = "mmap MADV_RANDOM, memory cgroup",
                           .target = work.target},
                          ours, peer);
  }
  std::filesystem::remove(path);
  report.finish();
  return 0;
}
