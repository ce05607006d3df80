// uffda_sim: runs the core in the deterministic simulator, one run for each seed.
//
//   uffda_sim [--first N] [--seeds COUNT] [--jobs N] [--canary NAME]   a range of seeds; stops at the first that fails
//   uffda_sim --replay SEED [--canary NAME]                            one seed, with its whole trace
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdio>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/thread.h"
#include "sim/world.h"

namespace uffda::sim {
namespace {

struct Command {
  std::uint64_t first = 0;
  std::uint64_t seeds = 1000;
  std::uint64_t jobs = 1;
  std::optional<std::uint64_t> replay;
  std::string canary;
};

constexpr std::string_view kUsage =
    "usage: uffda_sim [--first N] [--seeds COUNT] [--jobs N] [--canary NAME]\n"
    "       uffda_sim --replay SEED [--canary NAME]\n"
    "canaries: shown-before-filled, evicts-pinned, clean-before-written, copied-before-protected,\n"
    "          adopts-awaiting-as-clean, forgets-messages, adopts-without-wake\n";

bool parse_number(std::string_view text, std::uint64_t& number) {
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), number);
  return parsed.ec == std::errc{} && parsed.ptr == text.data() + text.size();
}

bool parse_canary(std::string_view name) {
  constexpr std::array<std::pair<std::string_view, Canary>, 8> kCanaries{{
      {"shown-before-filled", Canary::shown_before_filled},
      {"evicts-pinned", Canary::evicts_pinned},
      {"clean-before-written", Canary::clean_before_written},
      {"copied-before-protected", Canary::copied_before_protected},
      {"logged-despite-pins", Canary::logged_despite_pins},
      {"adopts-awaiting-as-clean", Canary::adopts_awaiting_as_clean},
      {"forgets-messages", Canary::forgets_messages},
      {"adopts-without-wake", Canary::adopts_without_wake},
  }};
  for (const auto& [known, which] : kCanaries) {
    if (known == name) the_canary = which;
  }
  return the_canary != Canary::none;
}

std::optional<Command> parse(const std::vector<std::string_view>& words) {
  Command command;
  for (std::size_t i = 0; i + 1 < words.size(); i += 2) {
    std::uint64_t replay = 0;
    const std::string_view value = words[i + 1];
    if (words[i] == "--first" && parse_number(value, command.first)) continue;
    if (words[i] == "--seeds" && parse_number(value, command.seeds)) continue;
    if (words[i] == "--jobs" && parse_number(value, command.jobs) && command.jobs != 0) continue;
    if (words[i] == "--canary" && parse_canary(value)) {
      command.canary = fmt::format(" --canary {}", value);
      continue;
    }
    if (words[i] == "--replay" && parse_number(value, replay)) {
      command.replay = replay;
      continue;
    }
    return std::nullopt;
  }
  return words.size() % 2 == 0 ? std::optional(command) : std::nullopt;
}

std::uint64_t run_seed(std::uint64_t seed, Totals& totals) {
  Plan plan = plan_of(seed);
  // A known fault is to be found by what it shows, not by what it does to a write that fails or to a monitor.
  if (the_canary != Canary::none) {
    plan.faults.write_fails_one_in = 0;
    plan.monitors = false;
  }
  if (tracing()) trace_line(describe(plan));
  return run(plan.schedule, [&] { World(plan, totals).run(); });
}

/// Runs `body` in a child, so that a run that fails ends only itself. The child's exit status, or 128 and its signal.
template <typename Body>
pid_t in_child(Body&& body) {
  std::fflush(stdout);
  const pid_t child = ::fork();
  if (child == 0) {
    body();
    std::fflush(stdout);
    ::_exit(0);
  }
  return child;
}

int status_of(pid_t child) {
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/// What a job tells while it runs, in memory that all share: a run that dies cannot say it itself.
struct Job {
  std::uint64_t seed;
  Totals totals;
  pid_t child;
};

constexpr int kDiffers = 2;

/// In a process of its own: what a server that was killed has left stays until it ends.
void run_some(const Command& command, std::uint64_t end, Job& job) {
  constexpr std::uint64_t kRepeat = 256;  // now and then: is the run a function of its seed?
  for (; job.seed < end; job.seed += command.jobs) {
    const std::uint64_t digest = run_seed(job.seed, job.totals);
    Totals repeated;
    if (job.seed % kRepeat == 0 && run_seed(job.seed, repeated) != digest) ::_exit(kDiffers);
  }
}

void run_job(const Command& command, std::uint64_t number, Job& job) {
  constexpr std::uint64_t kAtOnce = 200;
  if (std::freopen("/dev/null", "w", stdout) == nullptr) ::_exit(1);
  const std::uint64_t end = command.first + command.seeds;
  for (job.seed = command.first + number; job.seed < end;) {
    const std::uint64_t stop = std::min(end, job.seed + kAtOnce * command.jobs);
    const int status = status_of(in_child([&] { run_some(command, stop, job); }));
    if (status != 0) ::_exit(status);
  }
}

void explain(const Command& command, std::uint64_t seed, int status) {
  if (status == kDiffers) {
    fmt::print("seed {}: two runs differ\n", seed);
  } else {
    const int again = status_of(in_child([&] {
      Totals totals;
      set_tracing(Tracing::tail);
      run_seed(seed, totals);
    }));
    if (again != 1) fmt::print("seed {}: ended with status {}, and {} when it was repeated\n", seed, status, again);
  }
  fmt::print("FAIL seed {}: replay it with uffda_sim --replay {}{}\n", seed, seed, command.canary);
}

int run_range(const Command& command) {
  void* const shared =
      ::mmap(nullptr, command.jobs * sizeof(Job), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED) return 1;
  const std::span jobs(static_cast<Job*>(shared), command.jobs);
  for (std::uint64_t number = 0; number < command.jobs; ++number) {
    jobs[number].child = in_child([&] { run_job(command, number, jobs[number]); });
  }
  int failed = 0;
  Totals totals;
  for (const Job& job : jobs) {
    const int status = status_of(job.child);
    totals += job.totals;
    if (status != 0 && failed++ == 0) explain(command, job.seed, status);
  }
  if (failed == 0) fmt::print("ok {} seeds from {} on: {}\n", command.seeds, command.first, describe(totals));
  return failed == 0 ? 0 : 1;
}

}  // namespace
}  // namespace uffda::sim

int main(int argc, char** argv) {
  using namespace uffda::sim;
  const auto command = parse({argv + 1, argv + argc});
  if (!command) {
    fmt::print(stderr, "{}", kUsage);
    return 2;
  }
  if (!command->replay) return run_range(*command);
  set_tracing(Tracing::all);
  Totals totals;
  run_seed(*command->replay, totals);
  fmt::print("seed {}: ok; {}\n", *command->replay, describe(totals));
  return 0;
}
