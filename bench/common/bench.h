// What the benchmarks share: time, pinning, samples, and the comparisons that end up in the table.
//
// Everything that is compared is measured in turns in one process: round by round, each way once, in an order that
// rotates. A ratio is the median of the ratios of the rounds, so that what disturbs the machine disturbs both sides.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace bench {

inline constexpr std::size_t kPage = 4096;

[[noreturn]] void die(const std::string& what);
/// Ends the program with `what` and errno unless `ok`.
void check(bool ok, std::string_view what);

inline std::int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

/// The CPUs that this process may run on.
std::vector<int> usable_cpus();
/// Ties the calling thread to one CPU while it lives.
class PinnedHere {
 public:
  explicit PinnedHere(int cpu);
  ~PinnedHere();
  PinnedHere(const PinnedHere&) = delete;
  PinnedHere& operator=(const PinnedHere&) = delete;

 private:
  std::vector<int> before_;
};
void pin_thread(std::vector<int> cpus);

struct Summary {
  double p50 = 0;
  double p90 = 0;
  double p99 = 0;
  double mean = 0;
};
Summary summarize(std::vector<double> samples);
double median(std::vector<double> samples);

/// The pages [0, count), shuffled; the same at every call.
std::vector<std::uint32_t> shuffled(std::size_t count, std::uint64_t seed = 1);

enum class Bound { at_most, at_least };
struct Target {
  Bound bound;
  double ratio;
};

/// Of the time that distance adds to many reads at once, beside what it adds to one.
inline constexpr Target kAboutOneRoundTrip{.bound = Bound::at_most, .ratio = 1.5};

/// Uffda beside a peer: one line of the table.
struct Comparison {
  std::string name;
  std::string unit;
  double uffda = 0;
  std::string peer_name;
  double peer = 0;
  double ratio = 0;  ///< uffda / peer; median over rounds
  std::optional<Target> target;
};

/// What one program measured. Written as JSON, which `table` merges and prints.
class Report {
 public:
  Report(std::string program, int argc, char** argv);

  /// --quick: fewer rounds.
  [[nodiscard]] bool quick() const { return quick_; }
  /// What is left of the command line: --NAME VALUE.
  [[nodiscard]] std::string option(std::string_view name, std::string fallback) const;

  void compare(Comparison comparison);
  /// Compares by per-round figures; both have one for every round.
  void compare_rounds(Comparison comparison, const std::vector<double>& uffda, const std::vector<double>& peer);
  void figure(const std::string& way, const std::string& unit, const Summary& summary);
  /// What could not be measured here, and why.
  void skip(const std::string& what, const std::string& why);
  /// A line on standard error, so that nobody wonders.
  static void progress(const std::string& text);
  /// Writes --json FILE if asked to, otherwise prints what was measured.
  void finish() const;

 private:
  struct Figure {
    std::string way;
    std::string unit;
    Summary summary;
  };
  struct Skip {
    std::string what;
    std::string why;
  };

  std::string program_;
  bool quick_ = false;
  std::vector<std::string> arguments_;
  std::vector<Comparison> comparisons_;
  std::vector<Figure> figures_;
  std::vector<Skip> skips_;
};

}  // namespace bench
