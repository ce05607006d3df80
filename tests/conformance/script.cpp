#include "conformance/script.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <random>

namespace uffda::conformance {
namespace {

constexpr std::array<std::string_view, kOps> kNames{"register", "unregister", "read",        "write",    "copy",
                                                    "zeropage", "continue",   "poison",      "move",     "writeprotect",
                                                    "wake",     "other_read", "other_write", "dontneed", "remove",
                                                    "remap",    "replace",    "fork",        "scan"};
// How often each is drawn.
constexpr std::array<int, kOps> kWeights{6, 2, 12, 12, 14, 7, 12, 5, 4, 9, 2, 6, 5, 5, 4, 1, 1, 1, 3};

class Generator {
 public:
  explicit Generator(std::uint64_t seed) : random_(seed) {}

  Script script() {
    Script script;
    // Most scripts begin with something to do.
    if (below(10) != 0) script.push_back(registration(0, static_cast<std::int64_t>(kPages)));
    const std::uint64_t length = 4 + below(28);
    std::discrete_distribution<int> draw(kWeights.begin(), kWeights.end());
    while (script.size() < length) script.push_back(step(static_cast<Op>(draw(random_))));
    return script;
  }

 private:
  std::uint64_t below(std::uint64_t n) { return random_() % n; }

  Step registration(std::int64_t page, std::int64_t count) {
    constexpr std::array<std::uint64_t, 8> kModes{1, 1, 2, 3, 4, 5, 6, 7};
    Step step{.op = Op::register_range, .page = page, .count = count};
    step.modes = below(20) == 0 ? below(2) * 8 : kModes.at(below(kModes.size()));
    return step;
  }

  Step step(Op op) {
    Step step{.op = op};
    step.page = static_cast<std::int64_t>(below(kPages));
    step.count = 1 + static_cast<std::int64_t>(below(below(3) == 0 ? kPages : 3));
    // A range that runs beyond the memory meets whatever is there: now and then is enough, and never for what changes
    // it.
    const bool strict = op == Op::register_range || op == Op::unregister_range || op >= Op::dontneed || below(15) != 0;
    if (strict) step.count = std::min(step.count, static_cast<std::int64_t>(kPages) - step.page);
    if (below(40) == 0 && op <= Op::wake && op != Op::read && op != Op::write)
      step.skew = 1 + static_cast<std::int64_t>(below(4095));
    if (op == Op::register_range) step.modes = registration(0, 1).modes;
    if (op == Op::move) step.from = static_cast<std::int64_t>(below(2 * kPages));
    if (op == Op::copy) step.from = below(8) == 0 ? static_cast<std::int64_t>(1 + below(3)) : 0;
    if (below(5) == 0) step.flags = step.flags | ResolveFlag::dontwake;
    if (op == Op::writeprotect || op == Op::scan ? below(3) != 0 : below(6) == 0)
      step.flags = step.flags | ResolveFlag::wp;
    if (op == Op::move ? below(2) == 0 : below(40) == 0) step.flags = step.flags | ResolveFlag::allow_src_holes;
    if (op == Op::remap) step.page = 0;
    step.value = static_cast<std::uint8_t>(1 + below(255));
    step.thread = static_cast<int>(below(kThreads));
    return step;
  }

  std::mt19937_64 random_;
};

}  // namespace

std::string_view to_string(Op op) { return kNames.at(static_cast<std::size_t>(op)); }

std::string to_string(const Step& step) {
  return fmt::format("{} page={} count={} from={} skew={} modes={} flags={} value={} thread={}", to_string(step.op),
                     step.page, step.count, step.from, step.skew, step.modes, step.flags.bits(), step.value,
                     step.thread);
}

std::optional<Difference> difference(const Script& script, const Kind& kind, const RunOther& other) {
  std::string why;
  const auto in_kernel = [&] { return run(script, *kernel_world(kind, why)); };
  Difference found{.kernel = in_kernel(), .other = other(script, kind)};
  if (found.kernel == found.other) return std::nullopt;
  // The kernel is not always of one mind (seen once in 100,000 scripts, with gigantic pages being allocated beside it):
  // what it does the second time is as right.
  if (in_kernel() == found.other) return std::nullopt;
  return found;
}

Script shrink(Script script, const Kind& kind, const RunOther& other) {
  for (bool smaller = true; smaller;) {
    smaller = false;
    for (std::size_t i = script.size(); i-- > 0;) {
      Script shorter = script;
      shorter.erase(shorter.begin() + static_cast<std::ptrdiff_t>(i));
      if (!difference(shorter, kind, other)) continue;
      script = std::move(shorter);
      smaller = true;
    }
  }
  return script;
}

std::string show(const std::optional<Difference>& found, const std::string& name) {
  if (!found) return {};
  std::string text;
  const auto side = [](const std::vector<std::string>& lines, std::size_t i) {
    return i < lines.size() ? lines.at(i) : std::string();
  };
  for (std::size_t i = 0; i < std::max(found->kernel.size(), found->other.size()); ++i) {
    const std::string kernel = side(found->kernel, i);
    const std::string other = side(found->other, i);
    text += kernel == other ? fmt::format("  {}\n", kernel)
                            : fmt::format("! {:<9} {}\n! {:<9} {}\n", "kernel", kernel, name, other);
  }
  return text;
}

std::vector<std::string> compare(std::uint64_t first_seed, std::uint64_t count, const Kind& kind, const RunOther& other,
                                 const std::string& name) {
  constexpr std::size_t kMost = 3;
  std::vector<std::string> differences;
  for (std::uint64_t seed = first_seed; seed < first_seed + count && differences.size() < kMost; ++seed) {
    const Script script = random_script(seed);
    const auto found = difference(script, kind, other);
    if (!found) continue;
    const auto smallest = difference(shrink(script, kind, other), kind, other);
    differences.push_back(fmt::format("seed {} differs (! marks where); the smallest script that does:\n{}", seed,
                                      show(smallest ? smallest : found, name)));
  }
  return differences;
}

std::uint64_t setting(const char* name, std::uint64_t otherwise) {
  const char* const value = std::getenv(name);
  return value == nullptr ? otherwise : std::strtoull(value, nullptr, 10);
}

Script random_script(std::uint64_t seed) { return Generator(seed).script(); }

}  // namespace uffda::conformance
