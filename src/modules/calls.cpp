#include "modules/calls.h"

#include <fmt/format.h>

#include <algorithm>
#include <csignal>
#include <map>
#include <optional>
#include <system_error>

#include "base/log.h"
#include "modules/abi.h"

namespace uffda::modules {
namespace {

constexpr Duration kIdle = std::chrono::seconds(60);  // between looks of threads that have nothing to do

/// Threads that call modules get no signals that are meant for the program.
std::thread quiet_thread(const std::function<void()>& body) {
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGSYS}) sigdelset(&all, fault);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  std::thread thread;
  try {
    thread = std::thread(body);
  } catch (const std::system_error&) {
    thread = std::thread();  // there are no more: the caller sees that it is not joinable
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return thread;
}

std::atomic<unsigned> complaint_count{0};

}  // namespace

unsigned complaints() { return complaint_count.load(); }

void complain(const std::string& module, const std::string& text) {
  static Mutex mutex;
  static auto* const counts = new std::map<std::string, unsigned>;
  unsigned count = 0;
  {
    const MutexLock lock(mutex);
    count = ++(*counts)[module];
  }
  if (count <= kMaxComplaints) {
    log(LogLevel::error, "{}: {}{}", module, text,
        count == kMaxComplaints ? "; no more of this module's errors are said" : "");
  }
  complaint_count.fetch_add(1);  // said by then
}

struct Calls::Call {
  const char* what = "";
  TimePoint started;
  Deadline deadline = Deadline::at({});
  std::function<void(const Answer&)> work;
  std::function<void(Value)> done;
  std::weak_ptr<State> state;
  // Under the state's mutex.
  bool entered = false;
  bool returned = false;
  bool answered = false;
  bool written_off = false;  // over its deadline inside the module
};

struct Calls::State {
  State(std::string name, unsigned most, Lost when) : module(std::move(name)), most_threads(most), out_of_order(when) {}
  const std::string module;
  const unsigned most_threads;
  const Lost out_of_order;

  Mutex mutex;
  CondVar work_changed;  // for the threads
  CondVar changed;       // for the supervisor and the end
  std::deque<std::shared_ptr<Call>> waiting UFFDA_GUARDED_BY(mutex);
  std::vector<std::shared_ptr<Call>> open UFFDA_GUARDED_BY(mutex);  // not answered, or not returned
  unsigned most_open UFFDA_GUARDED_BY(mutex) = kMaxParallel;
  unsigned threads UFFDA_GUARDED_BY(mutex) = 0;
  unsigned idle UFFDA_GUARDED_BY(mutex) = 0;
  unsigned lost UFFDA_GUARDED_BY(mutex) = 0;
  bool stopping UFFDA_GUARDED_BY(mutex) = false;
  bool stopped UFFDA_GUARDED_BY(mutex) = false;

  [[nodiscard]] bool broken_locked() const UFFDA_REQUIRES(mutex) {
    return out_of_order == Lost::any ? lost != 0 : lost >= most_threads;
  }
  [[nodiscard]] const char* culprit_locked() const UFFDA_REQUIRES(mutex) {
    for (const auto& call : open) {
      if (call->written_off && !call->returned) return call->what;
    }
    return "a call";
  }
  [[nodiscard]] Error broken_error_locked() const UFFDA_REQUIRES(mutex) {
    return Error(Errc::timed_out, fmt::format("not called, for {} has not returned", culprit_locked()));
  }
  [[nodiscard]] bool may_enter_locked() const UFFDA_REQUIRES(mutex) {
    if (waiting.empty()) return false;
    return std::ranges::count_if(open, [](const auto& call) { return call->entered && !call->answered; }) < most_open;
  }
  void forget_finished_locked() UFFDA_REQUIRES(mutex) {
    std::erase_if(open, [](const auto& call) { return call->answered && (call->returned || !call->entered); });
  }
  /// The next call to fail now, and why.
  std::optional<std::pair<std::shared_ptr<Call>, Error>> next_expired_locked(TimePoint now) UFFDA_REQUIRES(mutex);
  [[nodiscard]] TimePoint next_deadline_locked() const UFFDA_REQUIRES(mutex);
  void returned(Call& call);
  void expire(TimePoint now);
};

bool Calls::Answer::operator()(Value value) const {
  const auto state = call_->state.lock();
  if (!state) return false;  // answered when it ended
  std::function<void(Value)> done;
  {
    const MutexLock lock(state->mutex);
    if (call_->answered) return false;
    call_->answered = true;
    done = std::exchange(call_->done, nullptr);
  }
  done(value ? std::move(value) : std::unexpected(value.error().within(state->module + ": " + call_->what)));
  {
    const MutexLock lock(state->mutex);
    state->forget_finished_locked();
  }
  state->changed.notify_all();
  state->work_changed.notify_one();  // one more may enter
  return true;
}

Calls::Calls(std::string module, unsigned threads, Lost out_of_order)
    : state_(std::make_shared<State>(std::move(module), threads, out_of_order)),
      supervisor_(quiet_thread([state = state_] { supervise(state); })) {}

void Calls::drain() {
  const TimePoint until = Clock::now() + kCloseGrace;
  {
    const MutexLock lock(state_->mutex);
    state_->stopping = true;
    for (const auto& call : state_->open) call->deadline = Deadline::at(std::min(call->deadline.when(), until));
    while (!state_->open.empty() && Clock::now() < until) state_->changed.wait_until(state_->mutex, until);
  }
  state_->expire(TimePoint::max());
}

void Calls::close(const char* what, Duration deadline, std::function<Value()> last) {
  drain();
  bool lost = false;
  {
    const MutexLock lock(state_->mutex);
    lost = state_->lost != 0;
  }
  if (lost) return complain(state_->module, fmt::format("{} is not called: a call has not returned", what));
  const Value closed = call_anyway(what, Deadline::after(deadline), std::move(last));
  // The error begins with the module's name, as a complaint does.
  if (!closed) complain(state_->module, closed.error().context().substr(state_->module.size() + 2));
}

Calls::~Calls() {
  drain();
  {
    const MutexLock lock(state_->mutex);
    state_->stopped = true;
  }
  state_->changed.notify_all();
  state_->work_changed.notify_all();
  if (supervisor_.joinable()) supervisor_.join();
  const MutexLock lock(state_->mutex);
  const TimePoint soon = Clock::now() + kCloseGrace;
  while (state_->threads > state_->lost && Clock::now() < soon) state_->changed.wait_until(state_->mutex, soon);
}

void Calls::limit_open(unsigned most_open) {
  const MutexLock lock(state_->mutex);
  state_->most_open = most_open;
}

const std::string& Calls::module() const { return state_->module; }

bool Calls::add_thread(const std::shared_ptr<State>& state) {
  {
    const MutexLock lock(state->mutex);
    if (state->idle >= state->waiting.size() || state->threads >= state->most_threads) return true;
    ++state->threads;
  }
  std::thread thread = quiet_thread([state] { work_loop(state); });
  if (thread.joinable()) {
    thread.detach();
    return true;
  }
  const MutexLock lock(state->mutex);
  return --state->threads != 0;
}

std::shared_ptr<Calls::Call> Calls::make_call(const char* what, Deadline deadline,
                                              std::function<void(const Answer&)> work,
                                              std::function<void(Value)> done) const {
  auto call = std::make_shared<Call>();
  call->what = what;
  call->started = Clock::now();
  call->deadline = deadline;
  call->work = std::move(work);
  call->done = std::move(done);
  call->state = state_;
  return call;
}

void Calls::enqueue(const std::shared_ptr<Call>& call) {
  {
    const MutexLock lock(state_->mutex);
    state_->open.push_back(call);
    state_->waiting.push_back(call);
  }
  if (!supervisor_.joinable() || !add_thread(state_)) {
    (void)Answer(call)(fail(Errc::no_memory, "no thread can be made for the call"));
    return;
  }
  state_->work_changed.notify_one();
  state_->changed.notify_all();
}

std::optional<Error> Calls::refusal() const {
  const MutexLock lock(state_->mutex);
  if (state_->stopping) return Error(Errc::cancelled, "it is being closed");
  if (state_->broken_locked()) return state_->broken_error_locked();
  return std::nullopt;
}

void Calls::start(const char* what, Deadline deadline, std::function<void(const Answer&)> work,
                  std::function<void(Value)> done) {
  if (const auto refused = refusal()) return done(std::unexpected(refused->within(state_->module + ": " + what)));
  enqueue(make_call(what, deadline, std::move(work), std::move(done)));
}

/// What one thread waits for.
struct Calls::Wait {
  Mutex mutex;
  CondVar there;
  std::optional<Value> value UFFDA_GUARDED_BY(mutex);

  void set(Value answer) {
    {
      const MutexLock lock(mutex);
      value = std::move(answer);
    }
    there.notify_all();
  }
  Value get() {
    const MutexLock lock(mutex);
    while (!value) there.wait_until(mutex, Clock::now() + kIdle);  // the supervisor sees to its end
    return *std::move(value);
  }
};

Calls::Value Calls::call(const char* what, Deadline deadline, std::function<Value()> work) {
  if (const auto refused = refusal()) return std::unexpected(refused->within(state_->module + ": " + what));
  return call_anyway(what, deadline, std::move(work));
}

Calls::Value Calls::call_anyway(const char* what, Deadline deadline, std::function<Value()> work) {
  const auto wait = std::make_shared<Wait>();
  enqueue(make_call(
      what, deadline, [work = std::move(work)](const Answer& answer) { (void)answer(work()); },
      [wait](Value value) { wait->set(std::move(value)); }));
  return wait->get();
}

void Calls::State::returned(Call& call) {
  {
    const MutexLock lock(mutex);
    call.returned = true;
    if (call.written_off) --lost;
    forget_finished_locked();
  }
  changed.notify_all();
}

void Calls::work_loop(const std::shared_ptr<State>& state) {
  while (true) {
    std::shared_ptr<Call> call;
    {
      const MutexLock lock(state->mutex);
      ++state->idle;
      while (!state->may_enter_locked() && !state->stopped)
        state->work_changed.wait_until(state->mutex, Clock::now() + kIdle);
      --state->idle;
      if (state->waiting.empty()) {
        --state->threads;
        state->changed.notify_all();
        return;
      }
      call = std::move(state->waiting.front());
      state->waiting.pop_front();
      if (call->answered) continue;
      call->entered = true;
    }
    call->work(Answer(call));
    call->work = nullptr;  // with what it holds for the call
    state->returned(*call);
  }
}

std::optional<std::pair<std::shared_ptr<Calls::Call>, Error>> Calls::State::next_expired_locked(TimePoint now) {
  for (const auto& call : open) {
    if (call->answered) continue;
    const double seconds = std::chrono::duration<double>(Clock::now() - call->started).count();
    if (!call->entered && broken_locked()) return std::pair(call, broken_error_locked());
    if (call->deadline.when() > now) continue;
    if (!call->entered)
      return std::pair(call, Error(Errc::timed_out, fmt::format("its turn did not come within {:.3g} s", seconds)));
    if (call->returned)
      return std::pair(call, Error(Errc::timed_out, fmt::format("it was not completed within {:.3g} s", seconds)));
    call->written_off = true;
    ++lost;
    return std::pair(call, Error(Errc::timed_out, fmt::format("it has not returned after {:.3g} s", seconds)));
  }
  return std::nullopt;
}

void Calls::State::expire(TimePoint now) {
  while (true) {
    std::optional<std::pair<std::shared_ptr<Call>, Error>> expired;
    {
      const MutexLock lock(mutex);
      expired = next_expired_locked(now);
    }
    if (!expired) return;
    (void)Answer(expired->first)(std::unexpected(std::move(expired->second)));
  }
}

TimePoint Calls::State::next_deadline_locked() const {
  TimePoint next = Clock::now() + kIdle;
  for (const auto& call : open) {
    if (!call->answered) next = std::min(next, call->deadline.when());
  }
  return next;
}

void Calls::supervise(const std::shared_ptr<State>& state) {
  while (true) {
    state->expire(Clock::now());
    const MutexLock lock(state->mutex);
    if (state->stopped) return;
    const TimePoint next = state->next_deadline_locked();
    if (next > Clock::now()) state->changed.wait_until(state->mutex, next);
  }
}

}  // namespace uffda::modules
