// The deterministic scheduler: simulated threads are fibers on one real thread, and one seed decides everything.
//
// A fiber runs until it waits or comes to a point(), where the seed may let another fiber run instead, or let this one
// stall for a while, whatever it holds. Time is simulated, too: it creeps at every point, and jumps when everybody
// waits. The same seed makes the same run, so a failure is replayed by its number.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "uffda/deadline.h"

namespace uffda::sim {

/// Random numbers of a run: SplitMix64.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next();
  /// Uniform in [0, n); n > 0.
  std::uint64_t below(std::uint64_t n) { return next() % n; }
  /// Uniform in [low, high].
  std::uint64_t between(std::uint64_t low, std::uint64_t high) { return low + below(high - low + 1); }
  /// True once in n times; n == 0: never.
  bool one_in(std::uint64_t n) { return n != 0 && below(n) == 0; }
  Duration up_to(Duration most) {
    return Duration(static_cast<Duration::rep>(below(static_cast<std::uint64_t>(most.count()) + 1)));
  }

 private:
  std::uint64_t state_;
};

class Fiber;

/// How a run is scheduled, and how long it may last.
struct Schedule {
  std::uint64_t seed = 0;
  std::uint64_t switch_one_in = 4;   ///< points at which another fiber may go on
  std::uint64_t stall_one_in = 500;  ///< points at which a fiber stalls
  Duration stall = std::chrono::milliseconds(3);
  Duration horizon = std::chrono::seconds(120);  ///< of simulated time: a run that is not over by then hangs
  std::uint64_t max_points = 4'000'000;          ///< a run that needs more spins
};

/// Runs `body` and everything that it spawns, until body returns and all fibers are over. Not reentrant.
/// Returns a digest of all decisions: the same seed gives the same digest.
std::uint64_t run(const Schedule& schedule, const std::function<void()>& body);

/// The following need a run to be under way, except where said.

Random& random();
TimePoint now();
/// Another fiber may run here. Without a run: nothing happens.
void point();
Fiber* spawn(std::string name, std::function<void()> body);
[[nodiscard]] Fiber* current();
/// Its own among all of the run; from 1 on.
[[nodiscard]] std::uint32_t number_of(const Fiber* fiber);
[[nodiscard]] bool over(const Fiber* fiber);
void join(const Fiber* fiber);
void sleep_until(TimePoint when);
inline void sleep_for(Duration wait) { sleep_until(now() + wait); }

inline constexpr TimePoint kForever = TimePoint::max();

/// Fibers that wait for something, first come first served.
class WaitList {
 public:
  /// Returns when woken (true) or when `until` has come (false).
  bool wait(TimePoint until = kForever);
  void wake_one();
  void wake_all();
  [[nodiscard]] bool empty() const { return waiting_.empty(); }

 private:
  std::vector<Fiber*> waiting_;
};

/// Locks of the code under test that the current fiber holds: rule 4 says that there are none in a wait or a call out.
void note_lock(int change);
/// `allowed` locks may be held: a condition variable's own.
void expect_no_lock(const char* where, int allowed = 0);

// Death by SIGKILL. Some fibers are mortal, and die all at once: where they are, with whatever they hold, and nothing
// is unwound. Only a system call that is under way ends first, as the kernel's do.

/// One that is mortal; so are those that it spawns.
Fiber* spawn_mortal(std::string name, std::function<void()> body);
[[nodiscard]] bool died(const Fiber* fiber);
/// When they have come to so many points more, the mortal fibers die. 0: they do not.
void die_after(std::uint64_t points);
/// What a death may be aimed at.
enum class Moment : std::uint8_t { event_read, cache_written, cache_punched, protected_, source_asked, source_written };
/// Soon after the next such moment of a mortal fiber.
void die_at(Moment moment);
void note(Moment moment);
/// How often they have.
[[nodiscard]] std::uint64_t deaths();
/// After these: whether they did, by `until`. If so, all are gone when this returns.
bool wait_for_death(TimePoint until);
/// The current fiber dies at the end of its system call: what may be cut short is.
[[nodiscard]] bool dying();

/// The simulated kernel is at work for the current fiber, for as long as this lives.
class SystemCall {
 public:
  SystemCall();
  ~SystemCall();
  SystemCall(const SystemCall&) = delete;
  SystemCall& operator=(const SystemCall&) = delete;
};

/// A rule is broken: says so with the seed and the last lines of the trace, and ends the process.
[[noreturn]] void violation(const std::string& what);

enum class Tracing : std::uint8_t { off, tail, all };
/// Off: nothing is kept. Tail: violation() prints the last lines. All: every line is printed at once.
void set_tracing(Tracing tracing);
[[nodiscard]] bool tracing();
void trace_line(const std::string& text);

template <typename... Args>
void trace(fmt::format_string<Args...> format, Args&&... args) {
  if (tracing()) [[unlikely]]
    trace_line(fmt::format(format, std::forward<Args>(args)...));
}

template <typename... Args>
void expect(bool holds, fmt::format_string<Args...> format, Args&&... args) {
  if (!holds) [[unlikely]]
    violation(fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace uffda::sim
