// Stores an image: its pieces first, under a random name of their own, then the header object, in one step. What was
// there before is removed after that. Until the header stands nothing of it can be opened.
#include "plugins/rados/writer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/log.h"
#include "plugins/rados/lease.h"
#include "plugins/rados/source.h"
#include "plugins/rados/write_op.h"

namespace uffda::sources::rados {
namespace {

constexpr unsigned kPiecesUnderWay = 8;
constexpr unsigned kRemovalsUnderWay = 32;
constexpr std::chrono::seconds kGrace{5};           ///< for librados to say itself that a request took too long
constexpr std::uint64_t kLargestFilledGap = 65536;  ///< zeroes between data that are written rather than left out

/// Removes the pieces of an image that no header names, as far as that works: what stays is only space.
void remove_pieces(const std::shared_ptr<const Cluster>& cluster, const Header& header) {
  Changes removals(cluster, kRemovalsUnderWay, -ENOENT);
  Result<void> removed;
  for (std::uint64_t piece = 0; piece < header.pieces() && removed; ++piece) {
    if (!header.is_stored(piece)) continue;
    const std::string name = header.piece_name(cluster->object(), piece);
    removed = removals.start("removing " + name, [&](rados_completion_t completion) {
      return ::rados_aio_remove(cluster->io(), name.c_str(), completion);
    });
  }
  if (Result<void> rest = removals.finish(); removed) removed = std::move(rest);
  if (!removed) {
    log(LogLevel::warning, "{}: objects named {}.{}.* are left over and can be removed: {}", cluster->name(),
        cluster->object(), header.generation_text(), removed.error().message());
  }
}

class RadosWriter final : public SourceWriter {
 public:
  RadosWriter(std::shared_ptr<const Cluster> cluster, Header header, std::optional<Cluster::Found> old)
      : cluster_(std::move(cluster)),
        header_(std::move(header)),
        old_(std::move(old)),
        changes_(cluster_, kPiecesUnderWay),
        buffer_(header_.object_size.value) {}

  ~RadosWriter() override {
    if (header_stands_) return;
    (void)changes_.finish();
    remove_pieces(cluster_, header_);
  }

  Result<void> write(ByteOffset offset, std::span<const std::byte> bytes) override {
    if (offset < end_ || bytes.size() > header_.size.value || offset.value > header_.size.value - bytes.size())
      return fail(Errc::out_of_range, cluster_->name() + ": a write outside of the image or not behind the last one");
    while (!bytes.empty()) {
      const std::uint64_t piece = header_.piece_of(offset);
      if (piece != piece_) UFFDA_TRY_VOID(store_piece());
      piece_ = piece;
      const ByteRange range = header_.range_of(piece);
      const auto part = bytes.first(std::min<std::uint64_t>(bytes.size(), range.end().value - offset.value));
      add(offset.value - range.start.value, part);
      offset = offset + ByteCount{part.size()};
      bytes = bytes.subspan(part.size());
    }
    end_ = offset;
    return {};
  }

  Result<void> finish() override {
    UFFDA_TRY_VOID(store_piece());
    UFFDA_TRY_VOID(changes_.finish());
    UFFDA_TRY_VOID(store_header());
    if (old_) remove_pieces(cluster_, old_->header);
    return {};
  }

 private:
  struct Run {
    std::uint64_t start;  ///< in the piece
    std::uint64_t end;
  };

  void add(std::uint64_t at, std::span<const std::byte> bytes) {
    std::memcpy(buffer_.data() + at, bytes.data(), bytes.size());
    if (!runs_.empty() && at - runs_.back().end <= kLargestFilledGap) {
      std::fill(buffer_.begin() + static_cast<std::ptrdiff_t>(runs_.back().end),
                buffer_.begin() + static_cast<std::ptrdiff_t>(at), std::byte{0});
      runs_.back().end = at + bytes.size();
    } else {
      runs_.push_back({at, at + bytes.size()});
    }
  }

  /// Starts the write of the piece that is in the buffer, if there is one.
  Result<void> store_piece() {
    if (runs_.empty()) return {};
    WriteOp op;
    ::rados_write_op_create(op.get(), LIBRADOS_CREATE_EXCLUSIVE, nullptr);
    for (const Run& run : runs_) op.write(std::span(buffer_).subspan(run.start, run.end - run.start), run.start);
    // A piece is as long as it should be, so that a reader can tell one that was cut off.
    ::rados_write_op_truncate(op.get(), header_.range_of(piece_).length.value);
    runs_.clear();
    header_.set_stored(piece_);
    const std::string name = header_.piece_name(cluster_->object(), piece_);
    return changes_.start("writing " + name, [&](rados_completion_t completion) {
      return ::rados_aio_write_op_operate(op.get(), cluster_->io(), completion, name.c_str(), nullptr,
                                          LIBRADOS_OPERATION_FULL_TRY);
    });
  }

  Result<void> store_header() {
    const std::vector<std::byte> bytes = encode(header_);
    WriteOp op;
    if (old_) {
      ::rados_write_op_assert_version(op.get(), old_->version);
      op.set(WriterRecord::kAttribute, "");  // the new image never had a writer
    } else {
      ::rados_write_op_create(op.get(), LIBRADOS_CREATE_EXCLUSIVE, nullptr);
    }
    op.write_full(bytes);
    const int status = ::rados_write_op_operate(op.get(), cluster_->io(), cluster_->object().c_str(), nullptr,
                                                LIBRADOS_OPERATION_FULL_TRY);
    // Without an answer it may stand or not: then its pieces must stay.
    header_stands_ = status >= 0 || status == -ETIMEDOUT;
    if (status >= 0) return {};
    if (status == -EEXIST) return fail(Errc::already_exists, cluster_->name() + ": somebody else stored it meanwhile");
    if (status == -ERANGE || status == -EOVERFLOW || status == -ENOENT)
      return fail(Errc::busy, cluster_->name() + ": somebody else stored or removed it meanwhile");
    Error error = error_of(status, cluster_->name() + ": writing the header");
    if (status != -ETIMEDOUT) return std::unexpected(std::move(error));
    return std::unexpected(error.within("it may be stored or not, look with rados stat"));
  }

  const std::shared_ptr<const Cluster> cluster_;
  Header header_;
  const std::optional<Cluster::Found> old_;
  Changes changes_;
  std::vector<std::byte> buffer_;  ///< of the piece piece_, where runs_ say so
  std::vector<Run> runs_;
  std::uint64_t piece_ = 0;
  ByteOffset end_;
  bool header_stands_ = false;  ///< or may stand
};

/// What has the name now. Errors: already_exists (it may not be replaced, or is not ours), busy (somebody writes to
/// it), and those of reading it.
Result<std::optional<Cluster::Found>> find_old(const Cluster& cluster, bool replace) {
  Result<Cluster::Found> found = cluster.read_header();
  if (found && replace) {
    // Asked after the version was read, which changes when somebody begins to write.
    const std::string writer = UFFDA_TRY(writer_of(cluster));
    if (!writer.empty()) return fail(Errc::busy, fmt::format("{}: {} writes to it", cluster.name(), writer));
    return std::optional(*std::move(found));
  }
  if (found)
    return fail(Errc::already_exists, cluster.name() + ": there is such an image already: --replace replaces it");
  if (found.error().code() == Errc::not_found) return std::optional<Cluster::Found>{};
  if (found.error().code() != Errc::invalid_argument) return std::unexpected(found.error());
  // Somebody else's object, or one whose pieces nobody knows.
  return fail(Errc::already_exists, fmt::format("{}; to be rid of it: rados -p '{}' rm '{}'", found.error().context(),
                                                cluster.pool(), cluster.object()));
}

}  // namespace

Changes::Changes(std::shared_ptr<const Cluster> cluster, unsigned parallel, int forgiven)
    : cluster_(std::move(cluster)), parallel_(parallel) {
  state_->forgiven = forgiven;
}

Changes::~Changes() {
  if (wait_for(0)) return;
  log(LogLevel::warning, "{}: librados does not answer, though its time is over; the connection is left to it",
      cluster_->name());
  (void)new std::shared_ptr<const Cluster>(cluster_);
}

Result<void> Changes::start(const std::string& what, const std::function<int(rados_completion_t)>& request) {
  UFFDA_TRY_VOID(check(parallel_ - 1));
  {
    const MutexLock lock(state_->mutex);
    ++state_->under_way;
  }
  auto change = std::make_unique<Change>(state_, fmt::format("{}: {}", cluster_->name(), what));
  rados_completion_t completion = nullptr;
  int status = ::rados_aio_create_completion2(change.get(), &Changes::answered, &completion);
  if (status >= 0) {
    status = request(completion);
    ::rados_aio_release(completion);  // librados keeps a reference of its own
  }
  if (status >= 0) {
    (void)change.release();  // answered() has it
    return {};
  }
  state_->hear(change->what, status);
  return check(parallel_);
}

Result<void> Changes::finish() { return check(0); }

void Changes::answered(rados_completion_t completion, void* change) {
  const std::unique_ptr<Change> answered(static_cast<Change*>(change));
  answered->state->hear(answered->what, ::rados_aio_get_return_value(completion));
}

void Changes::State::hear(const std::string& what, int status) {
  const MutexLock lock(mutex);
  --under_way;
  if (status < 0 && status != forgiven && !error) error.emplace(error_of(status, what));
  changed.notify_all();
}

bool Changes::wait_for(unsigned count) {
  const TimePoint limit = Clock::now() + cluster_->timeout() + kGrace;
  State& state = *state_;
  const MutexLock lock(state.mutex);
  while (state.under_way > count && Clock::now() < limit) state.changed.wait_until(state.mutex, limit);
  return state.under_way <= count;
}

Result<void> Changes::check(unsigned count) {
  if (!wait_for(count)) return fail(Errc::timed_out, cluster_->name() + ": librados does not answer");
  const MutexLock lock(state_->mutex);
  if (state_->error) return std::unexpected(*state_->error);
  return {};
}

Result<std::unique_ptr<SourceWriter>> create(const SourceUri& uri, const StoreOptions& options) {
  const std::string* const object_size = uri.find("object-size");
  const ByteCount piece = object_size == nullptr ? kDefaultObjectSize : UFFDA_TRY(parse_size(*object_size));
  Header header = UFFDA_TRY(Header::make(options.size, piece, UFFDA_TRY(random_generation())));
  const std::shared_ptr<const Cluster> cluster = UFFDA_TRY(Cluster::connect(uri));
  auto old = UFFDA_TRY(find_old(*cluster, options.replace));
  return std::make_unique<RadosWriter>(cluster, std::move(header), std::move(old));
}

}  // namespace uffda::sources::rados
