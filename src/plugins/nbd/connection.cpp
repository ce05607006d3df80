#include "plugins/nbd/connection.h"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <new>
#include <span>
#include <system_error>

#include <fmt/format.h>

#include "base/log.h"
#include "os/signals.h"

namespace uffda::nbd {

namespace {

/// Between attempts to connect: the first comes at once.
constexpr std::chrono::milliseconds kFirstBackOff{10};
constexpr std::chrono::milliseconds kLongestBackOff{1000};
/// A connection that never came about is not tried more often, as long as another one works.
constexpr unsigned kMostFirstAttempts = 3;

/// After so many attempts in a row that came to nothing; at least one.
Duration back_off(unsigned attempts) {
  return std::min<Duration>(kFirstBackOff * (1U << std::min(attempts - 1, 10U)), kLongestBackOff);
}

int command_answered(void* data, int* error) {
  auto* const request = static_cast<Request*>(data);
  if (*error != 0) request->error = *error;
  --request->outstanding;
  return 1;
}

int chunk_came(void* data, const void*, std::size_t count, std::uint64_t, unsigned status, int*) {
  if (status != LIBNBD_READ_ERROR) static_cast<Request*>(data)->received += count;
  return 0;
}

/// What the callback of a question for block status needs.
struct StatusRun {
  RequestTable* requests;
  std::uint64_t size;
};

int status_answered(void* data, const char*, std::uint64_t offset, std::uint32_t* entries, std::size_t count, int*) {
  const auto* const run = static_cast<StatusRun*>(data);
  for (std::size_t i = 0; i + 1 < count && offset < run->size; i += 2) {
    const std::uint64_t length = std::min<std::uint64_t>(entries[i], run->size - offset);
    const bool zero = (entries[i + 1] & LIBNBD_STATE_ZERO) != 0;
    run->requests->record({{{offset}, {length}}, zero ? Extent::Kind::zero : Extent::Kind::data});
    offset += length;
  }
  return 0;
}

}  // namespace

Fleet::Fleet(sources::NbdAddress address, RequestTable& requests) : address_(std::move(address)), requests_(requests) {}

Fleet::~Fleet() {
  // None goes before all have ended: they wake each other.
  for (const auto& connection : connections_) connection->stop();
  for (const auto& connection : connections_) connection->join();
}

Result<void> Fleet::start(Session first, unsigned count) {
  size_ = first.size;
  std::optional<Session> session(std::move(first));
  for (unsigned i = 0; i < count; ++i)
    connections_.push_back(std::make_unique<Connection>(*this, std::exchange(session, std::nullopt)));
  for (const auto& connection : connections_) UFFDA_TRY_VOID(connection->start());
  return {};
}

void Fleet::wake_one() {
  const unsigned turn = turn_.fetch_add(1, std::memory_order_relaxed);
  for (std::size_t i = 0; i < connections_.size(); ++i) {
    Connection& connection = *connections_[(turn + i) % connections_.size()];
    if (connection.ready()) return connection.wake();
  }
  connections_.front()->wake();  // it watches the deadline
}

void Fleet::wake_all() {
  for (const auto& connection : connections_) connection->wake();
}

Connection::Connection(Fleet& fleet, std::optional<Session> session)
    : fleet_(fleet), requests_(fleet.requests_), session_(std::move(session)) {
  sent_.reserve(std::size_t{2} * RequestTable::kReads);
  taken_.reserve(std::size_t{2} * RequestTable::kReads);
}

void Connection::stop() {
  stopping_ = true;
  wake();
}

void Connection::join() {
  if (thread_.joinable()) thread_.join();
}

Result<void> Connection::start() {
  wake_fd_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake_fd_) return fail_errno(errno, "eventfd for an NBD connection");
  if (session_) adopt(*std::exchange(session_, std::nullopt));
  const os::BlockedSignals blocked;
  try {
    thread_ = std::thread([this] { run(); });
    pthread_setname_np(thread_.native_handle(), "uffda-nbd");
  } catch (const std::system_error& error) {
    return fail_errno(error.code().value(), "starting the thread of an NBD connection");
  }
  return {};
}

void Connection::wake() noexcept {
  if (!wake_fd_ || woken_.exchange(true)) return;
  const std::uint64_t one = 1;
  // Cannot fail: the counter would have to be near 2^64.
  [[maybe_unused]] const ssize_t written = ::write(wake_fd_.get(), &one, sizeof one);
}

void Connection::heard_wake() noexcept {
  if (!woken_) return;
  std::uint64_t count = 0;
  if (::read(wake_fd_.get(), &count, sizeof count) > 0) woken_ = false;
}

void Connection::run() noexcept {
  while (!stopping_) {
    if (session_) {
      serve();
    } else if (!connect_again()) {
      return;
    }
  }
  if (session_ && sent_.empty()) nbd_aio_disconnect(session_->handle.get(), 0);
  lose("closed");
}

bool Connection::connect_again() {
  if (Clock::now() < retry_at_) {
    pause(std::min(retry_at_, requests_.expire()));
    return true;
  }
  const Waiting waiting{.wake = wake_fd_.get(), .before_wait = [this]() -> Result<TimePoint> {
                          heard_wake();
                          if (stopping_) return uffda::fail(Errc::cancelled, "closed");
                          return requests_.expire();
                        }};
  auto session = connect(fleet_.address_, Deadline::after(fleet_.address_.connect_timeout), waiting);
  if (session && session->size != fleet_.size_) {
    const Error changed(Errc::io, fmt::format("{}: the export has {} bytes now and had {}: open it anew",
                                              fleet_.address_.name, session->size.value, fleet_.size_.value));
    log(LogLevel::error, "{}", changed.context());
    requests_.close(changed);
    return false;
  }
  if (session) {
    adopt(*std::move(session));
    return true;
  }
  ++attempts_;
  retry_at_ = Clock::now() + back_off(attempts_);
  if (fleet_.ready_ == 0) requests_.set_trouble(session.error().context());
  const bool worth_it = was_ready_ || attempts_ < kMostFirstAttempts || fleet_.ready_ == 0;
  if (!worth_it) log(LogLevel::info, "{}: goes on with fewer connections", session.error().context());
  return worth_it;
}

void Connection::adopt(Session session) {
  session_ = std::move(session);
  if (was_ready_) log(LogLevel::info, "{}: connected again", fleet_.address_.name);
  was_ready_ = true;
  useful_ = false;
  ready_ = true;
  if (fleet_.ready_.fetch_add(1) == 0) requests_.set_trouble({});
}

void Connection::lose(std::string why) {
  if (!session_) return;
  session_.reset();  // from here on nothing writes into the buffers of what was sent
  ready_ = false;
  fleet_.ready_.fetch_sub(1);
  // One that has answered nothing counts as a failed attempt: a server may accept and drop clients in a circle.
  attempts_ = useful_ ? 0 : attempts_ + 1;
  retry_at_ = Clock::now() + (useful_ ? Duration{} : back_off(attempts_));
  if (!stopping_) {
    log(LogLevel::info, "{}: {}: connecting again", fleet_.address_.name, why);
    requests_.set_trouble(std::move(why));
    requests_.forget_extents();
    requests_.doubt_unflushed();
  }
  for (Request* const request : sent_) requests_.put_back(*request);
  sent_.clear();
  if (!stopping_) fleet_.wake_all();
}

void Connection::serve() {
  heard_wake();
  // Some cannot be sent, and are settled without an answer.
  do {
    send_what_waits();
  } while (settle_answered() && !session_->lost());
  if (session_->lost()) {
    lose("the server closed the connection");
    return;
  }
  TimePoint until = requests_.expire();
  for (const Request* const request : sent_) until = std::min(until, request->deadline.when());
  const auto worked = wait_and_work(*session_->handle, wake_fd_.get(), until);
  settle_answered();
  if (!worked || session_->lost()) {
    lose(worked ? "the server closed the connection" : worked.error().context());
    return;
  }
  // Only a closed connection lets go of a buffer.
  const auto overdue = [](const Request* request) { return request->deadline.passed(); };
  if (std::ranges::any_of(sent_, overdue)) lose("the server did not answer before the deadline");
}

void Connection::send_what_waits() {
  do {
    taken_.clear();
    requests_.take(taken_, std::max(fleet_.ready_.load(), 1U));
    for (Request* const request : taken_) {
      sent_.push_back(request);
      send(*request);
    }
  } while (!taken_.empty());
}

void Connection::send(Request& request) {
  request.error = 0;
  request.outstanding = 0;
  request.received = 0;
  switch (request.kind) {
    case Request::Kind::read:
      return send_read(request);
    case Request::Kind::write:
      return send_write(request);
    case Request::Kind::flush:
      return send_flush(request);
    case Request::Kind::status:
      return send_status(request);
  }
}

void Connection::send_write(Request& request) {
  const std::span<const std::byte> bytes = std::get<WriteTicket>(request.ticket).bytes();
  for (std::uint64_t at = 0; at < bytes.size();) {
    const std::uint64_t length = std::min<std::uint64_t>(session_->max_block, bytes.size() - at);
    ++request.outstanding;
    if (nbd_aio_pwrite(session_->handle.get(), bytes.data() + at, length, request.range.start.value + at,
                       {.callback = command_answered, .user_data = &request, .free = nullptr}, 0) < 0) {
      --request.outstanding;
      request.error = session_->lost() ? ENOTCONN : EINVAL;
      return;
    }
    at += length;
  }
}

void Connection::send_flush(Request& request) {
  if (nbd_can_flush(session_->handle.get()) != 1) return;  // it keeps nothing that power could take
  ++request.outstanding;
  if (nbd_aio_flush(session_->handle.get(), {.callback = command_answered, .user_data = &request, .free = nullptr}, 0) <
      0) {
    --request.outstanding;
    request.error = session_->lost() ? ENOTCONN : EINVAL;
  }
}

void Connection::send_read(Request& request) {
  const std::uint64_t start = align_down(request.range.start.value, session_->min_block);
  const std::uint64_t end = std::min(align_up(request.range.end().value, session_->min_block), fleet_.size_.value);
  request.asked = {{start}, {end - start}};
  std::byte* to = std::get<FetchTicket>(request.ticket).buffer().data();
  if (request.asked != request.range) {
    request.bounce.reset(new (std::nothrow) std::byte[end - start]);
    if (request.bounce == nullptr) {
      request.error = ENOMEM;
      return;
    }
    to = request.bounce.get();
  }
  for (std::uint64_t at = start; at < end;) {
    const std::uint64_t length = std::min(session_->max_block, end - at);
    ++request.outstanding;
    if (nbd_aio_pread_structured(session_->handle.get(), to + (at - start), length, at,
                                 {.callback = chunk_came, .user_data = &request, .free = nullptr},
                                 {.callback = command_answered, .user_data = &request, .free = nullptr}, 0) < 0) {
      --request.outstanding;
      request.error = session_->lost() ? ENOTCONN : EINVAL;
      return;
    }
    at += length;
  }
}

void Connection::send_status(Request& request) {
  if (!session_->tells_block_status) {
    request.error = ENOTSUP;
    return;
  }
  const auto free = [](void* run) { delete static_cast<StatusRun*>(run); };
  auto* const run = new (std::nothrow) StatusRun{&requests_, fleet_.size_.value};
  ++request.outstanding;
  if (run == nullptr ||
      nbd_aio_block_status(session_->handle.get(), request.range.length.value, request.range.start.value,
                           {.callback = status_answered, .user_data = run, .free = free},
                           {.callback = command_answered, .user_data = &request, .free = nullptr}, 0) < 0) {
    --request.outstanding;
    request.error = session_->lost() ? ENOTCONN : ENOTSUP;
  }
}

bool Connection::settle_answered() {
  // Moved out first: an answer may lead to new fetches, and those to nothing that is in this list.
  taken_.clear();
  std::erase_if(sent_, [this](Request* request) {
    if (request->outstanding != 0) return false;
    useful_ = useful_ || request->error == 0;
    taken_.push_back(request);
    return true;
  });
  for (Request* const request : taken_) requests_.settle(*request);
  return !taken_.empty();
}

void Connection::pause(TimePoint until) {
  pollfd woken{.fd = wake_fd_.get(), .events = POLLIN, .revents = 0};
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - Clock::now()).count();
  if (::poll(&woken, 1, static_cast<int>(std::clamp<std::int64_t>(left, 0, 10000))) > 0) heard_wake();
}

}  // namespace uffda::nbd
