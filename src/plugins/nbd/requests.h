// What an NBD source has been asked for and has not answered yet. Shared by its connections:
//
//   fetch -> waiting -> taken by a connection that is ready -> answered
//                 ^---- put back: the connection was lost, or the server asks for patience
//
// A write that was lost with its connection is sent again, too: it is the same bytes. What a lost server had taken and
// not flushed may be gone, so the next flush fails then.
//
// A request that waits fails at its deadline. One that a connection has taken is that connection's: libnbd writes into
// the ticket's buffer until the connection is closed, so only then may the ticket be answered in another way.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "base/mutex.h"
#include "sources/extent_map.h"
#include "uffda/page_source.h"

namespace uffda::nbd {

/// A read, a write, a flush, or a question which ranges are zeroes.
struct Request {
  enum class Kind : std::uint8_t { read, write, flush, status };
  /// Whose answer somebody waits for; none: of a question, and of a flush, whose asker waits for `flushed_`.
  using Ticket = std::variant<std::monostate, FetchTicket, WriteTicket>;
  Kind kind = Kind::read;
  Ticket ticket;
  ByteRange range;
  Deadline deadline = Deadline::at({});
  unsigned refusals = 0;   ///< how often the server has answered with an error, or lost the connection over a question
  TimePoint not_before{};  ///< when it may be sent (again)

  // While a connection has it:
  ByteRange asked;                      ///< `range` in whole blocks of the server
  std::unique_ptr<std::byte[]> bounce;  ///< where `asked` is read to if it is more than `range`
  unsigned outstanding = 0;             ///< commands without an answer
  int error = 0;                        ///< of one of them
  std::uint64_t received = 0;           ///< bytes
};

class RequestTable {
 public:
  /// As many fetches at once, and as many writes.
  static constexpr unsigned kReads = 256;

  RequestTable();

  /// Called once, before everything else. `block`: what the server takes as the smallest.
  void open(std::string name, ByteCount size, std::uint64_t block);

  /// Takes the ticket (true: somebody has to send it), or answers it. Threads: any.
  bool add(FetchTicket ticket);
  bool add(WriteTicket ticket);
  /// Waits until what was written before outlives a loss of power. `asked`: as for extents().
  Result<void> flush(Deadline deadline, const std::function<void()>& asked);
  /// A connection is lost: what the server took and has not flushed may be gone.
  void doubt_unflushed();
  /// What is known of `range` from its start on. If nothing is, asks (`asked` is called then: somebody has to send it)
  /// and waits for the answer.
  Result<std::vector<Extent>> extents(ByteRange range, Deadline deadline, const std::function<void()>& asked);

  /// Moves a share of what may be sent now to the end of `taken`. `ready` connections share it.
  void take(std::vector<Request*>& taken, unsigned ready);
  /// Takes over the outcome of a request that has no outstanding commands: answers it, or puts it back.
  void settle(Request& request);
  /// To be sent again, on any connection.
  void put_back(Request& request);
  /// A run of the answer to a question for block status.
  void record(const Extent& extent);
  /// The server may have become another one.
  void forget_extents();
  /// Fails what waits and is overdue. Returns when there is something to do next: something is due to be sent or to
  /// fail.
  TimePoint expire();
  /// Why requests cannot be sent at the moment, for the messages of those that fail for it.
  void set_trouble(std::string trouble);
  /// From now on every request fails with `why`.
  void close(const Error& why);

 private:
  static constexpr std::size_t kStatusQuestions = 4;
  static constexpr std::size_t kFlushes = 4;

  /// False: there is no need to, or no room.
  bool ask_status_locked(ByteOffset offset) UFFDA_REQUIRES(mutex_);
  void settle_status(const Request& request);
  Request* allocate_locked(Request::Kind kind) UFFDA_REQUIRES(mutex_);
  std::vector<Request*>& free_locked(Request::Kind kind) UFFDA_REQUIRES(mutex_);
  /// Frees the slot. The ticket is the caller's, to be answered with no lock held.
  Request::Ticket release_locked(Request& request) UFFDA_REQUIRES(mutex_);
  void settle_flush(int error);
  Error overdue_locked() const UFFDA_REQUIRES(mutex_);
  /// Whether the request is to be sent again although the server failed it.
  bool retries(Request& request) const;

  std::string name_;
  ByteCount size_;
  std::uint64_t block_ = 1;

  mutable Mutex mutex_;
  CondVar extents_changed_;
  std::vector<Request> slots_;
  std::vector<Request*> free_reads_ UFFDA_GUARDED_BY(mutex_);
  std::vector<Request*> free_writes_ UFFDA_GUARDED_BY(mutex_);
  std::vector<Request*> free_flushes_ UFFDA_GUARDED_BY(mutex_);
  std::vector<Request*> free_questions_ UFFDA_GUARDED_BY(mutex_);
  std::vector<Request*> waiting_ UFFDA_GUARDED_BY(mutex_);     ///< never grows beyond its capacity
  std::vector<ByteRange> questions_ UFFDA_GUARDED_BY(mutex_);  ///< that are under way
  sources::ExtentMap extents_ UFFDA_GUARDED_BY(mutex_);
  std::optional<Error> closed_ UFFDA_GUARDED_BY(mutex_);
  std::string trouble_ UFFDA_GUARDED_BY(mutex_);
  CondVar flushed_;
  bool flushing_ UFFDA_GUARDED_BY(mutex_) = false;       // one at a time
  int flush_error_ UFFDA_GUARDED_BY(mutex_) = 0;         // of the last
  std::uint64_t written_ UFFDA_GUARDED_BY(mutex_) = 0;   // writes that the server took
  std::uint64_t safe_ UFFDA_GUARDED_BY(mutex_) = 0;      // of them, flushed
  std::uint64_t flush_of_ UFFDA_GUARDED_BY(mutex_) = 0;  // what the flush under way makes safe
  bool doubtful_ UFFDA_GUARDED_BY(mutex_) = false;       // what is not safe may be lost
};

}  // namespace uffda::nbd
