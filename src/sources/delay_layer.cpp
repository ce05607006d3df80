// delay+: every fetch and write starts later, as if the source were far away, or at the end of a narrow line. One timer
// thread; any number of them wait at the same time.
#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <array>
#include <system_error>
#include <thread>
#include <variant>

#include "base/mutex.h"
#include "sources/builtin.h"
#include "sources/layer.h"

namespace uffda::sources {

namespace {

class DelayLayer final : public Layer {
 public:
  static Result<std::unique_ptr<PageSource>> wrap(std::unique_ptr<PageSource> inner, const SourceUri& uri) {
    ByteCount bandwidth{};
    if (const std::string* text = uri.find("bandwidth")) {
      auto parsed = parse_size(*text);
      if (parsed && parsed->value == 0) parsed = uffda::fail(Errc::invalid_argument, "must be more than 0");
      if (!parsed) return std::unexpected(parsed.error().within("parameter bandwidth"));
      bandwidth = *parsed;
    }
    const auto delay = UFFDA_TRY(uri.duration("delay", bandwidth.value == 0 ? kDefaultDelay : Duration::zero()));
    const auto jitter = UFFDA_TRY(uri.duration("jitter", std::chrono::nanoseconds(0)));
    const std::uint64_t seed = UFFDA_TRY(uri.number("seed", 0));
    auto layer = std::make_unique<DelayLayer>(std::move(inner), delay, jitter, seed, bandwidth);
    UFFDA_TRY_VOID(layer->start());
    return layer;
  }

  DelayLayer(std::unique_ptr<PageSource> source, std::chrono::nanoseconds delay, std::chrono::nanoseconds jitter,
             std::uint64_t seed, ByteCount bandwidth)
      : Layer(std::move(source)), delay_(delay), jitter_(jitter), seed_(seed), bandwidth_(bandwidth) {
    SourceProperties properties = inner().properties();
    properties.immediate = false;
    waiting_.reserve(std::size_t{2} * properties.parallel);
    opened("delay+" + inner().name(), properties);
  }

  ~DelayLayer() override {
    {
      const MutexLock lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    if (timer_.joinable()) timer_.join();
    std::vector<Waiting> left;  // answered with no lock held
    {
      const MutexLock lock(mutex_);
      left.swap(waiting_);
    }
    for (Waiting& one : left) fail(one.ticket, Error(Errc::cancelled, name() + ": closed"));
  }

 private:
  static constexpr std::chrono::nanoseconds kDefaultDelay = std::chrono::milliseconds(1);

  using Ticket = std::variant<FetchTicket, WriteTicket>;
  struct Waiting {
    TimePoint due;
    Ticket ticket;
  };
  static void fail(Ticket& ticket, Error error) {
    std::visit([&](auto& one) { std::move(one).fail(std::move(error)); }, ticket);
  }
  /// For std heaps, which keep the largest in front: the earliest is wanted there.
  static bool later(const Waiting& a, const Waiting& b) { return a.due > b.due; }

  Result<void> start() {
    // No signal of the program is handled on this thread: the mask is inherited.
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    Result<void> started;
    try {
      timer_ = std::thread([this] { run(); });
      pthread_setname_np(timer_.native_handle(), "uffda-delay");
    } catch (const std::system_error& error) {
      started = fail_errno(error.code().value(), "starting the timer of delay+");
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    return started;
  }

  void do_fetch(FetchTicket ticket) noexcept override {
    const ByteCount length = ticket.range().length;
    wait(std::move(ticket), length);
  }
  void do_write_back(WriteTicket ticket) noexcept override {
    const ByteCount length = ticket.range().length;
    wait(std::move(ticket), length);
  }

  void wait(Ticket ticket, ByteCount length) noexcept {
    bool taken = false;
    {
      const MutexLock lock(mutex_);
      std::size_t& others = held_.at(ticket.index());
      taken = others < properties().parallel;
      if (taken) {
        ++others;
        const TimePoint carried = carry_locked(length);
        waiting_.push_back({carried + delay_ + next_jitter_locked(), std::move(ticket)});
        std::ranges::push_heap(waiting_, later);
      }
    }
    if (taken) {
      changed_.notify_one();
    } else {
      fail(ticket, Error(Errc::busy, name() + ": too many fetches and writes at once"));
    }
  }

  /// When the line is done with that many bytes, behind those that it has to carry already.
  TimePoint carry_locked(ByteCount bytes) UFFDA_REQUIRES(mutex_) {
    const TimePoint now = Clock::now();
    if (bandwidth_.value == 0) return now;
    const double seconds = static_cast<double>(bytes.value) / static_cast<double>(bandwidth_.value);
    line_free_ =
        std::max(line_free_, now) + std::chrono::duration_cast<Duration>(std::chrono::duration<double>(seconds));
    return line_free_;
  }

  Duration next_jitter_locked() UFFDA_REQUIRES(mutex_) {
    return std::chrono::duration_cast<Duration>(jitter_ * mixed_fraction(seed_ + count_++));
  }

  void run() noexcept {
    while (std::optional<Ticket> ticket = next_due()) {
      const Deadline deadline = std::visit([](const auto& one) { return one.deadline(); }, *ticket);
      if (deadline.passed()) {
        fail(*ticket, Error(Errc::timed_out, name() + ": the deadline passed during the delay"));
      } else if (auto* const write = std::get_if<WriteTicket>(&*ticket)) {
        inner().write_back(std::move(*write));
      } else {
        inner().fetch(std::move(std::get<FetchTicket>(*ticket)));
      }
    }
  }

  /// Waits for the next ticket whose time has come; none when it is time to go.
  std::optional<Ticket> next_due() {
    const MutexLock lock(mutex_);
    while (!stopping_) {
      const TimePoint now = Clock::now();
      if (!waiting_.empty() && waiting_.front().due <= now) {
        std::ranges::pop_heap(waiting_, later);
        Ticket ticket = std::move(waiting_.back().ticket);
        waiting_.pop_back();
        --held_.at(ticket.index());
        return ticket;
      }
      changed_.wait_until(mutex_, waiting_.empty() ? now + std::chrono::seconds(10) : waiting_.front().due);
    }
    return std::nullopt;
  }

  const std::chrono::nanoseconds delay_;
  const std::chrono::nanoseconds jitter_;
  const std::uint64_t seed_;
  const ByteCount bandwidth_;  ///< bytes a second; 0: no limit
  std::thread timer_;

  Mutex mutex_;
  CondVar changed_;
  std::vector<Waiting> waiting_ UFFDA_GUARDED_BY(mutex_);  ///< a heap, earliest first; never grows beyond its capacity
  std::array<std::size_t, 2> held_ UFFDA_GUARDED_BY(mutex_){};  ///< of them: fetches and writes
  std::uint64_t count_ UFFDA_GUARDED_BY(mutex_) = 0;
  TimePoint line_free_ UFFDA_GUARDED_BY(mutex_){};
  bool stopping_ UFFDA_GUARDED_BY(mutex_) = false;
};

}  // namespace

SourceLayer delay_layer() {
  return {.name = "delay",
          .help = "starts every fetch and write later, as if the source were far away or its line narrow",
          .parameters = {{"delay", "how much later, such as 2ms (default 1ms; 0 with bandwidth)"},
                         {"bandwidth", "bytes a second that the line carries, such as 500M (default: no limit)"},
                         {"jitter", "up to this much on top, at random (default 0)"},
                         {"seed", "of the random numbers (default 0)"}},
          .wrap = DelayLayer::wrap};
}

}  // namespace uffda::sources
