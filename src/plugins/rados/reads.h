// The fetches that are under way in a cluster.
//
//   1. start: the ticket gets a Request, and each piece of the image that its range touches a read of librados, into a
//      buffer of the Request's own. Nobody waits;
//   2. answered (a thread of librados): the last answer takes the ticket out of the Request, copies the bytes to the
//      ticket's buffer and completes it;
//   3. or the timer sees that the deadline has passed: it takes the ticket out, fails it, and cancels the reads;
//   4. a Request is used anew only when librados has answered all of its reads.
//
// Why nothing is written to a buffer that its owner has back: librados never sees the ticket's buffer, only the
// Request's, which lives until librados has answered. To the ticket's buffer writes only who holds the ticket, and a
// ticket is taken out of its Request once, under the lock. So it does not matter whether librados answers late, after a
// cancel, or never: then the Request is lost, of which there is a bounded number, and with the last one fetches fail.
// The price is a copy of what was read, 6 us for 64 KiB, beside a round trip.
#pragma once

#include <rados/librados.h>

#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "plugins/rados/cluster.h"
#include "plugins/rados/image.h"
#include "uffda/page_source.h"

namespace uffda::sources::rados {

inline constexpr unsigned kParallelReads = 128;
inline constexpr std::size_t kMaxRequests =
    std::size_t{4} * kParallelReads;  ///< with those that librados has not given back

class Reads {
 public:
  Reads(std::shared_ptr<const Cluster> cluster, std::shared_ptr<const Image> image);
  Reads(const Reads&) = delete;
  Reads& operator=(const Reads&) = delete;
  /// Requires: close() returned true.
  ~Reads();

  /// Starts the timer. Errors: no_memory.
  Result<void> open();
  /// Answers every ticket, and waits until librados has given back every buffer. False if it does not: whoever owns
  /// this must then keep it for ever.
  bool close();

  /// Requires: the range is within the image. Threads: any.
  void start(FetchTicket ticket) noexcept;

 private:
  struct Request;
  /// What one request asks of one piece.
  struct PieceRead {
    Request* request;
    std::uint64_t piece;
    std::uint64_t offset;  ///< in the piece
    std::uint64_t length;
    std::uint64_t at;  ///< in the ticket's buffer and in the request's
  };
  struct Request {
    Reads* owner;
    std::vector<PieceRead> reads;  ///< constant while librados knows of them
    std::unique_ptr<std::byte[]> buffer;
    std::size_t buffer_bytes = 0;
    // Under the owner's lock:
    std::optional<FetchTicket> ticket;  ///< none: it was taken out
    std::optional<Error> error;
    unsigned holds = 0;                           ///< answers that are due, and threads that are at work on it
    std::vector<rados_completion_t> completions;  ///< to cancel; released when nothing holds the request
  };

  static void answered(rados_completion_t completion, void* piece_read);
  static void copy_out(const Request& request, const FetchTicket& ticket);

  Request* take_request(FetchTicket& ticket);
  void plan(Request& request, const FetchTicket& ticket) const;
  void submit(PieceRead& read) noexcept;
  void hear(PieceRead& read, int status) noexcept;
  [[nodiscard]] bool ask_again(Request& request, int status);
  [[nodiscard]] Error error_of_read(const PieceRead& read, int status) const;
  void record(Request& request, Error error);
  /// Takes one hold away; with the last one the ticket is answered and the request is free.
  void drop(Request& request) noexcept;
  void free_locked(Request& request) UFFDA_REQUIRES(mutex_);
  void watch_deadlines() noexcept;
  /// Fails the tickets whose deadline is not after `now`, and cancels their reads.
  void give_up(TimePoint now, Errc code, std::string_view why);

  const std::shared_ptr<const Image> image_;
  std::thread timer_;

  Mutex mutex_;
  CondVar changed_;
  std::vector<std::unique_ptr<Request>> requests_ UFFDA_GUARDED_BY(mutex_);  ///< all of them
  std::vector<Request*> free_ UFFDA_GUARDED_BY(mutex_);
  std::vector<Request*> under_way_ UFFDA_GUARDED_BY(mutex_);
  TimePoint next_look_ UFFDA_GUARDED_BY(mutex_);  ///< of the timer
  bool closing_ UFFDA_GUARDED_BY(mutex_) = false;

  const std::shared_ptr<const Cluster> cluster_;  // last: closing it ends the threads that answer
};

}  // namespace uffda::sources::rados
