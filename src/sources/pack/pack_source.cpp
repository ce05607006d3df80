#include "sources/pack/pack_source.h"

#include <fmt/format.h>
#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstring>
#include <optional>
#include <system_error>
#include <thread>

#include "base/mutex.h"
#include "os/memory.h"
#include "sources/pack/blocking_reader.h"

namespace uffda::pack {
namespace {

constexpr unsigned kParallel = 256;  ///< fetches at once
constexpr unsigned kMaxParts = 64;   ///< reads at once, each with a buffer
constexpr unsigned kMaxWorkers = 16;
constexpr ByteCount kPartBytes = 256_KiB;     ///< of stored bytes in one read, where frames are not larger
constexpr ByteCount kPartContents = 256_KiB;  ///< unpacked by one worker in one go, likewise
constexpr std::size_t kMaxExtents = 1024;

/// A queue of slots that has room for all of them.
template <typename T>
class Ring {
 public:
  explicit Ring(std::size_t capacity) : slots_(capacity) {}
  [[nodiscard]] bool empty() const { return count_ == 0; }
  void push(T* one) { slots_[(first_ + count_++) % slots_.size()] = one; }
  T* pop() {
    T* const one = slots_[first_];
    first_ = (first_ + 1) % slots_.size();
    --count_;
    return one;
  }

 private:
  std::vector<T*> slots_;
  std::size_t first_ = 0;
  std::size_t count_ = 0;
};

/// A ticket that is being answered.
struct Request {
  std::optional<FetchTicket> ticket;
  std::uint64_t next = 0;      ///< the first frame that no part has yet; whoever plans the request owns it
  std::uint64_t end = 0;       ///< behind its last frame
  unsigned unfinished = 0;     ///< parts, and one for who plans; under the source's lock
  std::optional<Error> error;  ///< the first; under the source's lock
};

/// Frames [first, first + count) of the contents, which lie side by side in one file, and the read of them.
struct Part {
  Request* request = nullptr;
  std::uint64_t first = 0;
  std::uint64_t count = 0;
  std::size_t pack = 0;
  ByteRange stored;  ///< of the file
  ByteRange blocks;  ///< what is read: `stored` in whole blocks of the file's source
  std::span<std::byte> buffer;
  std::optional<Result<ByteCount>> answer;
};

class PackSource final : public PageSource, private FetchOwner {
 public:
  PackSource(Chain chain, os::MappedMemory staging, unsigned parts)
      : chain_(std::move(chain)),
        staging_(std::move(staging)),
        requests_(kParallel),
        parts_(parts),
        free_requests_(kParallel),
        parked_(kParallel),
        free_parts_(parts),
        ready_(parts) {
    const MutexLock lock(mutex_);
    for (Request& request : requests_) free_requests_.push(&request);
    const std::size_t buffer = staging_.bytes().size() / parts;
    for (unsigned i = 0; i < parts; ++i) {
      parts_[i].buffer = staging_.bytes().subspan(i * buffer, buffer);
      free_parts_.push(&parts_[i]);
    }
  }

  static Result<std::unique_ptr<PageSource>> create(Chain chain, std::string name);
  PackSource(const PackSource&) = delete;
  PackSource& operator=(const PackSource&) = delete;
  ~PackSource() override;

 private:
  Result<void> start_workers();
  void do_fetch(FetchTicket ticket) noexcept override;
  Result<std::vector<Extent>> do_extents(ByteRange range) override;
  Result<std::vector<std::byte>> do_working_set() override { return read_working_set(chain_.packs().front()); }
  void fetched(void* request, Result<ByteCount> result) noexcept override;

  void plan(Request& request) noexcept;
  std::optional<Part> next_part(Request& request) noexcept;
  Part* take_part(Request& request, const Part& wanted) noexcept;
  void read(Part& part) noexcept;
  [[nodiscard]] ByteRange wanted_of(const Request& request, std::uint64_t number) const;
  static std::span<std::byte> destination(const Request& request, ByteRange range);

  void work(Decompressor decompressor) noexcept;
  Part* take_ready() noexcept;
  void finish(Part& part, Decompressor* decompressor) noexcept;
  Result<void> unpack(const Part& part, Decompressor& decompressor, std::span<std::byte> scratch) noexcept;
  void note_error(Request& request, Error error) noexcept;
  void release(Request& request) noexcept;

  Chain chain_;
  const os::MappedMemory staging_;
  std::vector<Request> requests_;
  std::vector<Part> parts_;
  std::vector<std::thread> workers_;

  Mutex mutex_;
  CondVar work_;
  Ring<Request> free_requests_ UFFDA_GUARDED_BY(mutex_);
  Ring<Request> parked_ UFFDA_GUARDED_BY(mutex_);  ///< wait for a part
  Ring<Part> free_parts_ UFFDA_GUARDED_BY(mutex_);
  Ring<Part> ready_ UFFDA_GUARDED_BY(mutex_);  ///< read, or failed; wait for a worker
  bool stopping_ UFFDA_GUARDED_BY(mutex_) = false;
};

Result<std::unique_ptr<PageSource>> PackSource::create(Chain chain, std::string name) {
  const ByteCount frame = chain.index().frame_size();
  unsigned parts = kMaxParts;
  for (const Pack& pack : chain.packs()) parts = std::min(parts, pack.source->properties().parallel);
  // Room for a part, and for the rest of the blocks at both of its ends.
  const std::uint64_t buffer = std::max(frame, kPartBytes).value + 2 * kMaxBlock;
  os::MappedMemory staging =
      UFFDA_TRY(os::map_memory({buffer * parts}, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE));
  for (const Pack& pack : chain.packs()) {
    // A source that had to be waited for has had its first fetch already.
    if (pack.source->properties().immediate) pack.source->set_arena(staging.bytes());
  }
  auto source = std::make_unique<PackSource>(std::move(chain), std::move(staging), parts);
  source->opened(std::move(name), {.size = source->chain_.index().size(),
                                   .preferred_read = std::max(frame, 64_KiB),
                                   .unit = frame,
                                   .parallel = kParallel});
  UFFDA_TRY_VOID(source->start_workers());
  return source;
}

Result<void> PackSource::start_workers() {
  const unsigned count = std::clamp(std::thread::hardware_concurrency(), 1U, kMaxWorkers);
  // No signal of the program is handled on these threads: the mask is inherited.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  Result<void> started;
  try {
    for (unsigned i = 0; i < count && started; ++i) {
      auto decompressor = Decompressor::create();
      if (!decompressor) {
        started = std::unexpected(decompressor.error());
        break;
      }
      workers_.emplace_back([this, own = *std::move(decompressor)]() mutable { work(std::move(own)); });
      pthread_setname_np(workers_.back().native_handle(), "uffda-pack");
    }
  } catch (const std::system_error& error) {
    started = fail_errno(error.code().value(), "starting the workers of a pack source");
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return started;
}

/// Workers first: after that nobody starts a read. Then the sources, which answer what is under way; what those answers
/// queue is failed here.
PackSource::~PackSource() {
  {
    const MutexLock lock(mutex_);
    stopping_ = true;
  }
  work_.notify_all();
  for (std::thread& worker : workers_) worker.join();
  chain_.close_sources();
  while (Part* part = take_ready()) finish(*part, nullptr);
  for (;;) {
    Request* request = nullptr;
    {
      const MutexLock lock(mutex_);
      if (!parked_.empty()) request = parked_.pop();
    }
    if (request == nullptr) break;
    note_error(*request, Error(Errc::cancelled, name() + ": closed"));
    release(*request);
  }
}

void PackSource::do_fetch(FetchTicket ticket) noexcept {
  Request* request = nullptr;
  {
    const MutexLock lock(mutex_);
    if (!free_requests_.empty()) request = free_requests_.pop();
  }
  if (request == nullptr) {
    std::move(ticket).fail(Error(Errc::busy, name() + ": too many fetches at once"));
    return;
  }
  const ByteRange range = ticket.range();
  const std::uint64_t frame = chain_.index().frame_size().value;
  request->ticket.emplace(std::move(ticket));
  request->next = range.start.value / frame;
  request->end = (range.end().value + frame - 1) / frame;
  request->unfinished = 1;
  plan(*request);
}

/// Starts parts until there are none left to start, or no buffer for one.
void PackSource::plan(Request& request) noexcept {
  while (const std::optional<Part> wanted = next_part(request)) {
    if (request.ticket->deadline().passed()) {
      note_error(request, Error(Errc::timed_out, name() + ": the deadline passed while the fetch waited"));
      break;
    }
    const std::uint64_t behind = wanted->first + wanted->count;
    Part* const part = take_part(request, *wanted);
    if (part == nullptr) return;  // parked: somebody else may have it by now
    request.next = behind;
    read(*part);
  }
  release(request);
}

/// Fills the zeroes that come next and says what has to be read behind them. None at the end.
std::optional<Part> PackSource::next_part(Request& request) noexcept {
  std::optional<Part> part;
  for (std::uint64_t number = request.next; number < request.end; ++number) {
    const Place place = chain_.locate(number);
    if (place.frame.kind == FrameKind::zero) {
      if (part) break;
      std::ranges::fill(destination(request, wanted_of(request, number)), std::byte{0});
      request.next = number + 1;
      continue;
    }
    const ByteRange stored{{place.frame.place}, {place.frame.stored}};
    if (!part) {
      part = Part{.request = &request, .first = number, .count = 1, .pack = place.pack, .stored = stored};
      continue;
    }
    const bool beside = place.pack == part->pack && stored.start == part->stored.end();
    const bool fits = part->stored.length + stored.length <= kPartBytes &&
                      chain_.index().frame_size() * (part->count + 1) <= kPartContents;
    if (!beside || !fits) break;
    ++part->count;
    part->stored.length += stored.length;
  }
  return part;
}

/// A buffer for the part that is wanted. None: the request waits for one, and is not the caller's any more.
Part* PackSource::take_part(Request& request, const Part& wanted) noexcept {
  const SourceProperties& source = chain_.packs()[wanted.pack].source->properties();
  const std::uint64_t block = source.block_size.value;
  const std::uint64_t start = align_down(wanted.stored.start.value, block);
  const std::uint64_t end = std::min(align_up(wanted.stored.end().value, block), source.size.value);
  const MutexLock lock(mutex_);
  if (free_parts_.empty()) {
    parked_.push(&request);
    return nullptr;
  }
  Part* const part = free_parts_.pop();
  const std::span<std::byte> buffer = part->buffer;
  *part = wanted;
  part->buffer = buffer;
  part->blocks = {{start}, {end - start}};
  ++request.unfinished;
  return part;
}

void PackSource::read(Part& part) noexcept {
  const auto buffer = part.buffer.first(part.blocks.length.value);
  PageSource& source = *chain_.packs()[part.pack].source;
  source.fetch(FetchTicket(*this, &part, part.blocks, buffer, part.request->ticket->deadline()));
}

void PackSource::fetched(void* request, Result<ByteCount> result) noexcept {
  Part* const part = static_cast<Part*>(request);
  part->answer.emplace(std::move(result));
  {
    const MutexLock lock(mutex_);
    ready_.push(part);
  }
  work_.notify_one();
}

ByteRange PackSource::wanted_of(const Request& request, std::uint64_t number) const {
  const ByteRange frame = chain_.index().range(number);
  const ByteRange all = request.ticket->range();
  const ByteOffset start = std::max(frame.start, all.start);
  return {start, std::min(frame.end(), all.end()) - start};
}

std::span<std::byte> PackSource::destination(const Request& request, ByteRange range) {
  const ByteCount skipped = range.start - request.ticket->range().start;
  return request.ticket->buffer().subspan(skipped.value, range.length.value);
}

void PackSource::work(Decompressor decompressor) noexcept {
  for (;;) {
    Part* part = nullptr;
    {
      const MutexLock lock(mutex_);
      while (ready_.empty() && !stopping_) work_.wait_until(mutex_, Clock::now() + std::chrono::seconds(10));
      if (stopping_) return;
      part = ready_.pop();
    }
    finish(*part, &decompressor);
    Request* parked = nullptr;
    {
      const MutexLock lock(mutex_);
      if (!parked_.empty() && !free_parts_.empty() && !stopping_) parked = parked_.pop();
    }
    if (parked != nullptr) plan(*parked);
  }
}

Part* PackSource::take_ready() noexcept {
  const MutexLock lock(mutex_);
  return ready_.empty() ? nullptr : ready_.pop();
}

/// Unpacks a part and lets it go. Without a decompressor it is too late for that.
void PackSource::finish(Part& part, Decompressor* decompressor) noexcept {
  static thread_local std::vector<std::byte> scratch;  // for frames of which a ticket wants a part
  Request& request = *part.request;
  Result<void> done;
  if (!*part.answer) {
    done = std::unexpected(part.answer->error().within(name()));
  } else if (**part.answer != part.blocks.length) {
    done = fail(Errc::io, fmt::format("{}: short read: {} of {} bytes at {}", name(), (*part.answer)->value,
                                      part.blocks.length.value, part.blocks.start.value));
  } else if (decompressor == nullptr) {
    done = fail(Errc::cancelled, name() + ": closed");
  } else {
    scratch.resize(chain_.index().frame_size().value);
    done = unpack(part, *decompressor, scratch);
  }
  if (!done) note_error(request, std::move(done).error());
  {
    const MutexLock lock(mutex_);
    free_parts_.push(&part);
  }
  release(request);
}

Result<void> PackSource::unpack(const Part& part, Decompressor& decompressor, std::span<std::byte> scratch) noexcept {
  auto stored = part.buffer.subspan((part.stored.start - part.blocks.start).value, part.stored.length.value);
  for (std::uint64_t number = part.first; number < part.first + part.count; ++number) {
    const Frame frame = chain_.locate(number).frame;
    const ByteRange all = chain_.index().range(number);
    const ByteRange wanted = wanted_of(*part.request, number);
    const auto to = destination(*part.request, wanted);
    const auto contents = wanted == all ? to : scratch.first(all.length.value);
    if (auto done = unpack_frame(frame, stored.first(frame.stored), contents, decompressor); !done) {
      return std::unexpected(frame_error(chain_, number, done.error()));
    }
    if (wanted != all) std::memcpy(to.data(), contents.data() + (wanted.start - all.start).value, to.size());
    stored = stored.subspan(frame.stored);
  }
  return {};
}

void PackSource::note_error(Request& request, Error error) noexcept {
  const MutexLock lock(mutex_);
  if (!request.error) request.error.emplace(std::move(error));
}

/// One part less, or the plan is finished; the last one answers the ticket. The request is free before that, so that
/// the answer may start the next fetch.
void PackSource::release(Request& request) noexcept {
  std::optional<FetchTicket> ticket;
  std::optional<Error> error;
  {
    const MutexLock lock(mutex_);
    if (--request.unfinished != 0) return;
    ticket = std::exchange(request.ticket, std::nullopt);
    error = std::exchange(request.error, std::nullopt);
    free_requests_.push(&request);
  }
  if (error) {
    std::move(*ticket).fail(*std::move(error));
  } else {
    const ByteCount all = ticket->range().length;
    std::move(*ticket).complete(all);
  }
}

Result<std::vector<Extent>> PackSource::do_extents(ByteRange range) {
  const Index& index = chain_.index();
  std::vector<Extent> extents;
  for (ByteOffset at = range.start; at < range.end();) {
    const std::uint64_t number = at.value / index.frame_size().value;
    const bool zero = chain_.locate(number).frame.kind == FrameKind::zero;
    const auto kind = zero ? Extent::Kind::zero : Extent::Kind::data;
    const ByteOffset end = std::min(index.range(number).end(), range.end());
    if (extents.empty() || extents.back().kind != kind) {
      if (extents.size() == kMaxExtents) break;
      extents.push_back({.range = {at, {}}, .kind = kind});
    }
    extents.back().range.length += end - at;
    at = end;
  }
  return extents;
}

}  // namespace

Result<std::unique_ptr<PageSource>> make_pack_source(Chain chain, std::string name) {
  return PackSource::create(std::move(chain), std::move(name));
}

}  // namespace uffda::pack
