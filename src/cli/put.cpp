#include "cli/put.h"

#include <fmt/format.h>

#include <algorithm>
#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "base/bytes.h"
#include "base/mutex.h"
#include "uffda/page_source.h"
#include "uffda/source_registry.h"

namespace uffda::cli {
namespace {

constexpr std::uint64_t kChunk = std::uint64_t{1} << 20U;
constexpr unsigned kReadsUnderWay = 16;
constexpr std::uint64_t kZeroBlock = 4096;               ///< shorter runs of zeroes are stored
constexpr std::chrono::milliseconds kBetweenCalls{100};  ///< of progress, while nothing comes
constexpr std::chrono::seconds kGrace{5};                ///< for a source to answer a read whose deadline has passed

/// One read of the input. Lives until it is answered.
class ChunkRead final : public FetchOwner {
 public:
  ChunkRead(ByteRange range, Deadline deadline) : range_(range), deadline_(deadline), bytes_(range.length.value) {}

  static void start(const std::shared_ptr<ChunkRead>& read, PageSource& source) {
    read->self_ = read;
    source.fetch(FetchTicket(*read, nullptr, read->range_, read->bytes_, read->deadline_));
  }

  [[nodiscard]] ByteOffset offset() const { return range_.start; }
  [[nodiscard]] Deadline deadline() const { return deadline_; }

  /// Waits for the answer, or until `when`. Whether it is there.
  bool wait_until(TimePoint when) {
    const MutexLock lock(mutex_);
    while (!result_ && Clock::now() < when) answered_.wait_until(mutex_, when);
    return result_.has_value();
  }
  /// What was read. Errors: the source's, timed_out (there is no answer), io (a short read).
  Result<std::span<const std::byte>> answer() {
    const MutexLock lock(mutex_);
    if (!result_) return fail(Errc::timed_out, "the input does not answer");
    if (!*result_) return std::unexpected(result_->error());
    if (result_->value() != range_.length) return fail(Errc::io, "a short read of the input");
    return std::span<const std::byte>(bytes_);
  }

 private:
  void fetched(void*, Result<ByteCount> result) noexcept override {
    const std::shared_ptr<ChunkRead> self = std::move(self_);  // may be the last one: gone behind the lock
    const MutexLock lock(mutex_);
    result_ = std::move(result);
    answered_.notify_all();
  }

  const ByteRange range_;
  const Deadline deadline_;
  std::vector<std::byte> bytes_;
  std::shared_ptr<ChunkRead> self_;  ///< while it is not answered

  Mutex mutex_;
  CondVar answered_;
  std::optional<Result<ByteCount>> result_ UFFDA_GUARDED_BY(mutex_);
};

/// The ranges of the input that are worth reading, a chunk at a time.
class Chunks {
 public:
  explicit Chunks(PageSource& source) : source_(source), size_(source.properties().size) {}

  /// None: that was the last one.
  Result<std::optional<ByteRange>> next() {
    while (at_.value < size_.value) {
      if (at_.value >= data_end_) UFFDA_TRY_VOID(find_data());
      if (at_.value >= data_end_) continue;  // zeroes, left behind
      const std::uint64_t end = std::min(align_down(at_.value + kChunk, kChunk), data_end_);
      const ByteRange chunk{at_, {end - at_.value}};
      at_ = {end};
      return std::optional(chunk);
    }
    return std::optional<ByteRange>{};
  }

 private:
  /// Goes behind what is zeroes, or finds out how far the data goes.
  Result<void> find_data() {
    const std::vector<Extent> extents = UFFDA_TRY(source_.extents({at_, size_ - ByteCount{at_.value}}));
    for (const Extent& extent : extents) {
      const std::uint64_t end = extent.range.end().value;
      if (extent.kind == Extent::Kind::data) {
        data_end_ = std::min(align_up(end, kZeroBlock), size_.value);
        break;
      }
      // A block with some data in it is read as a whole.
      at_ = {std::max(at_.value, end == size_.value ? end : align_down(end, kZeroBlock))};
      if (end % kZeroBlock != 0 && end != size_.value) {
        data_end_ = std::min(align_up(end, kZeroBlock), size_.value);
        break;
      }
    }
    return {};
  }

  PageSource& source_;
  const ByteCount size_;
  ByteOffset at_;
  std::uint64_t data_end_ = 0;
};

class Copy {
 public:
  Copy(PageSource& source, SourceWriter& writer, Duration deadline,
       const std::function<bool(const PutProgress&)>& hears)
      : source_(source), writer_(writer), deadline_(deadline), hears_(hears), chunks_(source) {
    progress_.size = source.properties().size;
    parallel_ = std::clamp(source.properties().parallel, 1U, kReadsUnderWay);
  }
  Result<PutProgress> run() {
    UFFDA_TRY_VOID(fill());
    while (!reads_.empty()) {
      const std::shared_ptr<ChunkRead> read = reads_.front();
      const TimePoint limit = read->deadline().when() + kGrace;
      while (!read->wait_until(std::min(limit, Clock::now() + kBetweenCalls)) && Clock::now() < limit)
        UFFDA_TRY_VOID(tell());
      const auto bytes = UFFDA_TRY(read->answer());
      reads_.pop_front();
      UFFDA_TRY_VOID(fill());
      UFFDA_TRY_VOID(store(read->offset(), bytes));
      progress_.done = {read->offset().value + bytes.size()};
      UFFDA_TRY_VOID(tell());
    }
    progress_.done = progress_.size;
    return progress_;
  }

 private:
  Result<void> tell() const {
    if (hears_(progress_)) return {};
    return fail(Errc::cancelled, "interrupted; nothing was stored");
  }

  Result<void> fill() {
    while (reads_.size() < parallel_) {
      const std::optional<ByteRange> range = UFFDA_TRY(chunks_.next());
      if (!range) break;
      reads_.push_back(std::make_shared<ChunkRead>(*range, Deadline::after(deadline_)));
      ChunkRead::start(reads_.back(), source_);
    }
    return {};
  }

  /// Without the blocks that are zeroes.
  Result<void> store(ByteOffset offset, std::span<const std::byte> bytes) {
    std::uint64_t start = 0;  // of data that is not written yet
    for (std::uint64_t at = 0; at < bytes.size();) {
      const std::uint64_t length = std::min(kZeroBlock, bytes.size() - at);
      const bool zero = all_zero(bytes.subspan(at, length));
      if (zero) UFFDA_TRY_VOID(write(offset, bytes, start, at));
      at += length;
      if (zero) start = at;
    }
    return write(offset, bytes, start, bytes.size());
  }

  Result<void> write(ByteOffset offset, std::span<const std::byte> bytes, std::uint64_t start, std::uint64_t end) {
    if (start == end) return {};
    progress_.stored += ByteCount{end - start};
    return writer_.write(offset + ByteCount{start}, bytes.subspan(start, end - start));
  }

  PageSource& source_;
  SourceWriter& writer_;
  const Duration deadline_;
  const std::function<bool(const PutProgress&)>& hears_;
  Chunks chunks_;
  unsigned parallel_ = 1;
  std::deque<std::shared_ptr<ChunkRead>> reads_;  ///< in the order of the image
  PutProgress progress_{};
};

/// A path as the URI that names it.
std::string file_uri(const std::string& path) {
  std::string uri = "file:";
  for (const char c : path) {
    if (c == '%' || c == '?') {
      uri += fmt::format("%{:02X}", static_cast<unsigned>(c));
    } else {
      uri += c;
    }
  }
  return uri;
}

/// What has the form of a URI of a known scheme is one; the rest are paths.
std::string input_uri(const std::string& input) {
  const Result<SourceUri> parsed = parse_source_uri(input);
  if (!parsed) return file_uri(input);
  const auto schemes = source_schemes();
  const bool known = std::ranges::any_of(schemes, [&](const auto& scheme) { return scheme.name == parsed->scheme(); });
  return known ? input : file_uri(input);
}

}  // namespace

Result<PutProgress> put(const PutCommand& command, const std::function<bool(const PutProgress&)>& progress) {
  const std::unique_ptr<PageSource> source = UFFDA_TRY(open_source(input_uri(command.input)));
  const ByteCount size = source->properties().size;
  PutProgress done;
  {
    const std::unique_ptr<SourceWriter> writer =
        UFFDA_TRY(create_source(command.uri, {.size = size, .replace = command.replace}));
    done = UFFDA_TRY(Copy(*source, *writer, command.deadline, progress).run());
    UFFDA_TRY_VOID(writer->finish());
  }
  const std::unique_ptr<PageSource> stored = UFFDA_TRY(open_source(command.uri));
  if (stored->properties().size != size) {
    return fail(Errc::io, fmt::format("{}: {} bytes were stored, and it shows {}", stored->name(), size.value,
                                      stored->properties().size.value));
  }
  return done;
}

}  // namespace uffda::cli
