// The writes that are under way in a cluster.
//
//   1. start: the ticket's bytes are copied to a Request, and each piece that its range touches gets one operation of
//      librados. Nobody waits;
//   2. a piece that has no object yet is made first, by the keeper: an object of zeroes, then its bit in the header,
//      and only then does the request go on. So no object that the header does not name has anything but zeroes, also
//      one that a writer left who was killed in between;
//   3. answered (a thread of librados): the last answer completes the ticket. The cluster has it then, on all its
//   disks;
//   4. or the timer sees that the deadline has passed, and fails the ticket. The OSD may have the operation still.
//
// Why an older write never comes after a newer one of the same bytes: every operation carries a stamp, and an OSD
// refuses it if the object has had a later one. The stamp is the writer's number and the attempt, a number that grows
// whenever an operation is left that was not answered by an OSD. So what was left has an older stamp than all that
// follows, and once one of those was carried out it is refused. What is refused and still wanted is sent again with the
// stamp of now.
//
// The keeper also renews the lease.
#pragma once

#include <rados/librados.h>

#include <memory>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "plugins/rados/cluster.h"
#include "plugins/rados/image.h"
#include "plugins/rados/lease.h"
#include "uffda/page_source.h"

namespace uffda::sources::rados {

inline constexpr std::size_t kMaxWrites = 512;  ///< with those that were given up and are not answered

class Writes {
 public:
  Writes(std::shared_ptr<const Cluster> cluster, std::shared_ptr<Image> image, std::unique_ptr<Lease> lease);
  Writes(const Writes&) = delete;
  Writes& operator=(const Writes&) = delete;
  /// Requires: close() returned true.
  ~Writes();

  /// Starts the threads. Errors: no_memory.
  Result<void> open();
  /// Answers every ticket, waits until librados knows of none, and gives the lease back. False if it does not answer:
  /// whoever owns this must then keep it for ever.
  bool close();

  /// Requires: the range is within the image. Threads: any.
  void start(WriteTicket ticket) noexcept;

 private:
  struct Request;
  /// What one request writes to one piece.
  struct PieceWrite {
    Request* request;
    std::uint64_t piece;
    std::uint64_t offset;  ///< in the piece
    std::uint64_t length;
    std::uint64_t at;           ///< in the request's bytes
    std::uint64_t attempt = 0;  ///< of its stamp
  };
  struct Request {
    Writes* owner;
    std::vector<PieceWrite> writes;  ///< constant but for `attempt` while librados knows of them
    std::vector<std::byte> bytes;
    // Under the owner's lock:
    std::optional<WriteTicket> ticket;  ///< none: it was taken out
    std::optional<Error> error;
    unsigned holds = 0;  ///< answers that are due, and threads that are at work on it
  };

  static void answered(rados_completion_t completion, void* piece_write);

  Request* take_request(WriteTicket ticket);
  /// False: some piece has no object.
  [[nodiscard]] bool plan(Request& request) const;
  void submit_all(Request& request) noexcept;
  void submit(PieceWrite& write) noexcept;
  [[nodiscard]] int send(const PieceWrite& write, rados_completion_t completion) const;
  void hear(PieceWrite& write, int status) noexcept;
  [[nodiscard]] bool ask_again(const PieceWrite& write, int status);
  [[nodiscard]] Error error_of_write(const PieceWrite& write, int status) const;
  void record(Request& request, Error error);
  /// Takes one hold away; with the last one the ticket is answered and the request is gone.
  void drop(Request& request) noexcept;
  void watch_deadlines() noexcept;
  /// Fails the tickets whose deadline is not after `now`.
  void give_up(TimePoint now, Errc code, std::string_view why);

  void keep() noexcept;
  /// Makes the objects that requests wait for, and lets those go on.
  void make_wanted();
  Result<void> make(const std::set<std::uint64_t>& pieces);
  void renew();

  const std::shared_ptr<Image> image_;
  const std::unique_ptr<Lease> lease_;  ///< the keeper's, while that runs
  const std::uint64_t number_;
  bool said_ = false;  ///< the keeper's: that the lease was not renewed
  std::thread timer_;
  std::thread keeper_;

  Mutex mutex_;
  CondVar changed_;  ///< for the timer and who closes
  CondVar wanted_;   ///< for the keeper
  std::vector<std::unique_ptr<Request>> requests_ UFFDA_GUARDED_BY(mutex_);
  std::vector<Request*> waiting_ UFFDA_GUARDED_BY(mutex_);  ///< for pieces to be made; each with a hold
  std::uint64_t attempt_ UFFDA_GUARDED_BY(mutex_) = 0;
  TimePoint next_look_ UFFDA_GUARDED_BY(mutex_);  ///< of the timer
  bool closing_ UFFDA_GUARDED_BY(mutex_) = false;

  const std::shared_ptr<const Cluster> cluster_;  // last: closing it ends the threads that answer
};

}  // namespace uffda::sources::rados
