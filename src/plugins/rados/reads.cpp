#include "plugins/rados/reads.h"

#include <fmt/format.h>
#include <pthread.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>

#include "os/signals.h"

namespace uffda::sources::rados {
namespace {

constexpr std::chrono::seconds kIdleLook{10};  ///< of the timer, when nothing is due earlier
constexpr std::chrono::seconds kCloseWait{10};
constexpr std::size_t kKeptBuffer = 1 << 20;  ///< larger ones are freed with their request

void release(std::vector<rados_completion_t>& completions) {
  for (rados_completion_t completion : completions) ::rados_aio_release(completion);
  completions.clear();
}

}  // namespace

Reads::Reads(std::shared_ptr<const Cluster> cluster, std::shared_ptr<const Image> image)
    : image_(std::move(image)), next_look_(Clock::now()), cluster_(std::move(cluster)) {}

Reads::~Reads() = default;

Result<void> Reads::open() {
  const os::BlockedSignals blocked;
  try {
    timer_ = std::thread([this] { watch_deadlines(); });
    pthread_setname_np(timer_.native_handle(), "uffda-rados");
  } catch (const std::system_error& error) {
    return fail_errno(error.code().value(), "starting the timer of rados:");
  }
  return {};
}

bool Reads::close() {
  {
    const MutexLock lock(mutex_);
    closing_ = true;
    changed_.notify_all();
  }
  if (timer_.joinable()) timer_.join();
  give_up(TimePoint::max(), Errc::cancelled, "closed");
  const TimePoint limit = Clock::now() + kCloseWait;
  const MutexLock lock(mutex_);
  while (!under_way_.empty() && Clock::now() < limit) changed_.wait_until(mutex_, limit);
  return under_way_.empty();
}

void Reads::start(FetchTicket ticket) noexcept {
  Request* const request = take_request(ticket);
  if (request == nullptr) {
    std::move(ticket).fail(
        Error(Errc::busy, cluster_->name() + ": the cluster has not answered too many reads that were given up"));
    return;
  }
  plan(*request, ticket);
  {
    const MutexLock lock(mutex_);
    const TimePoint due = ticket.deadline().when();
    request->ticket.emplace(std::move(ticket));
    under_way_.push_back(request);
    if (due < next_look_) changed_.notify_all();
  }
  for (PieceRead& read : request->reads) submit(read);
  drop(*request);
}

/// Comes with one hold, the caller's. Null if there are too many.
Reads::Request* Reads::take_request(FetchTicket& ticket) {
  Request* request = nullptr;
  {
    const MutexLock lock(mutex_);
    if (!free_.empty()) {
      request = free_.back();
      free_.pop_back();
    } else if (requests_.size() < kMaxRequests) {
      requests_.push_back(std::make_unique<Request>());
      request = requests_.back().get();
      request->owner = this;
    } else {
      return nullptr;
    }
    request->holds = 1;
  }
  const std::size_t wanted = ticket.range().length.value;
  if (request->buffer_bytes < wanted) {
    request->buffer = std::make_unique_for_overwrite<std::byte[]>(wanted);
    request->buffer_bytes = wanted;
  }
  return request;
}

/// One read for each piece that is stored; what is not is zeroes.
void Reads::plan(Request& request, const FetchTicket& ticket) const {
  const ByteRange range = ticket.range();
  const ByteOffset end = range.end();
  for (ByteOffset at = range.start; at < end;) {
    const std::uint64_t piece = image_->header().piece_of(at);
    const ByteRange whole = image_->header().range_of(piece);
    const std::uint64_t length = std::min(whole.end(), end).value - at.value;
    const std::uint64_t into = at.value - range.start.value;
    if (image_->is_stored(piece)) {
      request.reads.push_back({&request, piece, at.value - whole.start.value, length, into});
    } else {
      std::memset(ticket.buffer().data() + into, 0, length);
    }
    at = at + ByteCount{length};
  }
}

void Reads::submit(PieceRead& read) noexcept {
  Request& request = *read.request;
  rados_completion_t completion = nullptr;
  int status = ::rados_aio_create_completion2(&read, &Reads::answered, &completion);
  {
    const MutexLock lock(mutex_);
    ++request.holds;  // the answer's
  }
  bool given_up = false;
  if (status >= 0) {
    status =
        ::rados_aio_read(cluster_->io(), image_->header().piece_name(cluster_->object(), read.piece).c_str(),
                         completion, reinterpret_cast<char*>(request.buffer.get() + read.at), read.length, read.offset);
    const MutexLock lock(mutex_);
    request.completions.push_back(completion);
    given_up = !request.ticket;
  }
  if (given_up && status >= 0) ::rados_aio_cancel(cluster_->io(), completion);
  if (status < 0) hear(read, status);  // librados will not call
}

void Reads::answered(rados_completion_t completion, void* piece_read) {
  auto& read = *static_cast<PieceRead*>(piece_read);
  read.request->owner->hear(read, ::rados_aio_get_return_value(completion));
}

void Reads::hear(PieceRead& read, int status) noexcept {
  Request& request = *read.request;
  if (ask_again(request, status)) {
    submit(read);
  } else if (status != static_cast<int>(read.length)) {
    record(request, error_of_read(read, status));
  }
  drop(request);
}

/// librados has a time limit of its own for each request; the ticket may have more time than that.
bool Reads::ask_again(Request& request, int status) {
  if (status != -ETIMEDOUT) return false;
  const MutexLock lock(mutex_);
  return request.ticket && !request.ticket->deadline().passed() && !closing_;
}

Error Reads::error_of_read(const PieceRead& read, int status) const {
  const std::string name = image_->header().piece_name(cluster_->object(), read.piece);
  if (status == -ENOENT) {
    return Error(Errc::io,
                 fmt::format("{}: its piece {} is gone: the image was stored anew or removed since it was opened",
                             cluster_->name(), name),
                 ENOENT);
  }
  if (status < 0) return error_of(status, fmt::format("{}: reading its piece {}", cluster_->name(), name));
  return Error(Errc::io, fmt::format("{}: its piece {} is too short: {} of {} bytes at {}", cluster_->name(), name,
                                     status, read.length, read.offset));
}

void Reads::record(Request& request, Error error) {
  const MutexLock lock(mutex_);
  if (!request.error) request.error.emplace(std::move(error));
}

void Reads::drop(Request& request) noexcept {
  std::optional<FetchTicket> ticket;
  {
    const MutexLock lock(mutex_);
    if (--request.holds > 0) return;
    ticket.swap(request.ticket);
  }
  // Nobody else knows of the request now, except the timer, which sees that it has no ticket.
  if (ticket && request.error) {
    std::move(*ticket).fail(*std::move(request.error));
  } else if (ticket) {
    copy_out(request, *ticket);
    const ByteCount done = ticket->range().length;
    std::move(*ticket).complete(done);
  }
  const MutexLock lock(mutex_);
  free_locked(request);
}

void Reads::copy_out(const Request& request, const FetchTicket& ticket) {
  for (const PieceRead& read : request.reads)
    std::memcpy(ticket.buffer().data() + read.at, request.buffer.get() + read.at, read.length);
}

void Reads::free_locked(Request& request) {
  release(request.completions);
  request.reads.clear();
  request.error.reset();
  if (request.buffer_bytes > kKeptBuffer) {
    request.buffer.reset();
    request.buffer_bytes = 0;
  }
  std::erase(under_way_, &request);
  free_.push_back(&request);
  if (closing_) changed_.notify_all();
}

void Reads::watch_deadlines() noexcept {
  for (;;) {
    {
      const MutexLock lock(mutex_);
      if (closing_) return;
      next_look_ = Clock::now() + kIdleLook;
      for (const Request* request : under_way_)
        if (request->ticket) next_look_ = std::min(next_look_, request->ticket->deadline().when());
      if (next_look_ > Clock::now()) changed_.wait_until(mutex_, next_look_);
    }
    give_up(Clock::now(), Errc::timed_out, "no answer of the cluster within the deadline");
  }
}

void Reads::give_up(TimePoint now, Errc code, std::string_view why) {
  std::vector<std::pair<Request*, FetchTicket>> given_up;
  {
    const MutexLock lock(mutex_);
    for (Request* request : under_way_) {
      if (!request->ticket || request->ticket->deadline().when() > now) continue;
      ++request->holds;
      given_up.emplace_back(request, *std::move(request->ticket));
      request->ticket.reset();
    }
  }
  for (auto& [request, ticket] : given_up) {
    std::move(ticket).fail(Error(code, fmt::format("{}: {}", cluster_->name(), why)));
    std::vector<rados_completion_t> completions;
    {
      const MutexLock lock(mutex_);
      completions = request->completions;
    }
    for (rados_completion_t completion : completions) ::rados_aio_cancel(cluster_->io(), completion);
    drop(*request);
  }
}

}  // namespace uffda::sources::rados
