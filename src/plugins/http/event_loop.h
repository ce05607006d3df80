// The one thread of an http source. It owns libcurl's multi handle and every transfer; others only leave tickets.
//
//   1. fetch() puts a ticket into a queue and wakes the thread;
//   2. the thread takes what is queued at that moment, joins tickets that follow each other into requests, and starts
//   as
//      many as may be in flight;
//   3. bytes go into the tickets' buffers as they come, and each ticket is answered when it has all of its own;
//   4. a request that failed in a passing way gives its tickets back: they wait a while and are asked for anew;
//   5. a ticket is failed at its deadline, whatever its request does. A request of which nothing comes is dropped, and
//      its tickets go over a new connection.
#pragma once

#include <curl/curl.h>

#include <atomic>
#include <future>
#include <memory>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "plugins/http/probe.h"
#include "plugins/http/target.h"
#include "plugins/http/transfer.h"

namespace uffda::sources::http {

class EventLoop {
 public:
  /// Asks what the object is, and waits for the answer. Errors: what Failure says, timed_out.
  static Result<std::unique_ptr<EventLoop>> open(Target target);
  ~EventLoop();  ///< cancels what is not answered
  EventLoop(const EventLoop&) = delete;
  EventLoop& operator=(const EventLoop&) = delete;

  explicit EventLoop(Target target);
  [[nodiscard]] const Target& target() const { return target_; }
  [[nodiscard]] const Object& object() const { return object_; }
  /// Threads: any.
  void fetch(FetchTicket ticket) noexcept;

 private:
  struct FreeMulti {
    void operator()(CURLM* multi) const { ::curl_multi_cleanup(multi); }
  };

  Result<void> start_thread(std::promise<Result<Object>> answer);
  void run(std::promise<Result<Object>> answer) noexcept;
  Result<Object> probe();
  std::optional<Failure> perform_probe(Probe& probe, Deadline deadline);

  bool take_queued();
  void serve();
  void start_due();
  void start_transfer(std::vector<Wanted> parts);
  void hear_finished();
  void finish(Transfer& transfer, CURLcode code);
  void give_back(std::vector<Wanted> parts, const Failure& failure);
  [[nodiscard]] bool keys_changed();
  void expire();
  std::unique_ptr<Transfer> remove(const Transfer& transfer);
  [[nodiscard]] TimePoint next_event() const;
  void cancel_all();

  const Target target_;
  Object object_;
  Credentials keys_;

  // The thread's own.
  std::unique_ptr<CURLM, FreeMulti> multi_;
  std::vector<std::unique_ptr<Transfer>> active_;
  std::vector<std::unique_ptr<Transfer>> idle_;
  std::vector<Wanted> waiting_;
  std::uint64_t random_ = 0;

  std::atomic<unsigned> in_flight_{0};
  Mutex mutex_;
  std::vector<FetchTicket> queued_ UFFDA_GUARDED_BY(mutex_);  ///< never more than target_.parallel()
  bool stopping_ UFFDA_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace uffda::sources::http
