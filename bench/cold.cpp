// A real file as memory: cold (dropped from the page cache before each run) and cached, sequential and random, by
// uffda, by plain mmap and through a FUSE mount. Random touches of different ways are of different pages, so that no
// way finds what another one has read.
#include <fmt/format.h>

#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <vector>

#include "common/bench.h"
#include "common/copy_floor.h"
#include "common/floor.h"
#include "common/real_file.h"
#include "common/uffda_memory.h"

namespace {

using namespace bench;
using uffda::HandlerPolicy;
using Advice = PlainMapping::Advice;

constexpr std::size_t kFile = std::size_t{2} << 30U;
constexpr std::size_t kScanned = std::size_t{1} << 30U;   // of it, by one sequential run
constexpr std::size_t kCached = std::size_t{256} << 20U;  // of it, in the cached part
constexpr std::size_t kWarm = std::size_t{5} << 29U;      // of memory, before each round: two copies and more
constexpr std::size_t kColdTouches = 1000;
constexpr std::size_t kCachedTouches = 4000;

/// The file as memory, until it is closed.
struct Opened {
  const std::byte* data = nullptr;
  std::shared_ptr<void> keep{};
  std::function<void()> enter = [] {};
  std::function<void()> leave = [] {};
};

struct Way {
  std::string name;
  std::function<Opened()> open;
  std::function<double()> throughput{};  ///< measures by itself, in MB/s
  std::vector<double> figures{};         ///< one for each round
  std::vector<double> touches_us{};
};
using Ways = std::vector<Way>;

struct Peers {
  const RealFile& file;
  const NbdFuse* fuse;  ///< null if there is none
  int cpu;              ///< where the toucher is
};

Way plain(const Peers& peers, const std::string& name, Advice advice) {
  return {.name = name, .open = [&peers, advice] {
            const auto mapping = std::make_shared<PlainMapping>(peers.file.path(), kFile, advice);
            return Opened{.data = mapping->data(), .keep = mapping};
          }};
}

Way through_fuse(const Peers& peers, Advice advice) {
  return {.name = "nbdfuse", .open = [&peers, advice] {
            const auto mapping = std::make_shared<PlainMapping>(peers.fuse->path(), kFile, advice);
            return Opened{.data = mapping->data(), .keep = mapping};
          }};
}

Way through_uffda(const Peers& peers, const std::string& name, HandlerPolicy policy, const std::string& query = "") {
  return {.name = name, .open = [&peers, policy, query] {
            auto source = must(uffda::open_source("file:" + peers.file.path() + query));
            const auto memory = std::make_shared<UffdaMemory>(UffdaMemory::of(std::move(source), policy));
            return Opened{.data = memory->memory.bytes().data(), .keep = memory};
          }};
}

/// What a bare handler with pread and pwrite does.
Way bare(const Peers& peers, const std::string& name, FloorHandler handler) {
  return {.name = name, .open = [&peers, handler] {
            const auto floor = std::make_shared<Floor>(Floor::Setup{
                .bytes = kFile, .handler = handler, .toucher_cpu = peers.cpu, .source_fd = peers.file.fd()});
            return Opened{.data = floor->data(),
                          .keep = floor,
                          .enter = [floor] { floor->enter(); },
                          .leave = [floor] { floor->leave(); }};
          }};
}

/// What two bare copies cost, with all CPUs at it.
Way bare_copy(const Peers& peers) {
  return {.name = "floor, two copies",
          .open = [] { return Opened{}; },
          .throughput = [&peers] { return copy_throughput(peers.file.path(), kScanned, usable_cpus().size()); }};
}

void touch(const std::byte* page) {
  [[maybe_unused]] const volatile std::byte touched = *const_cast<const volatile std::byte*>(page);
}

/// MB/s of one touch for each page of [0, bytes).
double scan(const Opened& opened, std::size_t bytes) {
  const std::int64_t start = now_ns();
  for (std::size_t at = 0; at < bytes; at += kPage) touch(opened.data + at);
  return static_cast<double>(bytes) / static_cast<double>(now_ns() - start) * 1e3;
}

std::vector<double> touch_us(const Opened& opened, const std::uint32_t* pages, std::size_t count) {
  std::vector<double> took_us(count);
  opened.enter();
  for (std::size_t i = 0; i < count; ++i) {
    const std::int64_t start = now_ns();
    touch(opened.data + pages[i] * kPage);
    took_us[i] = static_cast<double>(now_ns() - start) / 1e3;
  }
  opened.leave();
  return took_us;
}

double mean(const std::vector<double>& samples) {
  return std::accumulate(samples.begin(), samples.end(), 0.0) / static_cast<double>(samples.size());
}

class RealFileBench {
 public:
  RealFileBench(Report& report, const Peers& peers) : report_(report), peers_(peers), order_(shuffled(kFile / kPage)) {}

  void cold_sequential() {
    Ways ways{through_uffda(peers_, "per_cpu", HandlerPolicy::per_cpu), plain(peers_, "mmap", Advice::none),
              through_uffda(peers_, "in_thread", HandlerPolicy::in_thread),
              through_uffda(peers_, "per_cpu, O_DIRECT", HandlerPolicy::per_cpu, "?direct=on"), bare_copy(peers_)};
    if (peers_.fuse != nullptr) ways.push_back(through_fuse(peers_, Advice::none));
    each_round(ways, "cold, sequential", report_.quick() ? 3 : 9, [](Way& way, const Opened& opened) {
      way.figures.push_back(way.throughput ? way.throughput() : scan(opened, kScanned));
    });
    for (const Way& way : ways) report_.figure("cold sequential: " + way.name, "MB/s", summarize(way.figures));
    constexpr Target kTarget{.bound = Bound::at_least, .ratio = 0.9};
    for (const char* ours : {"per_cpu", "in_thread", "per_cpu, O_DIRECT"}) {
      against(ways, ours, "mmap", "cold sequential read", "MB/s",
              ours == std::string("per_cpu") ? std::optional(kTarget) : std::nullopt);
    }
    against(ways, "per_cpu", "floor, two copies", "cold sequential read", "MB/s", std::nullopt);
    against(ways, "per_cpu", "nbdfuse", "cold sequential read", "MB/s", std::nullopt);
  }

  void cold_random() {
    Ways ways{through_uffda(peers_, "per_cpu", HandlerPolicy::per_cpu),
              plain(peers_, "mmap RANDOM", Advice::random),
              through_uffda(peers_, "in_thread", HandlerPolicy::in_thread),
              bare(peers_, "floor, same CPU", FloorHandler::same_cpu),
              bare(peers_, "floor, in thread", FloorHandler::in_thread),
              plain(peers_, "mmap", Advice::none),
              through_uffda(peers_, "per_cpu, O_DIRECT", HandlerPolicy::per_cpu, "?direct=on")};
    if (peers_.fuse != nullptr) ways.push_back(through_fuse(peers_, Advice::random));
    each_round(ways, "cold, random", report_.quick() ? 3 : 9, [this](Way& way, const Opened& opened) {
      record(way, touch_us(opened, order_.data() + next_page_, kColdTouches));
      next_page_ += kColdTouches;
    });
    for (const Way& way : ways) report_.figure("cold random 4 KiB: " + way.name, "us", summarize(way.touches_us));
    constexpr Target kTarget{.bound = Bound::at_most, .ratio = 1.3};
    against(ways, "per_cpu", "mmap RANDOM", "cold random 4 KiB, mean", "us", kTarget);
    against(ways, "in_thread", "mmap RANDOM", "cold random 4 KiB, mean", "us", kTarget);
    against(ways, "per_cpu, O_DIRECT", "mmap RANDOM", "cold random 4 KiB, mean", "us", std::nullopt);
    against(ways, "per_cpu", "floor, same CPU", "cold random 4 KiB, mean", "us", std::nullopt);
    against(ways, "in_thread", "floor, in thread", "cold random 4 KiB, mean", "us", std::nullopt);
    against(ways, "per_cpu", "mmap", "cold random 4 KiB, mean", "us", std::nullopt);
    against(ways, "per_cpu", "nbdfuse", "cold random 4 KiB, mean", "us", std::nullopt);
  }

  /// What each way has cached: the page cache for mmap and FUSE, uffda's for uffda.
  void cached() {
    Ways scans{through_uffda(peers_, "per_cpu", HandlerPolicy::per_cpu), plain(peers_, "mmap", Advice::none),
               through_uffda(peers_, "in_thread", HandlerPolicy::in_thread)};
    if (peers_.fuse != nullptr) scans.push_back(through_fuse(peers_, Advice::none));
    Ways randoms = scans;
    const std::vector<std::uint32_t> order = shuffled(kCached / kPage, 2);
    each_round_cached(scans, "cached, sequential",
                      [](Way& way, const Opened& opened) { way.figures.push_back(scan(opened, kCached)); });
    each_round_cached(randoms, "cached, random", [&order](Way& way, const Opened& opened) {
      record(way, touch_us(opened, order.data(), kCachedTouches));
    });
    for (const Way& way : randoms) report_.figure("cached random 4 KiB: " + way.name, "us", summarize(way.touches_us));
    for (const char* peer : {"mmap", "nbdfuse"}) {
      against(scans, "per_cpu", peer, "cached file, scan", "MB/s", std::nullopt);
      against(randoms, "per_cpu", peer, "cached file, random, mean", "us", std::nullopt);
    }
    against(scans, "in_thread", "mmap", "cached file, scan", "MB/s", std::nullopt);
    against(randoms, "in_thread", "mmap", "cached file, random, mean", "us", std::nullopt);
  }

 private:
  using Measure = std::function<void(Way&, const Opened&)>;

  static void record(Way& way, const std::vector<double>& took_us) {
    way.figures.push_back(mean(took_us));
    way.touches_us.insert(way.touches_us.end(), took_us.begin(), took_us.end());
  }

  void each_round(Ways& ways, const char* what, std::size_t rounds, const Measure& measure) {
    for (std::size_t round = 0; round < rounds; ++round) {
      Report::progress(fmt::format("{}: round {} of {}", what, round + 1, rounds));
      for (std::size_t i = 0; i < ways.size(); ++i) {
        Way& way = ways[(round + i) % ways.size()];
        if (peers_.fuse != nullptr) peers_.fuse->drop();
        peers_.file.drop();
        warm_memory(kWarm);
        const Opened opened = way.open();
        const PinnedHere pinned(peers_.cpu);
        measure(way, opened);
      }
    }
  }

  void each_round_cached(Ways& ways, const char* what, const Measure& measure) {
    peers_.file.cache(kCached);
    const std::size_t rounds = report_.quick() ? 2 : 5;
    Report::progress(fmt::format("{}: {} rounds", what, rounds));
    for (std::size_t round = 0; round < rounds; ++round) {
      for (std::size_t i = 0; i < ways.size(); ++i) {
        Way& way = ways[(round + i) % ways.size()];
        const Opened opened = way.open();
        scan(opened, kCached);
        check(::madvise(const_cast<std::byte*>(opened.data), kCached, MADV_DONTNEED) == 0, "MADV_DONTNEED");
        const PinnedHere pinned(peers_.cpu);
        measure(way, opened);
      }
    }
  }

  void against(const Ways& ways, std::string_view name, std::string_view peer, std::string_view what, const char* unit,
               std::optional<Target> target) {
    const auto named = [&](std::string_view wanted) { return std::ranges::find(ways, wanted, &Way::name); };
    const auto ours = named(name);
    const auto theirs = named(peer);
    if (ours == ways.end() || theirs == ways.end()) return;
    report_.compare_rounds(
        {.name = fmt::format("{}: {}", what, name), .unit = unit, .peer_name = std::string(peer), .target = target},
        ours->figures, theirs->figures);
  }

  Report& report_;
  const Peers& peers_;
  std::vector<std::uint32_t> order_;
  std::size_t next_page_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  Report report("cold", argc, argv);
  const std::string directory = report.option("dir", ".");
  const RealFile file(directory + "/random.bin", kFile);
  std::optional<NbdFuse> fuse;
  if (const auto why = NbdFuse::cannot()) {
    report.skip("FUSE", *why);
  } else {
    fuse.emplace(directory + "/fuse", file.path());
    if (!fuse->started()) report.skip("FUSE", "nbdfuse did not start");
  }
  const Peers peers{.file = file, .fuse = fuse && fuse->started() ? &*fuse : nullptr, .cpu = usable_cpus().back()};
  if (const auto why = Floor::cannot()) {
    report.skip("a real file", *why);
  } else {
    RealFileBench bench(report, peers);
    const std::string part = report.option("part", "all");
    if (part == "all" || part == "sequential") bench.cold_sequential();
    if (part == "all" || part == "random") bench.cold_random();
    if (part == "all" || part == "cached") bench.cached();
  }
  report.finish();
  return 0;
}
