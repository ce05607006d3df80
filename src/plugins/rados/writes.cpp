#include "plugins/rados/writes.h"

#include <fmt/format.h>
#include <pthread.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

#include "base/log.h"
#include "os/signals.h"
#include "plugins/rados/write_op.h"
#include "plugins/rados/writer.h"

namespace uffda::sources::rados {
namespace {

constexpr std::chrono::seconds kIdleTimer{10};  ///< when nothing is due earlier
constexpr std::chrono::seconds kCloseTime{10};
constexpr std::chrono::milliseconds kMakeAgain{100};
constexpr unsigned kMakesUnderWay = 32;
constexpr const char* kStamp = "uffda.stamp";

}  // namespace

Writes::Writes(std::shared_ptr<const Cluster> cluster, std::shared_ptr<Image> image, std::unique_ptr<Lease> lease)
    : image_(std::move(image)),
      lease_(std::move(lease)),
      number_(lease_->number()),
      next_look_(Clock::now()),
      cluster_(std::move(cluster)) {}

Writes::~Writes() = default;

Result<void> Writes::open() {
  const os::BlockedSignals blocked;
  try {
    timer_ = std::thread([this] { watch_deadlines(); });
    pthread_setname_np(timer_.native_handle(), "uffda-rados-wr");
    keeper_ = std::thread([this] { keep(); });
    pthread_setname_np(keeper_.native_handle(), "uffda-rados-kp");
  } catch (const std::system_error& error) {
    close();
    return fail_errno(error.code().value(), "starting the threads that write to rados:");
  }
  return {};
}

bool Writes::close() {
  {
    const MutexLock lock(mutex_);
    closing_ = true;
    changed_.notify_all();
    wanted_.notify_all();
  }
  if (timer_.joinable()) timer_.join();
  give_up(TimePoint::max(), Errc::cancelled, "closed");
  if (keeper_.joinable()) keeper_.join();
  {
    const TimePoint limit = Clock::now() + kCloseTime;
    const MutexLock lock(mutex_);
    while (!requests_.empty() && Clock::now() < limit) changed_.wait_until(mutex_, limit);
    if (!requests_.empty()) return false;
    if (attempt_ > 0) return true;  // an OSD may have a write yet: who comes next is to keep it out
  }
  lease_->release();
  return true;
}

void Writes::start(WriteTicket ticket) noexcept {
  Request* const request = take_request(std::move(ticket));
  if (request == nullptr) return;
  if (plan(*request)) {
    submit_all(*request);
    return;
  }
  bool late = false;
  {
    const MutexLock lock(mutex_);
    late = closing_;
    if (!late) waiting_.push_back(request);
    wanted_.notify_all();
  }
  if (!late) return;
  record(*request, Error(Errc::cancelled, cluster_->name() + ": closed"));
  drop(*request);
}

/// Comes with one hold, the caller's. Null: the ticket is failed.
Writes::Request* Writes::take_request(WriteTicket ticket) {
  auto made = std::make_unique<Request>();
  Request* const request = made.get();
  request->owner = this;
  request->bytes.assign(ticket.bytes().begin(), ticket.bytes().end());
  request->holds = 1;
  {
    const MutexLock lock(mutex_);
    if (requests_.size() < kMaxWrites && !closing_) {
      const TimePoint due = ticket.deadline().when();
      request->ticket.emplace(std::move(ticket));
      const ByteRange range = request->ticket->range();
      for (ByteOffset at = range.start; at < range.end();) {
        const std::uint64_t piece = image_->header().piece_of(at);
        const ByteRange whole = image_->header().range_of(piece);
        const std::uint64_t length = std::min(whole.end(), range.end()).value - at.value;
        request->writes.push_back({request, piece, at.value - whole.start.value, length, at.value - range.start.value});
        at = at + ByteCount{length};
      }
      requests_.push_back(std::move(made));
      if (due < next_look_) changed_.notify_all();
      return request;
    }
  }
  std::move(ticket).fail(
      Error(Errc::busy, cluster_->name() + ": the cluster has not answered too many writes that were given up"));
  return nullptr;
}

bool Writes::plan(Request& request) const {
  return std::ranges::all_of(request.writes, [&](const PieceWrite& write) { return image_->is_stored(write.piece); });
}

/// With the caller's hold, which it takes away.
void Writes::submit_all(Request& request) noexcept {
  for (PieceWrite& write : request.writes) submit(write);
  drop(request);
}

void Writes::submit(PieceWrite& write) noexcept {
  {
    const MutexLock lock(mutex_);
    if (!write.request->ticket) return;  // its owner may have something newer by now
    ++write.request->holds;              // the answer's
    write.attempt = attempt_;
  }
  rados_completion_t completion = nullptr;
  int status = ::rados_aio_create_completion2(&write, &Writes::answered, &completion);
  if (status >= 0) {
    status = send(write, completion);
    ::rados_aio_release(completion);  // librados keeps a reference of its own
  }
  if (status < 0) hear(write, status);  // librados will not call
}

int Writes::send(const PieceWrite& write, rados_completion_t completion) const {
  const std::string stamp = fmt::format("{:016x}.{:016x}", number_, write.attempt);
  WriteOp op;
  ::rados_write_op_assert_exists(op.get());
  op.require(kStamp, LIBRADOS_CMPXATTR_OP_GTE, stamp);
  op.set(kStamp, stamp);
  op.write(std::span(write.request->bytes).subspan(write.at, write.length), write.offset);
  const std::string name = image_->header().piece_name(cluster_->object(), write.piece);
  return ::rados_aio_write_op_operate(op.get(), cluster_->io(), completion, name.c_str(), nullptr,
                                      LIBRADOS_OPERATION_FULL_TRY);
}

void Writes::answered(rados_completion_t completion, void* piece_write) {
  auto& write = *static_cast<PieceWrite*>(piece_write);
  write.request->owner->hear(write, ::rados_aio_get_return_value(completion));
}

void Writes::hear(PieceWrite& write, int status) noexcept {
  Request& request = *write.request;
  if (status < 0) {
    if (ask_again(write, status)) {
      submit(write);
    } else {
      record(request, error_of_write(write, status));
    }
  }
  drop(request);
}

/// After librados' own time limit, and where another write has left a later stamp.
bool Writes::ask_again(const PieceWrite& write, int status) {
  const MutexLock lock(mutex_);
  if (status == -ETIMEDOUT) ++attempt_;
  const bool overtaken = status == -ECANCELED && write.attempt < attempt_;
  const Request& request = *write.request;
  return (status == -ETIMEDOUT || overtaken) && request.ticket && !request.ticket->deadline().passed() && !closing_;
}

Error Writes::error_of_write(const PieceWrite& write, int status) const {
  const std::string name = image_->header().piece_name(cluster_->object(), write.piece);
  if (status == -ENOENT) {
    return Error(Errc::io,
                 fmt::format("{}: its piece {} is gone: the image was stored anew or removed since it was opened",
                             cluster_->name(), name),
                 ENOENT);
  }
  if (status == -ECANCELED)
    return Error(Errc::io, cluster_->name() + ": another writer has taken the image over", ECANCELED);
  return error_of(status, fmt::format("{}: writing to its piece {}", cluster_->name(), name));
}

void Writes::record(Request& request, Error error) {
  const MutexLock lock(mutex_);
  if (!request.error) request.error.emplace(std::move(error));
}

void Writes::drop(Request& request) noexcept {
  std::optional<WriteTicket> ticket;
  {
    const MutexLock lock(mutex_);
    if (--request.holds > 0) return;
    ticket.swap(request.ticket);
  }
  // Nobody else knows of the request now, except the timer, which sees that it has no ticket.
  if (ticket && request.error) {
    std::move(*ticket).fail(*std::move(request.error));
  } else if (ticket) {
    std::move(*ticket).complete();
  }
  const MutexLock lock(mutex_);
  std::erase_if(requests_, [&](const auto& one) { return one.get() == &request; });
  if (closing_) changed_.notify_all();
}

void Writes::watch_deadlines() noexcept {
  for (;;) {
    {
      const MutexLock lock(mutex_);
      if (closing_) return;
      next_look_ = Clock::now() + kIdleTimer;
      for (const auto& request : requests_)
        if (request->ticket) next_look_ = std::min(next_look_, request->ticket->deadline().when());
      if (next_look_ > Clock::now()) changed_.wait_until(mutex_, next_look_);
    }
    give_up(Clock::now(), Errc::timed_out, "no answer of the cluster within the deadline");
  }
}

void Writes::give_up(TimePoint now, Errc code, std::string_view why) {
  std::vector<WriteTicket> given_up;
  {
    const MutexLock lock(mutex_);
    for (const auto& request : requests_) {
      if (!request->ticket || request->ticket->deadline().when() > now) continue;
      given_up.push_back(*std::move(request->ticket));
      request->ticket.reset();
    }
    if (!given_up.empty()) ++attempt_;
  }
  for (WriteTicket& ticket : given_up)
    std::move(ticket).fail(Error(code, fmt::format("{}: {}", cluster_->name(), why)));
}

void Writes::keep() noexcept {
  TimePoint renew_at = Clock::now() + kRenewEvery;
  for (;;) {
    {
      const MutexLock lock(mutex_);
      while (!closing_ && waiting_.empty() && Clock::now() < renew_at) wanted_.wait_until(mutex_, renew_at);
      if (closing_ && waiting_.empty()) return;
    }
    make_wanted();
    if (Clock::now() < renew_at) continue;
    renew_at = Clock::now() + kRenewEvery;
    renew();
  }
}

void Writes::renew() {
  const auto renewed = lease_->renew();
  if (!renewed && !said_) log(LogLevel::warning, "{}", renewed.error().message());
  said_ = !renewed;
}

void Writes::make_wanted() {
  std::vector<Request*> ready;
  std::set<std::uint64_t> pieces;
  {
    const MutexLock lock(mutex_);
    ready.swap(waiting_);
    for (const Request* request : ready) {
      if (!request->ticket) continue;
      for (const PieceWrite& write : request->writes)
        if (!image_->is_stored(write.piece)) pieces.insert(write.piece);
    }
  }
  const Result<void> made = pieces.empty() ? Result<void>() : make(pieces);
  const bool again = !made && (made.error().code() == Errc::timed_out || made.error().code() == Errc::cancelled);
  for (Request* request : ready) {
    if (plan(*request)) {
      submit_all(*request);
      continue;
    }
    {
      const MutexLock lock(mutex_);
      if (again && request->ticket && !closing_) {
        waiting_.push_back(request);
        continue;
      }
    }
    if (!made) record(*request, made.error());
    drop(*request);
  }
  if (!again) return;
  const MutexLock lock(mutex_);
  const TimePoint until = Clock::now() + kMakeAgain;
  while (!closing_ && Clock::now() < until) wanted_.wait_until(mutex_, until);
}

Result<void> Writes::make(const std::set<std::uint64_t>& pieces) {
  Header header = image_->snapshot();
  Changes changes(cluster_, kMakesUnderWay, -EEXIST);  // one that is there already has nothing but zeroes
  for (const std::uint64_t piece : pieces) {
    const WriteOp op;
    ::rados_write_op_create(op.get(), LIBRADOS_CREATE_EXCLUSIVE, nullptr);
    ::rados_write_op_truncate(op.get(), header.range_of(piece).length.value);
    const std::string name = header.piece_name(cluster_->object(), piece);
    UFFDA_TRY_VOID(changes.start("making " + name, [&](rados_completion_t completion) {
      return ::rados_aio_write_op_operate(op.get(), cluster_->io(), completion, name.c_str(), nullptr,
                                          LIBRADOS_OPERATION_FULL_TRY);
    }));
    header.set_stored(piece);
  }
  UFFDA_TRY_VOID(changes.finish());
  UFFDA_TRY_VOID(lease_->store(header));
  for (const std::uint64_t piece : pieces) image_->set_stored(piece);
  return {};
}

}  // namespace uffda::sources::rados
