// cache+: keeps what was fetched from a remote source on the local disk (cache_store.h), for the next run and for other
// processes.
//
//   fetch -> jobs -> a worker looks into the store -> answered
//                         |                             ^
//                         v  not there                  | copied
//                    piece in flight (one fetch, however many wait for it) -> jobs -> a worker -> store
//
// Fetching never touches the disk in the caller's thread. A piece is 64 KiB, or the unit of the source if that is
// larger. What the disk cannot do (full, gone) costs the caching of a piece, never a fetch.
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <map>
#include <optional>
#include <system_error>
#include <thread>
#include <variant>
#include <vector>

#include <fmt/format.h>

#include "base/log.h"
#include "base/mutex.h"
#include "os/signals.h"
#include "sources/builtin.h"
#include "sources/cache_store.h"
#include "sources/layer.h"

namespace uffda::sources {

namespace {

constexpr ByteCount kDefaultSize = 1_GiB;
constexpr unsigned kThreads = 4;
constexpr unsigned kFetches = 256;
/// Memory for pieces in flight.
constexpr std::uint64_t kBufferBytes = std::uint64_t{8} << 20U;
constexpr std::uint64_t kFewestBuffers = 4;

/// A fetch that somebody waits for.
struct Wanted {
  std::optional<FetchTicket> ticket;
  std::size_t missing = 0;  ///< pieces
  std::optional<Error> error;
};

/// A piece that is being fetched or stored.
struct Piece {
  std::uint64_t index = 0;
  std::span<std::byte> bytes;
  std::vector<Wanted*> waiting;
  Result<ByteCount> result = ByteCount{};
};

class CacheLayer final : public Layer, private FetchOwner {
 public:
  static Result<std::unique_ptr<PageSource>> wrap(std::unique_ptr<PageSource> inner, const SourceUri& uri);

  CacheLayer(std::unique_ptr<PageSource> source, std::unique_ptr<CacheStore> store, const std::string& version);
  CacheLayer(const CacheLayer&) = delete;
  CacheLayer& operator=(const CacheLayer&) = delete;
  ~CacheLayer() override;

  Result<void> start();

 private:
  using Job = std::variant<Wanted*, Piece*>;
  struct Missing {
    Wanted* wanted;
    std::uint64_t piece;
  };

  void do_fetch(FetchTicket ticket) noexcept override;
  void do_set_arena(std::span<std::byte>) override {}  // the source reads into the pieces
  void fetched(void* request, Result<ByteCount> result) noexcept override;

  void add_job(Job job);
  void run() noexcept;
  bool next_job(Job& job);

  void look_up(Wanted& wanted);
  /// Waits with the others if the piece is being fetched or stored: the store does not have it, or not whole.
  bool join(Wanted& wanted, std::uint64_t piece);
  /// Copies the slot's part of the fetch, if the store has it.
  bool read_slot(const Wanted& wanted, std::uint64_t slot);
  void settle(Piece& piece);
  void store(const Piece& piece);
  /// Copies the piece to those who wait for it, or tells them that it failed.
  void hand_out(const Piece& piece, const std::vector<Wanted*>& to);
  /// One piece less that the fetch waits for.
  void arrived(Wanted& wanted);
  void finish(Wanted& wanted);
  void start_missing();
  void fetch_piece(Piece& piece, Deadline deadline);

  [[nodiscard]] Hash128 key_of(std::uint64_t slot) const;
  [[nodiscard]] ByteRange range_of(std::uint64_t index, std::uint64_t unit) const;

  const std::uint64_t piece_bytes_;
  const std::unique_ptr<CacheStore> store_;  ///< null: no caching
  Hash128 identity_;
  std::vector<std::byte> buffers_;
  std::vector<std::thread> threads_;
  std::atomic<bool> warned_{false};

  Mutex mutex_;
  CondVar work_;
  std::vector<Wanted> fetches_;
  std::vector<Piece> pieces_;
  std::vector<Wanted*> free_fetches_ UFFDA_GUARDED_BY(mutex_);
  std::vector<Piece*> free_pieces_ UFFDA_GUARDED_BY(mutex_);
  std::map<std::uint64_t, Piece*> in_flight_ UFFDA_GUARDED_BY(mutex_);  ///< by index
  std::deque<Missing> missing_ UFFDA_GUARDED_BY(mutex_);                ///< not asked for yet: no piece was free
  std::deque<Job> jobs_ UFFDA_GUARDED_BY(mutex_);
  bool closing_ UFFDA_GUARDED_BY(mutex_) = false;
};

Result<std::unique_ptr<PageSource>> CacheLayer::wrap(std::unique_ptr<PageSource> inner, const SourceUri& uri) {
  const std::string* const directory = uri.find("dir");
  if (directory == nullptr)
    return fail(Errc::invalid_argument, "cache+: the parameter dir= is missing: a directory of yours");
  const std::string* const size = uri.find("size");
  ByteCount bytes = kDefaultSize;
  if (size != nullptr) {
    const auto parsed = parse_size(*size);
    if (!parsed) return std::unexpected(parsed.error().within("parameter size"));
    bytes = *parsed;
  }
  auto store = CacheStore::open(*directory, bytes);
  if (!store && store.error().code() != Errc::no_memory) return std::unexpected(store.error().within("cache+"));
  if (!store) log(LogLevel::warning, "cache+: works without caching: {}", store.error().message());
  const std::string* const given = uri.find("version");
  const std::string version = given != nullptr ? *given : inner->properties().version;
  if (version.empty()) {
    log(LogLevel::warning,
        "cache+: {} cannot tell when its bytes change: they are cached under its name and size; version=TEXT, another "
        "one for other bytes, is safer",
        inner->name());
  }
  auto layer = std::make_unique<CacheLayer>(std::move(inner), store ? std::move(*store) : nullptr, version);
  UFFDA_TRY_VOID(layer->start());
  return layer;
}

CacheLayer::CacheLayer(std::unique_ptr<PageSource> source, std::unique_ptr<CacheStore> store,
                       const std::string& version)
    : Layer(std::move(source)),
      piece_bytes_(std::max(inner().properties().unit, kCachePiece).value),
      store_(std::move(store)),
      fetches_(kFetches) {
  SourceProperties properties = inner().properties();
  const std::string identity = fmt::format("{}\n{}\n{}", inner().name(), properties.size.value, version);
  identity_ = hash_of(std::as_bytes(std::span(identity)));
  const std::uint64_t count =
      std::min<std::uint64_t>(std::max(kBufferBytes / piece_bytes_, kFewestBuffers), properties.parallel);
  buffers_.resize(count * piece_bytes_);
  inner().set_arena(buffers_);
  pieces_.resize(count);
  const MutexLock lock(mutex_);
  for (std::size_t i = 0; i < count; ++i) {
    pieces_[i].bytes = std::span(buffers_).subspan(i * piece_bytes_, piece_bytes_);
    free_pieces_.push_back(&pieces_[i]);
  }
  for (Wanted& wanted : fetches_) free_fetches_.push_back(&wanted);
  properties.block_size = {1};
  properties.unit = {piece_bytes_};
  properties.preferred_read = std::max(properties.preferred_read, ByteCount{piece_bytes_});
  properties.parallel = kFetches;
  properties.immediate = false;
  properties.writable = false;  // what is cached on the disk would be old
  properties.version = version;
  opened("cache+" + inner().name(), properties);
}

CacheLayer::~CacheLayer() {
  {
    const MutexLock lock(mutex_);
    closing_ = true;
  }
  work_.notify_all();
  for (std::thread& thread : threads_) thread.join();
  close_inner();  // now nothing writes into a piece any more
  for (Wanted& wanted : fetches_) {
    if (wanted.ticket) std::move(*wanted.ticket).fail(Error(Errc::cancelled, name() + ": closed"));
  }
}

Result<void> CacheLayer::start() {
  const os::BlockedSignals blocked;
  try {
    for (unsigned i = 0; i < kThreads; ++i) {
      threads_.emplace_back([this] { run(); });
      pthread_setname_np(threads_.back().native_handle(), "uffda-cache");
    }
  } catch (const std::system_error& error) {
    return fail_errno(error.code().value(), "starting the threads of cache+");
  }
  return {};
}

void CacheLayer::do_fetch(FetchTicket ticket) noexcept {
  {
    const MutexLock lock(mutex_);
    if (!free_fetches_.empty()) {
      Wanted* const wanted = free_fetches_.back();
      free_fetches_.pop_back();
      wanted->ticket.emplace(std::move(ticket));
      wanted->error.reset();
      jobs_.emplace_back(wanted);
      work_.notify_one();
      return;
    }
  }
  std::move(ticket).fail(Error(Errc::busy, name() + ": too many fetches at once"));
}

void CacheLayer::fetched(void* request, Result<ByteCount> result) noexcept {
  auto* const piece = static_cast<Piece*>(request);
  piece->result = std::move(result);
  add_job(piece);
}

void CacheLayer::add_job(Job job) {
  {
    const MutexLock lock(mutex_);
    jobs_.push_back(job);
  }
  work_.notify_one();
}

void CacheLayer::run() noexcept {
  Job job;
  while (next_job(job)) {
    if (Wanted* const* const wanted = std::get_if<Wanted*>(&job)) {
      look_up(**wanted);
    } else {
      settle(*std::get<Piece*>(job));
    }
    start_missing();
  }
}

bool CacheLayer::next_job(Job& job) {
  const MutexLock lock(mutex_);
  while (jobs_.empty() && !closing_) work_.wait_until(mutex_, Clock::now() + std::chrono::seconds(10));
  if (closing_) return false;
  job = jobs_.front();
  jobs_.pop_front();
  return true;
}

ByteRange CacheLayer::range_of(std::uint64_t index, std::uint64_t unit) const {
  const std::uint64_t start = index * unit;
  return {{start}, {std::min(unit, properties().size.value - start)}};
}

Hash128 CacheLayer::key_of(std::uint64_t slot) const {
  const std::uint64_t text[] = {identity_.low, identity_.high, slot};
  return hash_of(std::as_bytes(std::span(text)));
}

void CacheLayer::look_up(Wanted& wanted) {
  const ByteRange range = wanted.ticket->range();
  const std::uint64_t last = (range.end().value - 1) / kCachePiece.value;
  const std::uint64_t slots_in_piece = piece_bytes_ / kCachePiece.value;
  {
    const MutexLock lock(mutex_);
    wanted.missing = 1;  // this loop: none of the pieces can finish the fetch before all are known
  }
  std::optional<std::uint64_t> missing;
  for (std::uint64_t slot = range.start.value / kCachePiece.value; slot <= last; ++slot) {
    const std::uint64_t piece = slot / slots_in_piece;
    if (missing == piece) continue;
    // In this order: a piece that is not in flight has been stored.
    const bool joined = join(wanted, piece);
    if (!joined && read_slot(wanted, slot)) continue;
    missing = piece;
    if (joined) continue;
    const MutexLock lock(mutex_);
    ++wanted.missing;
    missing_.push_back({&wanted, piece});
  }
  arrived(wanted);
}

bool CacheLayer::join(Wanted& wanted, std::uint64_t piece) {
  const MutexLock lock(mutex_);
  const auto known = in_flight_.find(piece);
  if (known == in_flight_.end()) return false;
  ++wanted.missing;
  known->second->waiting.push_back(&wanted);
  return true;
}

bool CacheLayer::read_slot(const Wanted& wanted, std::uint64_t slot) {
  if (store_ == nullptr) return false;
  const ByteRange stored = range_of(slot, kCachePiece.value);
  const ByteRange range = wanted.ticket->range();
  const std::uint64_t start = std::max(stored.start, range.start).value;
  const std::uint64_t end = std::min(stored.end(), range.end()).value;
  const auto to = wanted.ticket->buffer().subspan(start - range.start.value, end - start);
  if (to.size() == stored.length.value) return store_->read(key_of(slot), to);
  // The checksum is of the whole.
  thread_local std::vector<std::byte> whole(kCachePiece.value);
  const auto bytes = std::span(whole).first(stored.length.value);
  if (!store_->read(key_of(slot), bytes)) return false;
  std::ranges::copy(bytes.subspan(start - stored.start.value, end - start), to.begin());
  return true;
}

void CacheLayer::start_missing() {
  while (true) {
    Piece* started = nullptr;
    Deadline deadline = Deadline::at({});
    {
      const MutexLock lock(mutex_);
      if (missing_.empty() || closing_) return;
      const Missing next = missing_.front();
      const auto known = in_flight_.find(next.piece);
      if (known == in_flight_.end() && free_pieces_.empty()) return;
      missing_.pop_front();
      if (known != in_flight_.end()) {
        known->second->waiting.push_back(next.wanted);
        continue;
      }
      started = free_pieces_.back();
      free_pieces_.pop_back();
      started->index = next.piece;
      started->waiting.assign(1, next.wanted);
      in_flight_.emplace(next.piece, started);
      deadline = next.wanted->ticket->deadline();
    }
    fetch_piece(*started, deadline);
  }
}

void CacheLayer::fetch_piece(Piece& piece, Deadline deadline) {
  const ByteRange range = range_of(piece.index, piece_bytes_);
  inner().fetch(FetchTicket(*this, &piece, range, piece.bytes.first(range.length.value), deadline));
}

void CacheLayer::settle(Piece& piece) {
  const ByteRange range = range_of(piece.index, piece_bytes_);
  if (piece.result && *piece.result != range.length)
    piece.result = fail(Errc::io, fmt::format("{}: gave {} bytes at {} instead of {}", inner().name(),
                                              piece.result->value, range.start.value, range.length.value));
  // Those who wait are served first; who comes while the piece is stored, afterwards.
  std::vector<Wanted*> waiting;
  for (const bool stored : {false, true}) {
    if (stored && piece.result) store(piece);
    {
      const MutexLock lock(mutex_);
      waiting.swap(piece.waiting);
      piece.waiting.clear();
      if (stored) in_flight_.erase(piece.index);
    }
    hand_out(piece, waiting);
    waiting.clear();
  }
  const MutexLock lock(mutex_);
  free_pieces_.push_back(&piece);
}

void CacheLayer::hand_out(const Piece& piece, const std::vector<Wanted*>& to) {
  const ByteRange piece_range = range_of(piece.index, piece_bytes_);
  for (Wanted* const wanted : to) {
    const ByteRange range = wanted->ticket->range();
    if (piece.result) {
      const std::uint64_t start = std::max(piece_range.start, range.start).value;
      const std::uint64_t end = std::min(piece_range.end(), range.end()).value;
      std::ranges::copy(piece.bytes.subspan(start - piece_range.start.value, end - start),
                        wanted->ticket->buffer().begin() + static_cast<std::ptrdiff_t>(start - range.start.value));
    } else if (piece.result.error().code() == Errc::timed_out && !wanted->ticket->deadline().passed()) {
      // The deadline was another one's.
      const MutexLock lock(mutex_);
      missing_.push_back({wanted, piece.index});
      continue;
    } else {
      const MutexLock lock(mutex_);
      wanted->error = piece.result.error();
    }
    arrived(*wanted);
  }
}

void CacheLayer::arrived(Wanted& wanted) {
  {
    const MutexLock lock(mutex_);
    if (--wanted.missing != 0) return;
  }
  finish(wanted);
}

void CacheLayer::finish(Wanted& wanted) {
  std::optional<FetchTicket> ticket;
  std::optional<Error> error;
  {
    const MutexLock lock(mutex_);
    ticket = std::exchange(wanted.ticket, std::nullopt);
    error = std::exchange(wanted.error, std::nullopt);
    free_fetches_.push_back(&wanted);
  }
  const ByteCount length = ticket->range().length;
  if (error) {
    std::move(*ticket).fail(*std::move(error));
  } else {
    std::move(*ticket).complete(length);
  }
}

void CacheLayer::store(const Piece& piece) {
  if (store_ == nullptr) return;
  const ByteRange range = range_of(piece.index, piece_bytes_);
  for (std::uint64_t at = 0; at < range.length.value; at += kCachePiece.value) {
    const auto bytes = piece.bytes.subspan(at, std::min(kCachePiece.value, range.length.value - at));
    const auto stored = store_->write(key_of((range.start.value + at) / kCachePiece.value), bytes);
    if (!stored && !warned_.exchange(true))
      log(LogLevel::warning, "{}: goes on without caching what does not fit: {}", name(), stored.error().message());
  }
}

}  // namespace

SourceLayer cache_layer() {
  return {.name = "cache",
          .help = "keeps what was fetched on the local disk, for later runs and other processes",
          .parameters = {{"dir", "directory of the cache (required)"},
                         {"size", "most that it takes there, for all sources together (default 1G)"},
                         {"version", "of the bytes, if the source cannot tell: another text, other bytes"}},
          .wrap = CacheLayer::wrap};
}

}  // namespace uffda::sources
