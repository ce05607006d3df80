// Calls into a module: in threads that may be lost, each with a deadline.
//
// A module's function may take for ever, so no thread that anybody needs calls one. Each object of a module (an opened
// source, a memory) has a Calls: as many threads as its thread model allows, a line for calls that wait, and a
// supervisor that answers what is over its deadline. A thread whose call has not returned by then is written off; when
// the call returns after all, the thread goes on with the next one.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "uffda/deadline.h"
#include "uffda/result.h"

namespace uffda::modules {

/// Says on standard error what a module did wrong. A module that does it all the time is quoted kMaxComplaints times.
void complain(const std::string& module, const std::string& text);
inline constexpr unsigned kMaxComplaints = 32;
/// How many there were, said or not.
[[nodiscard]] unsigned complaints();

/// Threads: any, for everything public.
class Calls {
 public:
  using Value = Result<std::int64_t>;
  struct Call;

  /// Answers one call. The first answer counts. Copies share it; outlives its Calls.
  class Answer {
   public:
    /// False if the call has been answered before: by its deadline, or twice. Then nothing happened.
    bool operator()(Value value) const;

   private:
    friend class Calls;
    explicit Answer(std::shared_ptr<Call> call) : call_(std::move(call)) {}
    std::shared_ptr<Call> call_;
  };

  /// How many lost threads put the object out of order, so that new calls fail at once until one comes back.
  enum class Lost : std::uint8_t { any, all };

  /// `module` is what errors begin with: "module tape.so, source tape".
  Calls(std::string module, unsigned threads, Lost out_of_order);
  /// As close, without a last call. Calls that never return keep their thread.
  ~Calls();
  Calls(const Calls&) = delete;
  Calls& operator=(const Calls&) = delete;
  static constexpr Duration kCloseGrace = std::chrono::seconds(2);

  /// Runs `work` in a thread of this object, which answers by the Answer it gets, in `work` or later. `done` hears the
  /// answer, or timed_out at the deadline, exactly once, with no lock held. `what` is the call's name, of static
  /// storage.
  void start(const char* what, Deadline deadline, std::function<void(const Answer&)> work,
             std::function<void(Value)> done);
  /// The same, and waits for the answer.
  Value call(const char* what, Deadline deadline, std::function<Value()> work);

  /// At most this many calls are entered and not answered from now on.
  void limit_open(unsigned most_open);
  /// The end: no call is taken any more, those under way are answered, at kCloseGrace at the latest, and then `last`
  /// is called and waited for. If a call has never returned, `last` is not called, which is said.
  void close(const char* what, Duration deadline, std::function<Value()> last);
  [[nodiscard]] const std::string& module() const;

 private:
  struct State;
  struct Wait;
  void drain();
  [[nodiscard]] std::shared_ptr<Call> make_call(const char* what, Deadline deadline,
                                                std::function<void(const Answer&)> work,
                                                std::function<void(Value)> done) const;
  void enqueue(const std::shared_ptr<Call>& call);
  [[nodiscard]] std::optional<Error> refusal() const;
  Value call_anyway(const char* what, Deadline deadline, std::function<Value()> work);
  static void work_loop(const std::shared_ptr<State>& state);
  static void supervise(const std::shared_ptr<State>& state);
  static bool add_thread(const std::shared_ptr<State>& state);

  std::shared_ptr<State> state_;
  std::thread supervisor_;
};

/// Calls what makes an object of a module, in time; an object that is made too late is unmade at once.
template <typename Object>
Result<std::shared_ptr<Object>> make_in_time(Calls& calls, const char* what, Duration deadline,
                                             std::function<Result<std::shared_ptr<Object>>()> make,
                                             std::function<void(Object&)> unmake) {
  struct Shared {
    std::shared_ptr<Object> made;
    std::atomic<bool> decided{false};  // by whoever comes first: the maker in time, or the caller who gave up
  };
  const auto shared = std::make_shared<Shared>();
  const auto called = calls.call(what, Deadline::after(deadline),
                                 [shared, make = std::move(make), unmake = std::move(unmake)]() -> Calls::Value {
                                   shared->made = UFFDA_TRY(make());
                                   if (shared->decided.exchange(true)) unmake(*shared->made);
                                   return 0;
                                 });
  if (!called && !shared->decided.exchange(true)) return std::unexpected(called.error());
  return std::move(shared->made);
}

}  // namespace uffda::modules
