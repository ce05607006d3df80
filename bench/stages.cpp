// Where the time of a cold 4 KiB fault goes: the stages that the core counts, put between what the toucher sees and
// what the disk takes. The address space is put together here as Engine does it, because the public library does not
// show the histograms.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <memory>
#include <numeric>
#include <optional>
#include <vector>

#include "common/bench.h"
#include "common/floor.h"
#include "common/real_file.h"
#include "common/uffda_memory.h"
#include "memtypes/builtin.h"
#include "mm/address_space.h"
#include "mm/core.h"
#include "mm/fault_loop.h"
#include "mm/inline_faults.h"
#include "os/userfault.h"

namespace {

using namespace bench;
using uffda::HandlerPolicy;
using uffda::Stage;

constexpr std::size_t kFile = std::size_t{2} << 30U;
constexpr std::size_t kTouches = 1000;  // in one round
constexpr std::uint64_t kFeatures = UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_POISON;

/// What Engine and Memory are made of.
struct Served {
  std::shared_ptr<uffda::Core> core;
  std::shared_ptr<uffda::AddressSpace> space;
  std::unique_ptr<uffda::FaultLoop> loop;
  std::unique_ptr<uffda::InlineFaults> inline_faults;
  uffda::os::MappedMemory mapping;

  static Served of(const std::string& uri, HandlerPolicy policy) {
    const bool in_thread = policy == HandlerPolicy::in_thread;
    Served served{.core = must(uffda::Core::create({})), .space = {}, .loop = {}, .inline_faults = {}, .mapping = {}};
    must_void(uffda::register_builtin_types(served.core->types()));
    auto userfault = must(uffda::os::open_userfault({.features = kFeatures | (in_thread ? UFFD_FEATURE_SIGBUS : 0),
                                                     .blocking = !in_thread,
                                                     .user_mode_fallback = true}));
    served.space = uffda::AddressSpace::create(served.core, std::move(userfault), "stages");
    if (in_thread) {
      served.inline_faults = must(uffda::InlineFaults::start(served.space));
    } else {
      served.loop = must(uffda::FaultLoop::start_blocking(served.space, policy));
    }
    const auto object = must(served.core->create_object(must(uffda::open_source(uri))));
    const int memfd = object->backing().mapping_fd();
    served.mapping = must(uffda::os::map_memory(object->size(), PROT_READ, MAP_SHARED, memfd));
    const uffda::UffdModes modes{uffda::UffdMode::missing, uffda::UffdMode::minor};
    must(served.space->userfault().register_range(served.mapping.address(), object->size(), modes));
    must_void(served.space->attach(served.mapping.address(), object->size(), object, {}));
    return served;
  }
  static void must_void(const uffda::Result<void>& result) {
    if (!result) die(result.error().message());
  }
  [[nodiscard]] double mean_us(Stage stage) const {
    const uffda::LatencySummary summary = core->stats().of(stage).summary();
    return summary.count == 0 ? 0 : summary.total_us / static_cast<double>(summary.count);
  }
};

double mean(const std::vector<double>& samples) {
  return samples.empty() ? 0
                         : std::accumulate(samples.begin(), samples.end(), 0.0) / static_cast<double>(samples.size());
}

class Stages {
 public:
  Stages(Report& report, const RealFile& file)
      : report_(report), file_(file), cpu_(usable_cpus().back()), order_(shuffled(kFile / kPage, 3)) {}

  void run() {
    const std::size_t rounds = report_.quick() ? 2 : 5;
    for (std::size_t round = 0; round < rounds; ++round) {
      Report::progress(fmt::format("stages of a cold fault: round {} of {}", round + 1, rounds));
      disk_.push_back(read_cold());
      fault_round(HandlerPolicy::per_cpu, handler_);
      fault_round(HandlerPolicy::in_thread, in_thread_);
    }
    figure("the disk: pread of a cold page", disk_);
    show("per_cpu", handler_);
    show("in_thread", in_thread_);
  }

 private:
  struct Rounds {
    std::vector<double> touch;
    std::vector<double> fetch;
    std::vector<double> publish;
    std::vector<double> missing;
  };

  double read_cold() {
    file_.drop();
    const PinnedHere pinned(cpu_);
    std::array<std::byte, kPage> page;
    const std::int64_t start = now_ns();
    for (std::size_t i = 0; i < kTouches; ++i) {
      const auto at = static_cast<off_t>(order_[next_page_++]) * static_cast<off_t>(kPage);
      check(::pread(file_.fd(), page.data(), page.size(), at) == static_cast<ssize_t>(kPage), "pread");
    }
    return static_cast<double>(now_ns() - start) / 1e3 / static_cast<double>(kTouches);
  }

  void fault_round(HandlerPolicy policy, Rounds& rounds) {
    file_.drop();
    const Served served = Served::of("file:" + file_.path(), policy);
    const PinnedHere pinned(cpu_);
    const std::byte* const data = served.mapping.bytes().data();
    const std::int64_t start = now_ns();
    for (std::size_t i = 0; i < kTouches; ++i) {
      [[maybe_unused]] const volatile std::byte touched =
          *const_cast<const volatile std::byte*>(data + order_[next_page_++] * kPage);
    }
    rounds.touch.push_back(static_cast<double>(now_ns() - start) / 1e3 / static_cast<double>(kTouches));
    rounds.fetch.push_back(served.mean_us(Stage::fetch));
    rounds.publish.push_back(served.mean_us(Stage::publish));
    rounds.missing.push_back(served.mean_us(Stage::missing));
  }

  void show(const std::string& way, const Rounds& rounds) {
    figure(way + ": touch to byte", rounds.touch);
    figure(way + ":   asking the source to its answer", rounds.fetch);
    figure(way + ":   publishing the page", rounds.publish);
    std::vector<double> rest;
    std::vector<double> mapped;
    for (std::size_t i = 0; i < rounds.touch.size(); ++i) {
      const double inside = std::max(rounds.missing[i], rounds.fetch[i] + rounds.publish[i]);
      mapped.push_back(inside - rounds.fetch[i] - rounds.publish[i]);
      rest.push_back(rounds.touch[i] - inside);
    }
    if (mean(mapped) > 0) figure(way + ":   mapping it and waking", mapped);
    figure(way + ":   the fault itself, getting there and back", rest);
  }

  void figure(const std::string& what, const std::vector<double>& rounds) {
    report_.figure(what, "us", summarize(rounds));
  }

  Report& report_;
  const RealFile& file_;
  int cpu_;
  std::vector<std::uint32_t> order_;
  std::size_t next_page_ = 0;
  std::vector<double> disk_;
  Rounds handler_;
  Rounds in_thread_;
};

}  // namespace

int main(int argc, char** argv) {
  Report report("stages", argc, argv);
  const RealFile file(report.option("dir", ".") + "/random.bin", kFile);
  if (const auto why = Floor::cannot()) {
    report.skip("stages of a cold fault", *why);
  } else {
    Stages(report, file).run();
  }
  report.finish();
  return 0;
}
