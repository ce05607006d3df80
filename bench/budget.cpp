// More data than memory: a file of 512 MiB with a quarter of it resident, by uffda with a budget and by plain mmap
// under MADV_RANDOM in a memory cgroup. Uffda reads past the page cache, so that nobody has a second copy. Each way
// does the same random touches; the first of them, unmeasured, fill what may be resident. Beside both, what a bare loop
// of uffda's system calls does: what userfaultfd costs on this machine, whoever uses it.
// Beside the speed: how often a touch found its page, compared with what LRU and FIFO make of the same touches; and the
// most that was resident, as the kernel counts it, looked at every millisecond.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <list>
#include <optional>
#include <random>
#include <string_view>
#include <thread>

#include "common/bench.h"
#include "common/eviction_floor.h"
#include "common/uffda_memory.h"

namespace {

using namespace bench;

constexpr std::size_t kBytes = std::size_t{512} << 20U;
constexpr std::size_t kBudget = kBytes / 4;
constexpr std::size_t kPages = kBytes / kPage;
/// Of a process beside the data.
constexpr std::size_t kOwn = std::size_t{48} << 20U;

/// Touches that fill what may be resident; few of Zipf's are of new pages.
constexpr std::size_t kWarm = kBudget / kPage + 8'000;
constexpr std::size_t kWarmZipf = 400'000;

struct Work {
  const char* name;
  unsigned threads;
  bool zipf;
  bool writes;
  uffda::HandlerPolicy handlers;
  Target target;
};

struct Outcome {
  double touches_per_second = 0;
  double cpu_us_per_touch = 0;
  double hit_percent = 0;
  double most_resident = 0;  ///< bytes
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

std::vector<std::vector<std::uint32_t>> traces_of(const Work& work, std::size_t touches) {
  std::vector<std::vector<std::uint32_t>> traces;
  for (unsigned t = 0; t < work.threads; ++t) traces.push_back(trace(work, touches, t));
  return traces;
}

double cpu_us() {
  rusage used{};
  ::getrusage(RUSAGE_SELF, &used);
  const auto us = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) * 1e6 + static_cast<double>(time.tv_usec);
  };
  return us(used.ru_utime) + us(used.ru_stime);
}

/// What is done around the measured touches.
struct Hooks {
  std::function<void()> measured_begins = [] {};
  std::function<void()> store = [] {};
};

Outcome run(const Work& work, std::byte* data, std::size_t warm, std::size_t measured, const Hooks& hooks) {
  const std::vector<std::vector<std::uint32_t>> traces = traces_of(work, warm + measured);
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
  hooks.measured_begins();
  const std::int64_t start = now_ns();
  const double cpu = cpu_us();
  touch_all(warm, warm + measured);
  if (work.writes) hooks.store();
  const auto touches = static_cast<double>(work.threads * measured);
  return {.touches_per_second = touches * 1e9 / static_cast<double>(now_ns() - start),
          .cpu_us_per_touch = (cpu_us() - cpu) / touches};
}

/// Hits in percent of the measured touches, all threads in turns, where a quarter is resident.
enum class Order : std::uint8_t { lru, fifo };
double hits_of(Order order, const std::vector<std::vector<std::uint32_t>>& traces, std::size_t warm) {
  std::list<std::uint32_t> cached;  // the next to go at the end
  std::vector<std::list<std::uint32_t>::iterator> where(kPages, cached.end());
  std::size_t hits = 0;
  for (std::size_t i = 0; i < traces.front().size(); ++i) {
    for (const auto& trace : traces) {
      auto& at = where[trace[i]];
      const bool hit = at != cached.end();
      if (hit && i >= warm) ++hits;
      if (hit && order == Order::lru) cached.splice(cached.begin(), cached, at);
      if (hit) continue;
      if (cached.size() == kBudget / kPage) {
        where[cached.back()] = cached.end();
        cached.pop_back();
      }
      cached.push_front(trace[i]);
      at = cached.begin();
    }
  }
  return 100.0 * static_cast<double>(hits) / static_cast<double>(traces.size() * (traces.front().size() - warm));
}

/// Looks every millisecond how much of this process's memory files is there.
class ResidentSampler {
 public:
  ResidentSampler() {
    for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
      std::error_code error;
      const std::string target = std::filesystem::read_symlink(entry.path(), error).string();
      if (target.starts_with("/memfd:uffda:")) fds_.push_back(std::stoi(entry.path().filename().string()));
    }
    check(fds_.size() == 1, "finding the page cache of the mapping");
    thread_ = std::jthread([this](const std::stop_token& stop) {
      while (!stop.stop_requested()) {
        struct stat status{};
        check(::fstat(fds_.front(), &status) == 0, "fstat");
        most_ = std::max(most_, static_cast<double>(status.st_blocks) * 512);
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
    });
  }
  double stop() {
    thread_.request_stop();
    thread_.join();
    return most_;
  }

 private:
  std::vector<int> fds_;
  double most_ = 0;
  std::jthread thread_;
};

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
  Outcome in_child(const std::function<Outcome()>& measure) const {
    std::array<int, 2> pipe{};
    check(::pipe(pipe.data()) == 0, "pipe");
    const pid_t child = ::fork();
    check(child >= 0, "fork");
    if (child == 0) {
      check(write("cgroup.procs", std::to_string(::getpid())), "entering the memory cgroup");
      const Outcome result = measure();
      check(::write(pipe[1], &result, sizeof result) == sizeof result, "pipe");
      ::_exit(0);
    }
    ::close(pipe[1]);
    Outcome result;
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

Outcome by_mmap(const Work& work, const std::string& path, std::size_t warm, std::size_t measured) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  check(fd >= 0, path);
  void* const memory = ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  check(memory != MAP_FAILED, "mmap");
  check(::madvise(memory, kBytes, MADV_RANDOM) == 0, "MADV_RANDOM");
  return run(work, static_cast<std::byte*>(memory), warm, measured,
             {.store = [&] { check(::msync(memory, kBytes, MS_SYNC) == 0, "msync"); }});
}

Outcome by_floor(const Work& work, const std::string& path, std::size_t warm, std::size_t measured) {
  using Handler = EvictionFloor::Handler;
  const Handler handler = work.handlers == uffda::HandlerPolicy::in_thread ? Handler::in_thread : Handler::threads;
  // Ends with this process: its handlers wait for faults.
  auto* const floor = new EvictionFloor(path, kBytes, kBudget, handler, work.threads);
  return run(work, floor->data(), warm, measured, {});
}

Outcome by_uffda(const Work& work, const std::string& path, std::size_t warm, std::size_t measured) {
  uffda::Engine engine = must(uffda::Engine::create({.handlers = work.handlers, .budget = {kBudget}}));
  const uffda::Access access = work.writes ? uffda::Access::written_back : uffda::Access::read_only;
  uffda::Memory memory = must(engine.map("file:" + path + "?direct=on", {.access = access}));
  auto* const data = const_cast<std::byte*>(memory.bytes().data());
  ResidentSampler resident;
  std::uint64_t fetched = 0;
  const auto store = [&] {
    const auto stored = memory.sync(uffda::Deadline::after(std::chrono::minutes(2)));
    if (!stored) die(stored.error().message());
  };
  Outcome outcome = run(work, data, warm, measured,
                        {.measured_begins = [&] { fetched = engine.report().bytes_fetched.value; }, .store = store});
  fetched = engine.report().bytes_fetched.value - fetched;
  outcome.hit_percent =
      100 - 100.0 * static_cast<double>(fetched / kPage) / static_cast<double>(work.threads * measured);
  outcome.most_resident = resident.stop();
  return outcome;
}

using uffda::HandlerPolicy;
/// Of the bare loop's speed.
constexpr double kFloorShare = 0.9;
constexpr Target kAsFast{.bound = Bound::at_least, .ratio = 1};
constexpr std::array kWorks{
    Work{"uniform reads, 8 threads, handler", 8, false, false, HandlerPolicy::per_cpu, kAsFast},
    Work{"uniform reads, 8 threads, inline", 8, false, false, HandlerPolicy::in_thread, kAsFast},
    Work{"uniform reads, 1 thread, handler",
         1,
         false,
         false,
         HandlerPolicy::per_cpu,
         {.bound = Bound::at_least, .ratio = 0.75}},
    Work{"uniform reads, 1 thread, inline",
         1,
         false,
         false,
         HandlerPolicy::in_thread,
         {.bound = Bound::at_least, .ratio = 0.93}},
    Work{"Zipf 0.99 reads, 8 threads, handler", 8, true, false, HandlerPolicy::per_cpu, kAsFast},
    Work{"Zipf 0.99 reads, 8 threads, inline", 8, true, false, HandlerPolicy::in_thread, kAsFast},
    Work{"random writes and a sync, 8 threads, handler", 8, false, true, HandlerPolicy::per_cpu, kAsFast},
};

void write_file(const std::string& path) {
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

struct Size {
  std::size_t warm;
  std::size_t measured;
};

void compare_hits(Report& report, const Work& work, Size size, double ours) {
  const auto traces = traces_of(work, size.warm + size.measured);
  const double lru = hits_of(Order::lru, traces, size.warm);
  const double fifo = hits_of(Order::fifo, traces, size.warm);
  constexpr double kPoints = 2;
  const auto line = [&](const char* peer, double hits, std::optional<Target> target) {
    report.compare({.name = fmt::format("a quarter resident: {}: hits", work.name),
                    .unit = "%",
                    .uffda = ours,
                    .peer_name = peer,
                    .peer = hits,
                    .ratio = ours / hits,
                    .target = target});
  };
  line("LRU, same touches", lru, Target{.bound = Bound::at_least, .ratio = (lru - kPoints) / lru});
  line("FIFO, same touches", fifo, std::nullopt);
}

void measure(Report& report, const MemoryGroup& group, const std::string& path, const Work& work, Size size) {
  std::vector<double> ours;
  std::vector<double> peer;
  std::vector<double> floor;
  std::vector<double> hits;
  double most = 0;
  for (std::size_t round = 0; round < (report.quick() ? 1U : 5U); ++round) {
    drop_cache(path);
    const Outcome uffda = group.in_child([&] { return by_uffda(work, path, size.warm, size.measured); });
    drop_cache(path);
    const Outcome mmap = group.in_child([&] { return by_mmap(work, path, size.warm, size.measured); });
    ours.push_back(uffda.touches_per_second);
    peer.push_back(mmap.touches_per_second);
    hits.push_back(uffda.hit_percent);
    most = std::max(most, uffda.most_resident);
    Report::progress(
        fmt::format("  {:.0f} and {:.0f} touches a second, {:.1f} and {:.1f} us of CPU each, {:.1f} % hits",
                    ours.back(), peer.back(), uffda.cpu_us_per_touch, mmap.cpu_us_per_touch, hits.back()));
    if (work.writes) continue;  // the floor knows no dirty pages
    drop_cache(path);
    const Outcome bare = group.in_child([&] { return by_floor(work, path, size.warm, size.measured); });
    floor.push_back(bare.touches_per_second);
    Report::progress(fmt::format("  bare loop: {:.0f} touches a second, {:.1f} us of CPU each", floor.back(),
                                 bare.cpu_us_per_touch));
  }
  report.compare_rounds({.name = fmt::format("a quarter resident: {}", work.name),
                         .unit = "touches/s",
                         .peer_name = "mmap MADV_RANDOM, memory cgroup",
                         .target = work.target},
                        ours, peer);
  if (!floor.empty()) {
    report.compare_rounds({.name = fmt::format("a quarter resident: {}", work.name),
                           .unit = "touches/s",
                           .peer_name = "a bare loop, same system calls",
                           .target = Target{.bound = Bound::at_least, .ratio = kFloorShare}},
                          ours, floor);
  }
  if (work.zipf) compare_hits(report, work, size, median(hits));
  report.compare({.name = fmt::format("a quarter resident: {}: the most at a sample", work.name),
                  .unit = "MiB",
                  .uffda = most / (1 << 20),
                  .peer_name = "its budget",
                  .peer = static_cast<double>(kBudget >> 20U),
                  .ratio = most / static_cast<double>(kBudget),
                  .target = Target{.bound = Bound::at_most, .ratio = 1}});
}

}  // namespace

int main(int argc, char** argv) {
  Report report("budget", argc, argv);
  const std::string path = report.option("dir", "build/bench") + "/budget.data";
  const std::string only = report.option("only", "");
  const std::size_t touches = std::stoul(report.option("touches", "24000"));
  const MemoryGroup group;
  if (!group.made()) {
    report.skip("more data than memory", "a memory cgroup cannot be made here: that needs root");
    report.finish();
    return 0;
  }
  write_file(path);
  for (const Work& work : kWorks) {
    if (!std::string_view(work.name).starts_with(only)) continue;
    Report::progress(work.name);
    measure(report, group, path, work,
            {.warm = (work.zipf ? kWarmZipf : kWarm) / work.threads, .measured = touches / work.threads});
  }
  std::filesystem::remove(path);
  report.finish();
  return 0;
}
