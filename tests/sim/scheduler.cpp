#include "sim/scheduler.h"

#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <optional>

#include "os/clock.h"

namespace uffda::sim {

class Fiber {
 public:
  Fiber(std::string its_name, std::function<void()> its_body) : name(std::move(its_name)), body(std::move(its_body)) {}
  std::string name;
  std::function<void()> body;
  std::uint32_t number = 0;
  ucontext_t context{};
  std::byte* stack = nullptr;
  bool finished = false;
  bool ready = true;
  bool timed_out = false;
  bool timed = false;          // in the list of timers
  TimePoint until = kForever;  // of a wait
  int locks = 0;
  bool mortal = false;
  bool dying = false;
  bool died = false;
  unsigned system_calls = 0;  // one in the other
  WaitList joiners;
};

namespace {

constexpr std::size_t kStack = std::size_t{256} * 1024;
constexpr std::size_t kTail = 120;  // lines of trace that a violation prints
constexpr TimePoint kStart = TimePoint(std::chrono::hours(1));

struct Run {
  Schedule schedule;
  Random random;
  TimePoint time = kStart;
  TimePoint next_timer = kForever;
  std::uint64_t points = 0;
  std::uint64_t digest = 0;
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Fiber*> ready;
  std::vector<Fiber*> timed;  // wait with an end, or did
  std::size_t unfinished = 0;
  Fiber* current = nullptr;
  std::uint64_t points_to_live = 0;  // of mortal fibers; 0: nobody dies
  std::optional<Moment> aim;
  std::uint64_t deaths = 0;
  std::size_t dying = 0;
  WaitList death;
  ucontext_t home{};
};

Run* the_run = nullptr;
Tracing the_tracing = Tracing::off;
std::deque<std::string> the_tail;
std::vector<std::byte*> free_stacks;

std::byte* take_stack() {
  if (!free_stacks.empty()) {
    std::byte* stack = free_stacks.back();
    free_stacks.pop_back();
    return stack;
  }
  void* stack = ::mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
  if (stack == MAP_FAILED) std::abort();
  ::mprotect(stack, 4096, PROT_NONE);
  return static_cast<std::byte*>(stack);
}

void make_ready(Fiber& fiber, bool timed_out) {
  fiber.ready = true;
  fiber.timed_out = timed_out;
  fiber.until = kForever;
  the_run->ready.push_back(&fiber);
}

void fire_timers() {
  Run& run = *the_run;
  run.next_timer = kForever;
  std::erase_if(run.timed, [&](Fiber* fiber) {
    if (fiber->finished || fiber->ready || fiber->until == kForever) return fiber->timed = false, true;
    if (fiber->until > run.time) {
      run.next_timer = std::min(run.next_timer, fiber->until);
      return false;
    }
    make_ready(*fiber, true);
    return fiber->timed = false, true;
  });
}

void fiber_main() {
  Run& run = *the_run;
  Fiber& self = *run.current;
  self.body();
  self.body = nullptr;
  self.finished = true;
  --run.unfinished;
  self.joiners.wake_all();
  ::swapcontext(&self.context, &run.home);
}

/// Gives the thread to whoever the seed picks. The current fiber is in the ready list, or waits.
void switch_away() {
  Run& run = *the_run;
  Fiber& self = *run.current;
  ::swapcontext(&self.context, &run.home);
}

void wait_here(TimePoint until) {
  Run& run = *the_run;
  Fiber& self = *run.current;
  self.ready = false;
  self.timed_out = false;
  self.until = until;
  run.next_timer = std::min(run.next_timer, until);
  if (until != kForever && !self.timed) {
    self.timed = true;
    run.timed.push_back(&self);
  }
  switch_away();
}

TimePoint simulated_now() noexcept { return the_run == nullptr ? std::chrono::steady_clock::now() : the_run->time; }

void pick_and_run() {
  Run& run = *the_run;
  const std::size_t at = run.random.below(run.ready.size());
  Fiber* const next = run.ready[at];
  run.ready[at] = run.ready.back();
  run.ready.pop_back();
  run.digest = (run.digest ^ static_cast<std::uint64_t>(run.time.time_since_epoch().count()) ^ at) * 0x100000001b3;
  run.current = next;
  ::swapcontext(&run.home, &next->context);
  run.current = nullptr;
  if (next->finished && next->stack != nullptr) {
    free_stacks.push_back(next->stack);
    next->stack = nullptr;
  }
}

/// What its stack holds is never unwound, and what it was to run is never destroyed.
void end_at_once(Fiber& fiber) {
  Run& run = *the_run;
  fiber.finished = fiber.died = true;
  [[maybe_unused]] const auto* const leaked = new std::function<void()>(std::move(fiber.body));
  std::erase(run.ready, &fiber);
  --run.unfinished;
  fiber.joiners.wake_all();
  if (&fiber == run.current) return;
  free_stacks.push_back(fiber.stack);
  fiber.stack = nullptr;
}

void kill_mortals() {
  Run& run = *the_run;
  trace("the server is killed");
  ++run.deaths;
  for (std::size_t i = 0; i < run.fibers.size(); ++i) {
    Fiber& fiber = *run.fibers[i];
    if (!fiber.mortal || fiber.finished) continue;
    fiber.dying = fiber.system_calls != 0;
    if (fiber.dying) ++run.dying;
    if (!fiber.dying) end_at_once(fiber);
  }
  run.death.wake_all();
}

std::string who_waits() {
  std::string names;
  for (const auto& fiber : the_run->fibers) {
    if (!fiber->finished) names += (names.empty() ? "" : ", ") + fiber->name;
  }
  return names;
}

}  // namespace

std::uint64_t Random::next() {
  state_ += 0x9E3779B97F4A7C15U;
  std::uint64_t z = state_;
  z = (z ^ z >> 30U) * 0xBF58476D1CE4E5B9U;
  z = (z ^ z >> 27U) * 0x94D049BB133111EBU;
  return z ^ z >> 31U;
}

std::uint64_t run(const Schedule& schedule, const std::function<void()>& body) {
  Run run{.schedule = schedule, .random = Random(schedule.seed)};
  the_run = &run;
  the_tail.clear();
  os::replace_clock(simulated_now);
  spawn("main", body);
  while (true) {
    if (run.time >= run.next_timer) fire_timers();
    if (!run.ready.empty()) {
      pick_and_run();
      continue;
    }
    if (run.unfinished == 0) break;
    if (run.next_timer == kForever) violation("everybody waits for ever: " + who_waits());
    run.time = std::max(run.time, run.next_timer);
    if (run.time - kStart > schedule.horizon) violation("this run does not end: " + who_waits());
  }
  os::replace_clock(nullptr);
  the_run = nullptr;
  return run.digest;
}

Random& random() { return the_run->random; }
TimePoint now() { return the_run->time; }
Fiber* current() { return the_run == nullptr ? nullptr : the_run->current; }
std::uint32_t number_of(const Fiber* fiber) { return fiber->number; }
bool over(const Fiber* fiber) { return fiber->finished; }

Fiber* spawn_mortal(std::string name, std::function<void()> body) {
  Fiber* const fiber = spawn(std::move(name), std::move(body));
  fiber->mortal = true;
  return fiber;
}

bool died(const Fiber* fiber) { return fiber->died; }
void die_after(std::uint64_t points) {
  the_run->points_to_live = points;
  the_run->aim.reset();
}
void die_at(Moment moment) {
  the_run->points_to_live = 0;
  the_run->aim = moment;
}

void note(Moment moment) {
  constexpr std::uint64_t kSoon = 16;  // points: some steps of what follows
  if (current() == nullptr || !current()->mortal || the_run->aim != moment) return;
  die_after(1 + random().below(kSoon));
}

std::uint64_t deaths() { return the_run->deaths; }
bool dying() { return current() != nullptr && current()->dying; }

bool wait_for_death(TimePoint until) {
  Run& run = *the_run;
  const auto awaited = [&] { return run.points_to_live != 0 || run.aim.has_value(); };
  while (awaited() && run.death.wait(until)) continue;
  const bool happened = !awaited();
  while (run.dying != 0) run.death.wait();
  return happened;
}

SystemCall::SystemCall() {
  if (current() != nullptr) ++current()->system_calls;
}

SystemCall::~SystemCall() {
  Fiber* const self = current();
  if (self == nullptr || --self->system_calls != 0 || !self->dying) return;
  --the_run->dying;
  end_at_once(*self);
  the_run->death.wake_all();
  switch_away();
}

Fiber* spawn(std::string name, std::function<void()> body) {
  Run& run = *the_run;
  run.fibers.push_back(std::make_unique<Fiber>(std::move(name), std::move(body)));
  Fiber& fiber = *run.fibers.back();
  fiber.number = static_cast<std::uint32_t>(run.fibers.size());
  fiber.mortal = run.current != nullptr && run.current->mortal;
  fiber.stack = take_stack();
  ::getcontext(&fiber.context);
  fiber.context.uc_stack = {.ss_sp = fiber.stack, .ss_flags = 0, .ss_size = kStack};
  fiber.context.uc_link = nullptr;
  ::makecontext(&fiber.context, fiber_main, 0);
  run.ready.push_back(&fiber);
  ++run.unfinished;
  return &fiber;
}

void point() {
  if (the_run == nullptr || the_run->current == nullptr) return;
  Run& run = *the_run;
  if (++run.points > run.schedule.max_points) violation("this run spins: " + who_waits());
  run.time += std::chrono::nanoseconds(200);
  if (run.current->mortal && run.points_to_live != 0 && --run.points_to_live == 0) {
    kill_mortals();
    if (run.current->finished) return switch_away();
  }
  if (run.random.one_in(run.schedule.stall_one_in)) {
    wait_here(run.time + run.random.up_to(run.schedule.stall));
  } else if (run.random.one_in(run.schedule.switch_one_in)) {
    run.ready.push_back(run.current);
    switch_away();
  }
}

void join(const Fiber* fiber) {
  while (!fiber->finished) const_cast<Fiber*>(fiber)->joiners.wait();
}

void sleep_until(TimePoint when) { wait_here(when); }

bool WaitList::wait(TimePoint until) {
  Fiber* const self = the_run->current;
  waiting_.push_back(self);
  wait_here(until);
  if (self->timed_out) std::erase(waiting_, self);
  return !self->timed_out;
}

void WaitList::wake_one() {
  while (!waiting_.empty()) {
    Fiber* const first = waiting_.front();
    waiting_.erase(waiting_.begin());
    if (first->ready || first->finished) continue;  // its time was up at the same moment; or it was killed
    make_ready(*first, false);
    return;
  }
}

void WaitList::wake_all() {
  while (!waiting_.empty()) wake_one();
}

void note_lock(int change) {
  if (current() != nullptr) current()->locks += change;
}

void expect_no_lock(const char* where, int allowed) {
  if (current() != nullptr && current()->locks > allowed) violation(fmt::format("a lock is held across {}", where));
}

void violation(const std::string& what) {
  for (const std::string& line : the_tail) fmt::print("{}\n", line);
  const std::uint64_t seed = the_run == nullptr ? 0 : the_run->schedule.seed;
  fmt::print("seed {}: {} (in {})\n", seed, what, current() == nullptr ? "the scheduler" : current()->name);
  std::fflush(stdout);
  ::_exit(1);
}

void set_tracing(Tracing tracing) { the_tracing = tracing; }
bool tracing() { return the_tracing != Tracing::off; }

void trace_line(const std::string& text) {
  const double at = the_run == nullptr ? 0 : std::chrono::duration<double, std::milli>(now() - kStart).count();
  std::string line = fmt::format("{:12.4f} ms  {:<14} {}", at, current() == nullptr ? "-" : current()->name, text);
  if (the_tracing == Tracing::all) {
    fmt::print("{}\n", line);
    return;
  }
  the_tail.push_back(std::move(line));
  if (the_tail.size() > kTail) the_tail.pop_front();
}

}  // namespace uffda::sim
