#include "sources/pack/writer.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <optional>
#include <unordered_map>

#include "base/bytes.h"
#include "os/atomic_file.h"
#include "os/memory.h"

namespace uffda::pack {
namespace {

constexpr std::uint64_t kBatchBytesPerThread = std::uint64_t{4} << 20U;
constexpr std::chrono::seconds kReadTimeout{60};

/// A frame on its way into the pack.
struct Draft {
  Frame frame;
  bool zero = false;
  bool known_zero = false;  ///< the source says so, and was not read
  std::size_t compressed = 0;
};

/// Frames [first, first + count).
struct Batch {
  std::uint64_t first = 0;
  std::uint64_t count = 0;
  std::vector<std::byte> contents;
  std::vector<std::byte> packed;
  std::vector<Draft> drafts;
};

/// What a thread of its own needs.
struct Worker {
  Compressor compressor;
  BlockingReader input;
  std::optional<FrameReader> base;
  std::vector<std::byte> other;  ///< a frame to compare with
};

class Writer {
 public:
  Writer(PageSource& input, const WriterOptions& options, os::AtomicFile file)
      : input_(input),
        options_(options),
        file_(std::move(file)),
        size_(input.properties().size),
        frames_((size_.value + options.frame_size.value - 1) / options.frame_size.value),
        index_(size_, options.frame_size, options.base != nullptr ? options.base->index().identity() : Checksum{}) {}

  Result<void> start();
  Result<void> run();
  Result<Summary> finish(const std::string& metadata);

 private:
  [[nodiscard]] ByteRange range(std::uint64_t number) const;
  [[nodiscard]] std::span<std::byte> slot(std::vector<std::byte>& of, std::uint64_t at) const;
  Result<void> find_zeroes(Batch& batch);
  Result<void> read_frame(Batch& batch, std::uint64_t at, Worker& worker);
  void decide(Batch& batch);
  Frame decide(const Draft& draft, std::uint64_t number);
  Result<void> pack_frame(Batch& batch, std::uint64_t at, Worker& worker);
  Result<bool> really_same(const Draft& draft, std::span<const std::byte> contents, Worker& worker) const;
  Result<void> write(Batch& batch);
  Result<void> round(Batch& writing, Batch& packing, Batch& reading);
  Result<Section> append(std::span<const std::byte> bytes);

  PageSource& input_;
  const WriterOptions& options_;
  os::AtomicFile file_;
  const ByteCount size_;
  const std::uint64_t frames_;
  IndexBuilder index_;
  ByteOffset end_{kHeaderBytes};  ///< of what is written
  ByteOffset extent_end_;         ///< up to here the source was asked for its zeroes
  std::vector<Extent> extents_;
  std::vector<Worker> workers_;
  std::unordered_map<Checksum, std::uint64_t, ChecksumHash> seen_;     ///< stored frames of this pack
  std::unordered_map<Checksum, std::uint64_t, ChecksumHash> in_base_;  ///< frames of the base, the first of each
};

ByteRange Writer::range(std::uint64_t number) const {
  const std::uint64_t start = number * options_.frame_size.value;
  return {{start}, {std::min(options_.frame_size.value, size_.value - start)}};
}

std::span<std::byte> Writer::slot(std::vector<std::byte>& of, std::uint64_t at) const {
  return std::span(of).subspan(at * options_.frame_size.value, options_.frame_size.value);
}

Result<void> Writer::start() {
  const unsigned threads = options_.threads != 0 ? options_.threads : all_cpus();
  for (unsigned i = 0; i < threads; ++i) {
    workers_.push_back({.compressor = UFFDA_TRY(Compressor::create(options_.level)),
                        .input = BlockingReader(input_, kReadTimeout),
                        .base = std::nullopt,
                        .other = std::vector<std::byte>(options_.frame_size.value)});
    if (options_.base != nullptr) workers_.back().base.emplace(UFFDA_TRY(FrameReader::create(*options_.base)));
  }
  if (options_.base == nullptr) return {};
  const Index& base = options_.base->index();
  for (std::uint64_t number = 0; number < base.frames(); ++number) {
    const Frame frame = base.frame(number);
    // The last frame may be a short one, which only another of its length can be equal to.
    if (frame.kind != FrameKind::zero) in_base_.try_emplace(frame.checksum, number);
  }
  return {};
}

/// Marks the frames of a batch that lie in zeroes of the source: holes cost no read.
Result<void> Writer::find_zeroes(Batch& batch) {
  std::uint64_t known = 0;  // extents that end before the frame at hand
  for (std::uint64_t at = 0; at < batch.count; ++at) {
    const ByteRange frame = range(batch.first + at);
    while (extent_end_ < frame.end()) {
      auto more = UFFDA_TRY(input_.extents({extent_end_, ByteOffset{size_.value} - extent_end_}));
      if (more.empty()) return fail(Errc::io, input_.name() + ": no extents");
      extent_end_ = more.back().range.end();
      extents_.insert(extents_.end(), more.begin(), more.end());
    }
    while (extents_[known].range.end() <= frame.start) ++known;
    bool zero = true;
    for (std::uint64_t i = known; zero && i < extents_.size() && extents_[i].range.start < frame.end(); ++i) {
      zero = extents_[i].kind == Extent::Kind::zero;
    }
    batch.drafts[at].known_zero = zero;
  }
  // What ends before the next batch is not needed any more.
  const ByteOffset end = range(batch.first + batch.count - 1).end();
  std::erase_if(extents_, [&](const Extent& one) { return one.range.end() <= end; });
  return {};
}

Result<void> Writer::read_frame(Batch& batch, std::uint64_t at, Worker& worker) {
  Draft& draft = batch.drafts[at];
  draft.zero = draft.known_zero;
  if (draft.zero) return {};
  const ByteRange frame = range(batch.first + at);
  const auto contents = slot(batch.contents, at).first(frame.length.value);
  UFFDA_TRY_VOID(worker.input.read(frame.start, contents));
  draft.zero = all_zero(contents);
  if (!draft.zero) draft.frame.checksum = checksum_of(contents);
  return {};
}

Frame Writer::decide(const Draft& draft, std::uint64_t number) {
  Frame frame = draft.frame;
  if (draft.zero) return {};
  const ByteCount length = range(number).length;
  if (options_.base != nullptr) {
    const Index& base = options_.base->index();
    const bool unmoved = number < base.frames() && base.frame(number).kind != FrameKind::zero &&
                         base.frame(number).checksum == frame.checksum && base.range(number).length == length;
    const auto moved = in_base_.find(frame.checksum);
    if (unmoved || (moved != in_base_.end() && base.range(moved->second).length == length)) {
      frame.kind = FrameKind::base;
      frame.place = unmoved ? number : moved->second;
      return frame;
    }
  }
  const auto [original, is_new] = seen_.try_emplace(frame.checksum, number);
  if (!is_new && range(original->second).length == length) {
    frame.kind = FrameKind::duplicate;
    frame.place = original->second;
    return frame;
  }
  frame.kind = FrameKind::zstd;
  return frame;
}

/// By one thread, in order.
void Writer::decide(Batch& batch) {
  for (std::uint64_t at = 0; at < batch.count; ++at)
    batch.drafts[at].frame = decide(batch.drafts[at], batch.first + at);
}

/// Equal checksums are taken for equal contents only after a look at the contents.
Result<bool> Writer::really_same(const Draft& draft, std::span<const std::byte> contents, Worker& worker) const {
  const auto other = std::span(worker.other).first(contents.size());
  if (draft.frame.kind == FrameKind::base) {
    UFFDA_TRY_VOID(worker.base->read(draft.frame.place, other));
  } else {
    UFFDA_TRY_VOID(worker.input.read(range(draft.frame.place).start, other));
  }
  return std::ranges::equal(contents, other);
}

Result<void> Writer::pack_frame(Batch& batch, std::uint64_t at, Worker& worker) {
  Draft& draft = batch.drafts[at];
  if (draft.frame.kind == FrameKind::zero) return {};
  const auto contents = slot(batch.contents, at).first(range(batch.first + at).length.value);
  if (draft.frame.kind != FrameKind::zstd) {
    if (UFFDA_TRY(really_same(draft, contents, worker))) return {};
    draft.frame = {.kind = FrameKind::zstd, .checksum = draft.frame.checksum};
  }
  // Less than a sixty-fourth saved is not worth the unpacking.
  const auto room = slot(batch.packed, at).first(contents.size() - 1 - contents.size() / 64);
  const std::size_t packed = UFFDA_TRY(worker.compressor.compress(contents, room));
  if (packed == 0) draft.frame.kind = FrameKind::raw;
  draft.frame.stored = static_cast<std::uint32_t>(packed == 0 ? contents.size() : packed);
  return {};
}

Result<void> Writer::write(Batch& batch) {
  const ByteOffset start = end_;
  for (std::uint64_t at = 0; at < batch.count; ++at) {
    Frame& frame = batch.drafts[at].frame;
    if (frame.is_stored()) {
      auto& from = frame.kind == FrameKind::raw ? batch.contents : batch.packed;
      frame.place = end_.value;
      UFFDA_TRY_VOID(os::write_at(file_.fd(), end_, slot(from, at).first(frame.stored)));
      end_ = end_ + ByteCount{frame.stored};
    }
    index_.add(frame);
  }
  // To the disk meanwhile, so that the end has less to wait for. A file system that cannot do that is none the worse.
  if (end_ == start) return {};
  (void)::sync_file_range(file_.fd(), static_cast<off_t>(start.value), static_cast<off_t>((end_ - start).value),
                          SYNC_FILE_RANGE_WRITE);
  return {};
}

Result<void> Writer::round(Batch& writing, Batch& packing, Batch& reading) {
  const std::uint64_t count = 1 + packing.count + reading.count;
  return in_parallel(static_cast<unsigned>(workers_.size()), count, [&](std::uint64_t number, unsigned thread) {
    if (options_.cancel != nullptr && *options_.cancel) return Result<void>(fail(Errc::cancelled, "interrupted"));
    if (number == 0) return write(writing);
    if (number <= packing.count) return pack_frame(packing, number - 1, workers_[thread]);
    return read_frame(reading, number - 1 - packing.count, workers_[thread]);
  });
}

Result<void> Writer::run() {
  const std::uint64_t batch_bytes = kBatchBytesPerThread * workers_.size();
  const std::uint64_t per_batch = std::min(batch_bytes / options_.frame_size.value, frames_);
  std::array<Batch, 3> batches;
  for (Batch& batch : batches) {
    batch.contents.resize(per_batch * options_.frame_size.value);
    batch.packed.resize(per_batch * options_.frame_size.value);
  }
  const std::uint64_t rounds = (frames_ + per_batch - 1) / per_batch + 2;
  for (std::uint64_t number = 0; number < rounds; ++number) {
    Batch& reading = batches.at(number % 3);
    Batch& packing = batches.at((number + 2) % 3);  // read in the round before
    Batch& writing = batches.at((number + 1) % 3);  // packed in the round before
    reading.first = std::min(number * per_batch, frames_);
    reading.count = std::min(per_batch, frames_ - reading.first);
    reading.drafts.assign(reading.count, {});
    if (reading.count != 0) UFFDA_TRY_VOID(find_zeroes(reading));
    UFFDA_TRY_VOID(round(writing, packing, reading));
    decide(reading);
    const ByteCount done{std::min((packing.first + packing.count) * options_.frame_size.value, size_.value)};
    if (options_.progress) options_.progress({.done = done, .size = size_, .written = end_ - ByteOffset{}});
  }
  return {};
}

Result<Section> Writer::append(std::span<const std::byte> bytes) {
  const Section section{.range = {end_, {bytes.size()}}, .checksum = checksum_of(bytes)};
  UFFDA_TRY_VOID(os::write_at(file_.fd(), end_, bytes));
  end_ = section.range.end();
  return section;
}

Result<Summary> Writer::finish(const std::string& metadata) {
  Header header;
  header.index = UFFDA_TRY(append(index_.bytes()));
  header.metadata = UFFDA_TRY(append(std::as_bytes(std::span(metadata))));
  const std::string base_name = options_.base != nullptr ? options_.base_name : std::string();
  header.base_name = UFFDA_TRY(append(std::as_bytes(std::span(base_name))));
  header.working_set = UFFDA_TRY(append(options_.working_set));
  header.file_size = end_ - ByteOffset{};
  UFFDA_TRY_VOID(os::write_at(file_.fd(), {0}, encode_header(header)));
  UFFDA_TRY_VOID(file_.commit());
  // The reader's own checks over what was written; from memory, so it costs nothing that can be measured.
  const std::span<const std::byte> bytes = index_.bytes();
  return summary_of(UFFDA_TRY(Index::parse({bytes.begin(), bytes.end()}, header)), header.file_size);
}

Result<void> check_options(const PageSource& input, const WriterOptions& options) {
  const std::uint64_t frame = options.frame_size.value;
  if (!std::has_single_bit(frame) || options.frame_size < kMinFrame || options.frame_size > kMaxFrame) {
    return fail(Errc::invalid_argument, "the frame size is a power of two from 4 KiB to 1 MiB");
  }
  const ByteCount size = input.properties().size;
  if ((size.value - 1) / frame >= kMaxFrames) {
    return fail(Errc::invalid_argument,
                fmt::format("{}: is too large for frames of {} bytes: choose larger ones", input.name(), frame));
  }
  if (options.base == nullptr) return {};
  const ByteCount of_base = options.base->index().frame_size();
  if (of_base != options.frame_size) {
    return fail(Errc::invalid_argument, fmt::format("the base has frames of {} bytes: choose the same", of_base.value));
  }
  if (options.base->packs().size() >= kMaxDepth) {
    return fail(Errc::invalid_argument,
                fmt::format("{} packs build on each other already: pack without a base", kMaxDepth));
  }
  if (!valid_base_name(options.base_name)) {
    return fail(Errc::invalid_argument, "the name of the base must be that of a file, without a directory");
  }
  return {};
}

}  // namespace

Summary summary_of(const Index& index, ByteCount file_size) {
  Summary summary{.size = index.size(), .file_size = file_size};
  for (std::uint64_t number = 0; number < index.frames(); ++number) {
    const Frame frame = index.frame(number);
    KindCount& kind = summary.kinds.at(static_cast<std::size_t>(frame.kind));
    ++kind.frames;
    kind.contents += index.range(number).length;
    kind.stored += {frame.stored};
  }
  return summary;
}

Result<Summary> write_pack(PageSource& input, const std::string& path, const WriterOptions& options) {
  UFFDA_TRY_VOID(check_options(input, options));
  const std::string metadata = UFFDA_TRY(encode_metadata(options.metadata));
  Writer writer(input, options, UFFDA_TRY(os::AtomicFile::create(path)));
  UFFDA_TRY_VOID(writer.start());
  UFFDA_TRY_VOID(writer.run());
  return writer.finish(metadata);
}

}  // namespace uffda::pack
