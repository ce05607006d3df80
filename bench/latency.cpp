// A source that answers 2 ms late, read from start to end without a recording: how much of the latency read-ahead
// hides.
//
// Hidden: 1 - (t_far - t_near) / (t_waiting - t_near). t_near: the same file without the delay, in the page cache.
// t_waiting: t_near and one latency for each read, if the reader waited for every one of them: reads of 4 KiB, and, the
// harder comparison, of 1 MiB, which is the largest that uffda makes.
#include <fmt/format.h>

#include <memory>
#include <string>
#include <vector>

#include "common/bench.h"
#include "common/floor.h"
#include "common/real_file.h"
#include "common/uffda_memory.h"

namespace {

using namespace bench;
using uffda::HandlerPolicy;

constexpr double kDelay = 2e-3;  // seconds
constexpr std::size_t kSample = 200;

double seconds_of(const std::string& uri, const std::vector<std::size_t>& offsets) {
  const UffdaMemory ours = UffdaMemory::of(must(uffda::open_source(uri)), HandlerPolicy::per_cpu);
  const std::byte* data = ours.memory.bytes().data();
  const std::int64_t start = now_ns();
  for (const std::size_t at : offsets) {
    [[maybe_unused]] const volatile std::byte touched = *const_cast<const volatile std::byte*>(data + at);
  }
  return static_cast<double>(now_ns() - start) / 1e9;
}

std::vector<std::size_t> sequential(std::size_t bytes) {
  std::vector<std::size_t> offsets;
  for (std::size_t at = 0; at < bytes; at += kPage) offsets.push_back(at);
  return offsets;
}

/// So far apart and in such an order that nothing can be read ahead.
std::vector<std::size_t> scattered(std::size_t bytes) {
  std::vector<std::size_t> offsets;
  for (const std::uint32_t page : shuffled(bytes / kPage, 7)) offsets.push_back(page * kPage);
  offsets.resize(kSample);
  return offsets;
}

class Latency {
 public:
  explicit Latency(Report& report) : report_(report), rounds_(report.quick() ? 3 : 7) {}

  void measure(const RealFile& file) {
    file.cache(file.bytes());
    const std::string near = "file:" + file.path();
    const std::string far = "delay+file:" + file.path() + "?delay=2ms";
    const std::vector<std::size_t> all = sequential(file.bytes());
    const std::vector<std::size_t> some = scattered(file.bytes());
    const PinnedHere pinned(usable_cpus().back());
    for (std::size_t round = 0; round < rounds_; ++round) {
      Report::progress(fmt::format("sequential over 2 ms: round {} of {}", round + 1, rounds_));
      near_.push_back(seconds_of(near, all));
      far_.push_back(seconds_of(far, all));
      // What one wait costs, with all that comes with it.
      wait_.push_back((seconds_of(far, some) - seconds_of(near, some)) / static_cast<double>(some.size()));
    }
    hidden("4 KiB", file.bytes() / kPage);
    hidden("1 MiB", file.bytes() >> 20U);
    report_.compare_rounds({.name = "sequential over 2 ms", .unit = "s", .peer_name = "local cached file"}, far_,
                           near_);
    report_.figure("one wait for a source 2 ms away", "ms", in_ms(wait_));
  }

 private:
  static Summary in_ms(std::vector<double> seconds) {
    for (double& one : seconds) one *= 1e3;
    return summarize(std::move(seconds));
  }

  void hidden(const std::string& reads, std::size_t count) {
    std::vector<double> shares;
    for (std::size_t i = 0; i < far_.size(); ++i) {
      const double waits = std::max(wait_[i], kDelay) * static_cast<double>(count);
      shares.push_back(1 - (far_[i] - near_[i]) / waits);
    }
    const std::vector<double> all(shares.size(), 1.0);
    report_.compare_rounds({.name = fmt::format("latency of 2 ms hidden, reads of {}", reads),
                            .unit = "share",
                            .peer_name = "all of it",
                            .target = Target{.bound = Bound::at_least, .ratio = 0.9}},
                           shares, all);
  }

  Report& report_;
  std::size_t rounds_;
  std::vector<double> near_;
  std::vector<double> far_;
  std::vector<double> wait_;
};

}  // namespace

int main(int argc, char** argv) {
  Report report("latency", argc, argv);
  if (const auto why = Floor::cannot()) {
    report.skip("a source that is far away", *why);
  } else {
    const RealFile file(report.option("dir", ".") + "/far.bin", std::size_t{256} << 20U);
    Latency(report).measure(file);
  }
  report.finish();
  return 0;
}
