#include "plugins/http/event_loop.h"

#include <fmt/format.h>
#include <pthread.h>

#include <algorithm>
#include <csignal>
#include <iterator>
#include <system_error>
#include <utility>

#include "base/log.h"
#include "sources/http/policy.h"

namespace uffda::sources::http {
namespace {

/// Opening waits for so long, retries included.
constexpr Duration kOpenPatience = std::chrono::seconds(20);
/// The thread looks around at least this often.
constexpr Duration kLongestSleep = std::chrono::seconds(1);

void check(CURLMcode code) { UFFDA_ASSERT(code == CURLM_OK || code == CURLM_OUT_OF_MEMORY); }

int milliseconds_until(TimePoint when) {
  const Duration left = std::clamp<Duration>(when - Clock::now(), Duration::zero(), kLongestSleep);
  return static_cast<int>(std::chrono::ceil<std::chrono::milliseconds>(left).count());
}

}  // namespace

Result<std::unique_ptr<EventLoop>> EventLoop::open(Target target) {
  // Safe to call from several threads since 7.84, which is older than what is linked.
  static const CURLcode global = ::curl_global_init(CURL_GLOBAL_DEFAULT);
  if (global != CURLE_OK) return fail(Errc::no_memory, ::curl_easy_strerror(global));
  auto loop = std::make_unique<EventLoop>(std::move(target));
  auto keys = load_credentials(loop->target_);
  if (!keys) return std::unexpected(keys.error().within(loop->target_.name));
  loop->keys_ = *std::move(keys);
  std::promise<Result<Object>> answer;
  std::future<Result<Object>> answered = answer.get_future();
  UFFDA_TRY_VOID(loop->start_thread(std::move(answer)));
  auto object = answered.get();  // probe() has a deadline
  if (!object) return std::unexpected(object.error().within(loop->target_.name));
  return loop;
}

EventLoop::EventLoop(Target target) : target_(std::move(target)), multi_(::curl_multi_init()) {
  UFFDA_ASSERT(multi_ != nullptr);
  const auto connections = static_cast<long>(target_.connections);
  check(::curl_multi_setopt(multi_.get(), CURLMOPT_MAX_HOST_CONNECTIONS, connections));
  check(::curl_multi_setopt(multi_.get(), CURLMOPT_MAXCONNECTS, connections));
  check(::curl_multi_setopt(multi_.get(), CURLMOPT_MAX_CONCURRENT_STREAMS, connections));
  const MutexLock lock(mutex_);
  queued_.reserve(target_.parallel());
}

EventLoop::~EventLoop() {
  {
    const MutexLock lock(mutex_);
    stopping_ = true;
  }
  ::curl_multi_wakeup(multi_.get());
  if (thread_.joinable()) thread_.join();
}

Result<void> EventLoop::start_thread(std::promise<Result<Object>> answer) {
  // No signal of the program is handled there, and SIGPIPE of a TLS connection stays pending: the mask is inherited.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  Result<void> started;
  try {
    thread_ = std::thread([this, promise = std::move(answer)]() mutable { run(std::move(promise)); });
    pthread_setname_np(thread_.native_handle(), "uffda-http");
  } catch (const std::system_error& error) {
    started = fail_errno(error.code().value(), "starting the thread of an http source");
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return started;
}

void EventLoop::fetch(FetchTicket ticket) noexcept {
  if (in_flight_.fetch_add(1) >= target_.parallel()) {
    in_flight_.fetch_sub(1);
    std::move(ticket).fail(Error(Errc::busy, target_.name + ": more fetches in flight than the source takes"));
    return;
  }
  bool first = false;
  {
    const MutexLock lock(mutex_);
    first = queued_.empty();
    queued_.push_back(std::move(ticket));
  }
  if (first) ::curl_multi_wakeup(multi_.get());
}

void EventLoop::run(std::promise<Result<Object>> answer) noexcept {
  Result<Object> object = probe();
  const bool opened = object.has_value();
  if (opened) object_ = *object;
  answer.set_value(std::move(object));
  while (opened && take_queued()) serve();
  cancel_all();
}

Result<Object> EventLoop::probe() {
  const Deadline deadline = Deadline::after(kOpenPatience);
  Probe probe(target_);
  for (unsigned attempt = 1;; ++attempt) {
    probe.start(keys_);
    std::optional<Failure> failure = perform_probe(probe, deadline);
    if (!failure) break;
    // A server that says "later" is asked again; one that is not there is most often a wrong name.
    const Duration wait = std::max(failure->wait, backoff(attempt, random_++));
    const bool again = failure->connected && failure->next == Failure::Next::retry;
    if (!again || Clock::now() + wait >= deadline.when()) return std::unexpected(std::move(failure->error));
    const TimePoint when = Clock::now() + wait;
    while (Clock::now() < when) ::curl_multi_poll(multi_.get(), nullptr, 0, milliseconds_until(when), nullptr);
  }
  return probe.object();
}

std::optional<Failure> EventLoop::perform_probe(Probe& probe, Deadline deadline) {
  check(::curl_multi_add_handle(multi_.get(), probe.handle()));
  std::optional<Failure> failure =
      Failure{.error = Error(Errc::timed_out, "no answer in time"), .next = Failure::Next::give_up};
  while (!deadline.passed()) {
    int running = 0;
    ::curl_multi_perform(multi_.get(), &running);
    int left = 0;
    if (const CURLMsg* const message = ::curl_multi_info_read(multi_.get(), &left); message != nullptr) {
      failure = probe.finish(message->data.result);
      break;
    }
    ::curl_multi_poll(multi_.get(), nullptr, 0, milliseconds_until(deadline.when()), nullptr);
  }
  check(::curl_multi_remove_handle(multi_.get(), probe.handle()));
  return failure;
}

/// False: it is time to go.
bool EventLoop::take_queued() {
  const MutexLock lock(mutex_);
  for (FetchTicket& ticket : queued_) waiting_.emplace_back(std::move(ticket), in_flight_);
  queued_.clear();
  return !stopping_;
}

void EventLoop::serve() {
  expire();
  start_due();
  int running = 0;
  ::curl_multi_perform(multi_.get(), &running);
  hear_finished();
  ::curl_multi_poll(multi_.get(), nullptr, 0, milliseconds_until(next_event()), nullptr);
}

void EventLoop::start_due() {
  const TimePoint now = Clock::now();
  const auto due = std::ranges::partition(waiting_, [&](const Wanted& one) { return one.not_before > now; });
  const auto start = [](const Wanted& one) { return one.range().start; };
  std::ranges::sort(due, {}, start);
  std::vector<Wanted> ready(std::make_move_iterator(due.begin()), std::make_move_iterator(due.end()));
  waiting_.erase(due.begin(), due.end());
  std::vector<ByteRange> ranges;
  for (const Wanted& one : ready) ranges.push_back(one.range());
  std::size_t next = 0;
  while (next < ready.size() && active_.size() < target_.connections) {
    const std::size_t count = joined(std::span(ranges).subspan(next));
    const auto first = std::make_move_iterator(ready.begin() + static_cast<std::ptrdiff_t>(next));
    start_transfer(std::vector<Wanted>(first, first + static_cast<std::ptrdiff_t>(count)));
    next += count;
  }
  for (; next < ready.size(); ++next) waiting_.push_back(std::move(ready[next]));
}

void EventLoop::start_transfer(std::vector<Wanted> parts) {
  if (idle_.empty()) idle_.push_back(std::make_unique<Transfer>(target_));
  active_.push_back(std::move(idle_.back()));
  idle_.pop_back();
  Transfer& transfer = *active_.back();
  transfer.start(std::move(parts), object_, keys_);
  ::curl_easy_setopt(transfer.handle(), CURLOPT_PRIVATE, static_cast<void*>(&transfer));
  check(::curl_multi_add_handle(multi_.get(), transfer.handle()));
}

std::unique_ptr<Transfer> EventLoop::remove(const Transfer& transfer) {
  check(::curl_multi_remove_handle(multi_.get(), transfer.handle()));
  const auto found = std::ranges::find(active_, &transfer, &std::unique_ptr<Transfer>::get);
  std::unique_ptr<Transfer> removed = std::move(*found);
  active_.erase(found);
  return removed;
}

void EventLoop::hear_finished() {
  int left = 0;
  while (const CURLMsg* const message = ::curl_multi_info_read(multi_.get(), &left)) {
    if (message->msg != CURLMSG_DONE) continue;
    const CURLcode code = message->data.result;
    void* transfer = nullptr;
    ::curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &transfer);
    finish(*static_cast<Transfer*>(transfer), code);
  }
}

void EventLoop::finish(Transfer& transfer, CURLcode code) {
  std::unique_ptr<Transfer> ended = remove(transfer);
  const std::optional<Failure> failure = ended->finish(code);
  std::vector<Wanted> left = ended->take_back();
  idle_.push_back(std::move(ended));
  if (failure) give_back(std::move(left), *failure);
}

/// Keys may have been renewed in their file since it was read.
bool EventLoop::keys_changed() {
  auto keys = load_credentials(target_);
  if (!keys || *keys == keys_) return false;
  keys_ = *std::move(keys);
  return true;
}

void EventLoop::give_back(std::vector<Wanted> parts, const Failure& failure) {
  const bool again =
      failure.next == Failure::Next::retry || (failure.next == Failure::Next::with_keys && keys_changed());
  const TimePoint now = Clock::now();
  for (Wanted& part : parts) {
    const Duration wait = std::max(failure.wait, backoff(++part.attempts, random_++));
    if (!again) {
      std::move(part).fail(failure.error.within(target_.name));
    } else if (now + wait >= part.deadline().when() && failure.wait > Duration::zero()) {
      const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(failure.wait).count();
      std::move(part).fail(
          failure.error.within(fmt::format("{}: to be asked again in {} s, which is too late", target_.name, seconds)));
    } else {
      part.not_before = now + wait;
      part.last = failure.error.context();
      waiting_.push_back(std::move(part));
    }
  }
}

void EventLoop::expire() {
  const TimePoint now = Clock::now();
  for (std::size_t i = active_.size(); i-- > 0;) {
    Transfer& transfer = *active_[i];
    const bool wanted = transfer.expire(now, target_.name);
    const bool stalled = now - transfer.heard() >= target_.stall;
    if (wanted && !stalled) continue;
    std::unique_ptr<Transfer> dropped = remove(transfer);
    std::vector<Wanted> left = dropped->take_back();
    idle_.push_back(std::move(dropped));
    for (Wanted& part : left) part.fresh = true;
    give_back(std::move(left), {.error = Error(Errc::io, "nothing came for a while"), .next = Failure::Next::retry});
  }
  for (std::size_t i = waiting_.size(); i-- > 0;) {
    if (waiting_[i].deadline().when() > now) continue;
    Wanted late = std::move(waiting_[i]);
    waiting_.erase(waiting_.begin() + static_cast<std::ptrdiff_t>(i));
    const std::string last = late.last.empty() ? "no answer in time" : "no answer in time; before that: " + late.last;
    std::move(late).fail(Error(Errc::timed_out, target_.name + ": " + last));
  }
}

TimePoint EventLoop::next_event() const {
  const TimePoint now = Clock::now();
  TimePoint next = now + kLongestSleep;
  for (const auto& transfer : active_)
    next = std::min({next, transfer->first_deadline(), transfer->heard() + target_.stall});
  const bool room = active_.size() < target_.connections;
  for (const Wanted& one : waiting_) {
    next = std::min(next, one.deadline().when());
    // Where there is no room, the end of a request wakes.
    if (one.not_before > now || room) next = std::min(next, one.not_before);
  }
  return next;
}

void EventLoop::cancel_all() {
  while (!active_.empty()) {
    std::unique_ptr<Transfer> ended = remove(*active_.back());
    for (Wanted& part : ended->take_back()) waiting_.push_back(std::move(part));
    idle_.push_back(std::move(ended));
  }
  for (Wanted& part : waiting_) {
    std::move(part).fail(Error(Errc::cancelled, target_.name + ": closed while bytes were asked for"));
  }
  waiting_.clear();
}

}  // namespace uffda::sources::http
