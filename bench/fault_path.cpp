// A fault on a cached page, in random order: from the touch to the byte. The floor and uffda take turns, 4096 touches
// each.
#include <fmt/format.h>

#include <filesystem>
#include <functional>
#include <memory>
#include <vector>

#include "common/bench.h"
#include "common/floor.h"
#include "common/uffda_memory.h"
#include "uffda/module.h"

namespace {

using namespace bench;
using uffda::HandlerPolicy;

constexpr std::size_t kBytes = std::size_t{128} << 20U;
constexpr std::size_t kPages = kBytes / kPage;
constexpr std::size_t kTouches = 4096;  // of one way in one round

/// Where this program is, and what was built with it.
std::string program_directory() { return std::filesystem::canonical("/proc/self/exe").parent_path().string(); }

/// One way to have a fault resolved.
struct Way {
  std::string name;
  const std::byte* data;
  std::function<void()> enter;
  std::function<void()> leave;
  std::function<void()> unmap_pages;
  std::vector<double> all_us{};
  std::vector<double> round_p50_us{};
};

class FaultPath {
 public:
  explicit FaultPath(Report& report) : report_(report), cpu_(usable_cpus().back()), order_(shuffled(kPages)) {}

  void run() {
    make_ways();
    const PinnedHere pinned(cpu_);
    const std::size_t rounds = report_.quick() ? 8 : 40;
    constexpr std::size_t kRoundsOfMapping = kPages / kTouches;
    for (std::size_t round = 0; round < rounds; ++round) {
      if (round % kRoundsOfMapping == 0) {
        for (Way& way : ways_) way.unmap_pages();
      }
      const std::size_t first = round % kRoundsOfMapping * kTouches;
      for (std::size_t i = 0; i < ways_.size(); ++i) touch(ways_[(round + i) % ways_.size()], first);
    }
  }

  void compare() {
    for (Way& way : ways_) report_.figure("cached fault: " + way.name, "us", summarize(way.all_us));
    constexpr Target kHandler{.bound = Bound::at_most, .ratio = 1.10};
    constexpr Target kInline{.bound = Bound::at_most, .ratio = 1.15};
    constexpr Target kModule = kInline;
    against("per_cpu", "floor, same CPU", kHandler);
    against("in_thread", "floor, in thread", kInline);
    against("per_cpu, type of a module", "floor, same CPU", kModule);
    against("per_cpu, one CPU allowed", "floor, same CPU", std::nullopt);
    against("per_cpu", "floor, every CPU", std::nullopt);
    against("one", "floor, other CPU", std::nullopt);
    against("spinning", "floor, spinning", std::nullopt);
  }

 private:
  void make_ways() {
    add_floor("floor, same CPU", FloorHandler::same_cpu);
    add_uffda("per_cpu", HandlerPolicy::per_cpu);
    add_floor("floor, in thread", FloorHandler::in_thread);
    add_uffda("in_thread", HandlerPolicy::in_thread);
    must(uffda::load_module(program_directory() + "/shelf.so"));
    add_uffda("per_cpu, type of a module", HandlerPolicy::per_cpu, "shelf");
    add_floor("floor, every CPU", FloorHandler::every_cpu);
    {
      // The reader is where the toucher is, and there is no other.
      const PinnedHere pinned(cpu_);
      add_uffda("per_cpu, one CPU allowed", HandlerPolicy::per_cpu);
    }
    if (usable_cpus().size() == 1) return report_.skip("handlers on another CPU", "this process may use one CPU only");
    add_floor("floor, other CPU", FloorHandler::other_cpu);
    add_uffda("one", HandlerPolicy::one);
    add_floor("floor, spinning", FloorHandler::spinning);
    add_uffda("spinning", HandlerPolicy::spinning);
  }

  void add_floor(const std::string& name, FloorHandler handler) {
    floors_.push_back(std::make_unique<Floor>(Floor::Setup{.bytes = kBytes, .handler = handler, .toucher_cpu = cpu_}));
    Floor* const floor = floors_.back().get();
    floor->fill();
    ways_.push_back({.name = name,
                     .data = floor->data(),
                     .enter = [floor] { floor->enter(); },
                     .leave = [floor] { floor->leave(); },
                     .unmap_pages = [floor] { floor->unmap_pages(); }});
  }

  void add_uffda(const std::string& name, HandlerPolicy policy, const std::string& type = "shmem") {
    memories_.push_back(std::make_unique<UffdaMemory>(UffdaMemory::cached(kBytes, policy, type)));
    UffdaMemory* const memory = memories_.back().get();
    ways_.push_back({.name = name,
                     .data = memory->memory.bytes().data(),
                     .enter = [] {},
                     .leave = [] {},
                     .unmap_pages = [memory] { memory->unmap_pages(); }});
  }

  void touch(Way& way, std::size_t first) {
    std::vector<double> took_us(kTouches);
    way.enter();
    for (std::size_t i = 0; i < kTouches; ++i) {
      const volatile std::byte* const page = way.data + order_[first + i] * kPage;
      const std::int64_t start = now_ns();
      [[maybe_unused]] const std::byte touched = *page;
      took_us[i] = static_cast<double>(now_ns() - start) / 1e3;
    }
    way.leave();
    way.all_us.insert(way.all_us.end(), took_us.begin(), took_us.end());
    way.round_p50_us.push_back(median(std::move(took_us)));
  }

  const Way* find(std::string_view name) const {
    for (const Way& way : ways_) {
      if (way.name == name) return &way;
    }
    return nullptr;
  }

  void against(std::string_view name, std::string_view peer, std::optional<Target> target) {
    const Way* const ours = find(name);
    const Way* const theirs = find(peer);
    if (ours == nullptr || theirs == nullptr) return;
    report_.compare_rounds({.name = fmt::format("cached fault, p50: {}", name),
                            .unit = "us",
                            .peer_name = std::string(peer),
                            .target = target},
                           ours->round_p50_us, theirs->round_p50_us);
  }

  Report& report_;
  int cpu_;  // where the toucher is
  std::vector<std::uint32_t> order_;
  std::vector<std::unique_ptr<Floor>> floors_;
  std::vector<std::unique_ptr<UffdaMemory>> memories_;
  std::vector<Way> ways_;
};

}  // namespace

int main(int argc, char** argv) {
  Report report("fault_path", argc, argv);
  Report::progress("faults on cached pages, random order over 128 MiB");
  if (const auto why = Floor::cannot()) {
    report.skip("faults on cached pages", *why);
  } else {
    FaultPath bench(report);
    bench.run();
    bench.compare();
  }
  report.finish();
  return 0;
}
