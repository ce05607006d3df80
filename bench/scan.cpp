// A scan of a cached object of 1 GiB, one touch for each 4 KiB page: uffda's adaptive fault-around beside the floor
// with every fixed number of pages for each fault.
#include <fmt/format.h>

#include <array>
#include <functional>
#include <memory>
#include <vector>

#include "common/bench.h"
#include "common/floor.h"
#include "common/uffda_memory.h"

namespace {

using namespace bench;
using uffda::HandlerPolicy;

constexpr std::size_t kBytes = std::size_t{1} << 30U;
constexpr std::array<std::size_t, 6> kRuns{16, 32, 64, 128, 256, 512};

double scan_mpages(const std::byte* data) {
  const std::int64_t start = now_ns();
  for (std::size_t at = 0; at < kBytes; at += kPage) {
    [[maybe_unused]] const volatile std::byte touched = *const_cast<const volatile std::byte*>(data + at);
  }
  return static_cast<double>(kBytes / kPage) / static_cast<double>(now_ns() - start) * 1e3;
}

class Scan {
 public:
  explicit Scan(Report& report) : report_(report), cpu_(usable_cpus().back()), rounds_(report.quick() ? 3 : 9) {}

  void against(const std::string& way, HandlerPolicy policy, FloorHandler handler, std::optional<Target> target) {
    Report::progress(fmt::format("scan of 1 GiB, {}", way));
    const UffdaMemory ours = UffdaMemory::cached(kBytes, policy);
    // Where its pages lie in memory, side by side or not, decides a scan's speed as much as who maps them.
    Floor floor({.bytes = kBytes, .handler = handler, .toucher_cpu = cpu_, .memfd = ours.memory.descriptor()});
    const PinnedHere pinned(cpu_);
    const std::size_t best = best_run(way, floor);
    std::vector<double> uffda;
    std::vector<double> peer;
    for (std::size_t round = 0; round < rounds_; ++round) {
      ours.unmap_pages();
      uffda.push_back(scan_mpages(ours.memory.bytes().data()));
      peer.push_back(scan_floor(floor, best));
    }
    report_.figure("scan: " + way, "Mpages/s", summarize(uffda));
    report_.compare_rounds({.name = "cached scan of 1 GiB: " + way,
                            .unit = "Mpages/s",
                            .peer_name = fmt::format("floor, best run: {}", best),
                            .target = target},
                           uffda, peer);
  }

 private:
  /// Each run size in turn; the best one is what uffda is then measured beside.
  std::size_t best_run(const std::string& way, Floor& floor) {
    std::array<std::vector<double>, kRuns.size()> by_run;
    for (std::size_t round = 0; round < (rounds_ + 1) / 2; ++round) {
      for (std::size_t i = 0; i < kRuns.size(); ++i) by_run[i].push_back(scan_floor(floor, kRuns[i]));
    }
    std::size_t best = 0;
    for (std::size_t i = 0; i < kRuns.size(); ++i) {
      report_.figure(fmt::format("scan: floor of {}, {} pages", way, kRuns[i]), "Mpages/s", summarize(by_run[i]));
      if (median(by_run[i]) > median(by_run[best])) best = i;
    }
    return kRuns[best];
  }

  static double scan_floor(Floor& floor, std::size_t run) {
    floor.unmap_pages();
    floor.set_run(run);
    floor.enter();
    const double rate = scan_mpages(floor.data());
    floor.leave();
    return rate;
  }

  Report& report_;
  int cpu_;
  std::size_t rounds_;
};

}  // namespace

int main(int argc, char** argv) {
  Report report("scan", argc, argv);
  if (const auto why = Floor::cannot()) {
    report.skip("scan of a cached object", *why);
  } else {
    Scan scan(report);
    constexpr Target kTarget{.bound = Bound::at_least, .ratio = 0.8};
    scan.against("per_cpu", HandlerPolicy::per_cpu, FloorHandler::same_cpu, kTarget);
    scan.against("in_thread", HandlerPolicy::in_thread, FloorHandler::in_thread, kTarget);
  }
  report.finish();
  return 0;
}
