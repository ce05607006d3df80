#include "plugins/nbd/requests.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <utility>

#include <fmt/format.h>

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

}  // namespace

RequestTable::RequestTable() : slots_(kReads + kStatusQuestions), extents_(kMostExtents) {
  const MutexLock lock(mutex_);
  for (Request& slot : slots_) {
    slot.kind = free_reads_.size() < kReads ? Request::Kind::read : Request::Kind::status;
    (slot.kind == Request::Kind::read ? free_reads_ : free_questions_).push_back(&slot);
  }
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
        request->ticket.emplace(std::move(ticket));
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
  // libnbd completes a reply whose chunks do not add up to what was asked for.
  if (read && request.error == 0 && request.received != request.asked.length.value) request.error = EPROTO;
  if (request.error != 0 && (read || request.error == ENOTCONN) && retries(request)) {
    put_back(request);
    return;
  }
  const int error = request.error;
  if (!read) settle_status(request);
  if (read && error == 0 && request.bounce != nullptr) {
    const ByteCount skipped = request.range.start - request.asked.start;
    std::memcpy(request.ticket->buffer().data(), request.bounce.get() + skipped.value, request.range.length.value);
  }
  const ByteRange range = request.range;
  std::optional<FetchTicket> ticket;
  {
    const MutexLock lock(mutex_);
    ticket = release_locked(request);
  }
  if (!read) extents_changed_.notify_all();  // after the slot is free: who waits may have to ask on
  if (!ticket) return;
  if (error == 0) {
    std::move(*ticket).complete(range.length);
  } else {
    std::move(*ticket).fail(Error::from_errno(
        error, fmt::format("{}: the server cannot read {} bytes at {}", name_, range.length.value, range.start.value)));
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
  std::optional<FetchTicket> ticket;
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
  if (ticket) std::move(*ticket).fail(*std::move(why));
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
  std::vector<FetchTicket> overdue;
  std::optional<Error> why;
  {
    const MutexLock lock(mutex_);
    std::erase_if(waiting_, [&](Request* request) UFFDA_REQUIRES(mutex_) {
      if (request->deadline.when() > now) {
        next = std::min(next, request->deadline.when());
        if (request->not_before > now) next = std::min(next, request->not_before);
        return false;
      }
      if (std::optional<FetchTicket> ticket = release_locked(*request)) overdue.push_back(*std::move(ticket));
      return true;
    });
    if (!overdue.empty()) why = overdue_locked();
  }
  for (FetchTicket& ticket : overdue) std::move(ticket).fail(*why);
  return next;
}

void RequestTable::set_trouble(std::string trouble) {
  const MutexLock lock(mutex_);
  trouble_ = std::move(trouble);
}

void RequestTable::close(const Error& why) {
  std::vector<FetchTicket> left;
  {
    const MutexLock lock(mutex_);
    if (!closed_) closed_ = why;
    for (Request* const request : std::exchange(waiting_, {})) {
      if (std::optional<FetchTicket> ticket = release_locked(*request)) left.push_back(*std::move(ticket));
    }
  }
  extents_changed_.notify_all();
  for (FetchTicket& ticket : left) std::move(ticket).fail(why);
}

Request* RequestTable::allocate_locked(Request::Kind kind) {
  auto& free = kind == Request::Kind::read ? free_reads_ : free_questions_;
  if (free.empty()) return nullptr;
  Request* const request = free.back();
  free.pop_back();
  *request = Request{};
  request->kind = kind;
  return request;
}

std::optional<FetchTicket> RequestTable::release_locked(Request& request) {
  request.bounce.reset();
  if (request.kind == Request::Kind::status) {
    std::erase(questions_, request.range);
    free_questions_.push_back(&request);
    return std::nullopt;
  }
  free_reads_.push_back(&request);
  return std::exchange(request.ticket, std::nullopt);
}

Error RequestTable::overdue_locked() const {
  return Error(Errc::timed_out, trouble_.empty() ? name_ + ": the server did not answer before the deadline"
                                                 : name_ + ": the deadline passed: " + trouble_);
}

}  // namespace uffda::nbd
