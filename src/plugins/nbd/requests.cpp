#include "plugins/nbd/requests.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "base/log.h"

namespace uffda::nbd {

namespace {

/// A question for block status asks for the rest of the window of this size.
constexpr std::uint64_t kStatusWindow = std::uint64_t{64} << 20U;
constexpr std::chrono::seconds kStatusTimeout{30};
constexpr std::size_t kMostExtents = 65536;

/// A read that the server fails is asked for again so often, a little later each time.
constexpr unsigned kMostRefusals = 4;
constexpr std::chrono::milliseconds kFirstPatience{20};
/// While a server is about to end.
constexpr std::chrono::milliseconds kShutdownPatience{100};
/// No wait is longer, whatever there is to wait for.
constexpr std::chrono::seconds kIdle{10};

void fail(Request::Ticket& ticket, Error error) {
  if (auto* const fetch = std::get_if<FetchTicket>(&ticket)) {
    std::move(*fetch).fail(std::move(error));
  } else if (auto* const write = std::get_if<WriteTicket>(&ticket)) {
    std::move(*write).fail(std::move(error));
  }
}

}  // namespace

RequestTable::RequestTable() : slots_(std::size_t{2} * kReads + kStatusQuestions + kFlushes), extents_(kMostExtents) {
  const MutexLock lock(mutex_);
  std::size_t next = 0;
  const auto give = [&](std::vector<Request*>& free, std::size_t count) {
    while (count-- != 0) free.push_back(&slots_[next++]);
  };
  give(free_reads_, kReads);
  give(free_writes_, kReads);
  give(free_questions_, kStatusQuestions);
  give(free_flushes_, kFlushes);
  waiting_.reserve(slots_.size());
  questions_.reserve(kStatusQuestions);
}

void RequestTable::open(std::string name, ByteCount size, std::uint64_t block) {
  name_ = std::move(name);
  size_ = size;
  block_ = block;
}

bool RequestTable::add(FetchTicket ticket) {
  std::optional<Error> refused;
  {
    const MutexLock lock(mutex_);
    if (closed_) {
      refused = *closed_;
    } else if (ticket.deadline().passed()) {
      refused = overdue_locked();
    } else if (!extents_.zero(ticket.range())) {
      if (Request* const request = allocate_locked(Request::Kind::read)) {
        request->range = ticket.range();
        request->deadline = ticket.deadline();
        request->ticket.emplace<FetchTicket>(std::move(ticket));
        waiting_.push_back(request);
        ask_status_locked(request->range.start);
        return true;
      }
      refused = Error(Errc::busy, name_ + ": too many fetches at once");
    }
  }
  if (refused) {
    std::move(ticket).fail(*std::move(refused));
    return false;
  }
  const ByteCount length = ticket.range().length;
  std::memset(ticket.buffer().data(), 0, length.value);
  std::move(ticket).complete(length);
  return false;
}

bool RequestTable::add(WriteTicket ticket) {
  std::optional<Error> refused;
  {
    const MutexLock lock(mutex_);
    if (closed_) {
      refused = *closed_;
    } else if (ticket.deadline().passed()) {
      refused = overdue_locked();
    } else if (Request* const request = allocate_locked(Request::Kind::write)) {
      extents_.record({ticket.range(), Extent::Kind::data});  // whatever the server said of it
      request->range = ticket.range();
      request->deadline = ticket.deadline();
      request->ticket.emplace<WriteTicket>(std::move(ticket));
      waiting_.push_back(request);
      return true;
    } else {
      refused = Error(Errc::busy, name_ + ": too many writes at once");
    }
  }
  std::move(ticket).fail(*std::move(refused));
  return false;
}

Result<void> RequestTable::flush(Deadline deadline, const std::function<void()>& asked) {
  {
    const MutexLock lock(mutex_);
    while (flushing_) {
      if (deadline.passed()) return std::unexpected(overdue_locked());
      flushed_.wait_until(mutex_, deadline.when());
    }
    if (closed_) return std::unexpected(*closed_);
    Request* const request = allocate_locked(Request::Kind::flush);
    UFFDA_ASSERT(request != nullptr);
    request->deadline = deadline;
    flushing_ = true;
    flush_of_ = written_;
    waiting_.push_back(request);
  }
  asked();
  const MutexLock lock(mutex_);
  while (flushing_) flushed_.wait_until(mutex_, Clock::now() + kIdle);  // it has a deadline of its own
  const bool lost = std::exchange(doubtful_, false);
  if (flush_error_ != 0) return fail_errno(flush_error_, name_ + ": the server cannot flush");
  if (lost) return uffda::fail(Errc::io, name_ + ": the server was lost, and perhaps what was written and not flushed");
  return {};
}

void RequestTable::settle_flush(int error) {
  {
    const MutexLock lock(mutex_);
    flush_error_ = error;
    if (error == 0) safe_ = std::max(safe_, flush_of_);
    flushing_ = false;
  }
  flushed_.notify_all();
}

void RequestTable::doubt_unflushed() {
  const MutexLock lock(mutex_);
  if (written_ == safe_) return;
  doubtful_ = true;
  safe_ = written_;
}

bool RequestTable::ask_status_locked(ByteOffset offset) {
  const auto holds = [offset](ByteRange range) { return range.start <= offset && offset < range.end(); };
  if (closed_ || extents_.knows(offset) || std::ranges::any_of(questions_, holds)) return false;
  Request* const question = allocate_locked(Request::Kind::status);
  if (question == nullptr) return false;
  const ByteOffset start{align_down(offset.value, block_)};
  const std::uint64_t end = std::min(align_down(start.value, kStatusWindow) + kStatusWindow, size_.value);
  question->range = {start, ByteOffset{end} - start};
  question->deadline = Deadline::after(kStatusTimeout);
  questions_.push_back(question->range);
  waiting_.push_back(question);
  return true;
}

Result<std::vector<Extent>> RequestTable::extents(ByteRange range, Deadline deadline,
                                                  const std::function<void()>& asked) {
  while (true) {
    bool asks = false;
    {
      const MutexLock lock(mutex_);
      if (std::vector<Extent> known = extents_.known(range); !known.empty()) return known;
      if (closed_) return std::unexpected(*closed_);
      if (deadline.passed()) return std::unexpected(overdue_locked());
      asks = ask_status_locked(range.start);
      if (!asks) extents_changed_.wait_until(mutex_, deadline.when());
    }
    if (asks) asked();
  }
}

void RequestTable::take(std::vector<Request*>& taken, unsigned ready) {
  const TimePoint now = Clock::now();
  const MutexLock lock(mutex_);
  std::size_t share = (waiting_.size() + ready - 1) / std::max(ready, 1U);
  const auto goes = [&](Request* request) {
    if (share == 0 || request->not_before > now) return false;
    --share;
    taken.push_back(request);
    return true;
  };
  // In order, each asked once.
  auto kept = waiting_.begin();
  for (Request* const request : waiting_) {
    if (!goes(request)) *kept++ = request;
  }
  waiting_.erase(kept, waiting_.end());
}

bool RequestTable::retries(Request& request) const {
  const auto later = [&](Duration patience) {
    request.not_before = Clock::now() + patience;
    return true;
  };
  switch (request.error) {
    case ENOTCONN:
      return true;
    case ESHUTDOWN:
      return later(kShutdownPatience);
    case EPERM:
    case EINVAL:
    case EOVERFLOW:
    case ENOTSUP:
      return false;  // it would say so again
    default:
      return ++request.refusals < kMostRefusals && later(kFirstPatience * (1U << request.refusals));
  }
}

void RequestTable::settle(Request& request) {
  const bool read = request.kind == Request::Kind::read;
  const bool question = request.kind == Request::Kind::status;
  // libnbd completes a reply whose chunks do not add up to what was asked for.
  if (read && request.error == 0 && request.received != request.asked.length.value) request.error = EPROTO;
  if (request.error != 0 && (!question || request.error == ENOTCONN) && retries(request)) {
    put_back(request);
    return;
  }
  const int error = request.error;
  if (question) settle_status(request);
  if (read && error == 0 && request.bounce != nullptr) {
    const ByteCount skipped = request.range.start - request.asked.start;
    const FetchTicket& ticket = std::get<FetchTicket>(request.ticket);
    std::memcpy(ticket.buffer().data(), request.bounce.get() + skipped.value, request.range.length.value);
  }
  const ByteRange range = request.range;
  const Request::Kind kind = request.kind;
  Request::Ticket ticket;
  {
    const MutexLock lock(mutex_);
    ticket = release_locked(request);
    if (kind == Request::Kind::write && error == 0) ++written_;
  }
  if (question) extents_changed_.notify_all();  // after the slot is free: who waits may have to ask on
  if (kind == Request::Kind::flush) settle_flush(error);
  if (error != 0) {
    fail(ticket, Error::from_errno(error, fmt::format("{}: the server cannot {} {} bytes at {}", name_,
                                                      read ? "read" : "write", range.length.value, range.start.value)));
  } else if (auto* const fetch = std::get_if<FetchTicket>(&ticket)) {
    std::move(*fetch).complete(range.length);
  } else if (auto* const write = std::get_if<WriteTicket>(&ticket)) {
    std::move(*write).complete();
  }
}

void RequestTable::settle_status(const Request& request) {
  {
    const MutexLock lock(mutex_);
    // It cannot tell, and is not asked again.
    if (request.error != 0) extents_.record({request.range, Extent::Kind::data});
    // An answer may be as short as the server likes, but it has to lead on.
    const ByteRange first{request.range.start, {std::min(block_, request.range.length.value)}};
    if (const auto known = extents_.known(first); known.empty() || known.back().range.end() != first.end())
      extents_.record({first, Extent::Kind::data});
  }
}

void RequestTable::put_back(Request& request) {
  request.bounce.reset();
  request.outstanding = 0;
  request.error = 0;
  if (request.kind == Request::Kind::status && ++request.refusals >= kMostRefusals) {
    request.error = ENOTSUP;
    settle_status(request);
    {
      const MutexLock lock(mutex_);
      release_locked(request);
    }
    extents_changed_.notify_all();
    return;
  }
  const bool flush = request.kind == Request::Kind::flush;
  Request::Ticket ticket;
  std::optional<Error> why;
  {
    const MutexLock lock(mutex_);
    if (!closed_) {
      waiting_.push_back(&request);
      return;
    }
    why = closed_;
    ticket = release_locked(request);
  }
  if (flush) settle_flush(EIO);
  fail(ticket, *std::move(why));
}

void RequestTable::record(const Extent& extent) {
  {
    const MutexLock lock(mutex_);
    extents_.record(extent);
  }
  extents_changed_.notify_all();
}

void RequestTable::forget_extents() {
  const MutexLock lock(mutex_);
  extents_.clear();
}

TimePoint RequestTable::expire() {
  const TimePoint now = Clock::now();
  TimePoint next = now + kIdle;
  std::vector<Request::Ticket> overdue;
  bool flush = false;
  std::optional<Error> why;
  {
    const MutexLock lock(mutex_);
    std::erase_if(waiting_, [&](Request* request) UFFDA_REQUIRES(mutex_) {
      if (request->deadline.when() > now) {
        next = std::min(next, request->deadline.when());
        if (request->not_before > now) next = std::min(next, request->not_before);
        return false;
      }
      flush = flush || request->kind == Request::Kind::flush;
      overdue.push_back(release_locked(*request));
      return true;
    });
    if (!overdue.empty()) why = overdue_locked();
  }
  if (flush) settle_flush(ETIMEDOUT);
  for (Request::Ticket& ticket : overdue) fail(ticket, *why);
  return next;
}

void RequestTable::set_trouble(std::string trouble) {
  const MutexLock lock(mutex_);
  trouble_ = std::move(trouble);
}

void RequestTable::close(const Error& why) {
  std::vector<Request::Ticket> left;
  bool flush = false;
  {
    const MutexLock lock(mutex_);
    if (!closed_) closed_ = why;
    for (Request* const request : std::exchange(waiting_, {})) {
      flush = flush || request->kind == Request::Kind::flush;
      left.push_back(release_locked(*request));
    }
  }
  extents_changed_.notify_all();
  if (flush) settle_flush(EIO);
  for (Request::Ticket& ticket : left) fail(ticket, why);
}

std::vector<Request*>& RequestTable::free_locked(Request::Kind kind) {
  switch (kind) {
    case Request::Kind::read:
      return free_reads_;
    case Request::Kind::write:
      return free_writes_;
    case Request::Kind::flush:
      return free_flushes_;
    case Request::Kind::status:
      break;
  }
  return free_questions_;
}

Request* RequestTable::allocate_locked(Request::Kind kind) {
  std::vector<Request*>& free = free_locked(kind);
  if (free.empty()) return nullptr;
  Request* const request = free.back();
  free.pop_back();
  *request = Request{};
  request->kind = kind;
  return request;
}

Request::Ticket RequestTable::release_locked(Request& request) {
  request.bounce.reset();
  if (request.kind == Request::Kind::status) std::erase(questions_, request.range);
  free_locked(request.kind).push_back(&request);
  return std::exchange(request.ticket, std::monostate{});
}

Error RequestTable::overdue_locked() const {
  return Error(Errc::timed_out, trouble_.empty() ? name_ + ": the server did not answer before the deadline"
                                                 : name_ + ": the deadline passed: " + trouble_);
}

}  // namespace uffda::nbd
