#include "sources/pack/blocking_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "base/mutex.h"

namespace uffda::pack {
namespace {

constexpr std::uint64_t kPiece = std::uint64_t{1} << 20U;

}  // namespace

/// A buffer and the answer to one fetch into it. A source that misses the deadline may still write there, so the buffer
/// lives until it has answered, whatever has become of the reader.
struct BlockingReader::Pending final : FetchOwner {
  Mutex mutex;
  CondVar changed;
  std::optional<Result<ByteCount>> answer UFFDA_GUARDED_BY(mutex);
  std::shared_ptr<Pending> self UFFDA_GUARDED_BY(mutex);  ///< while the source has the buffer
  std::vector<std::byte> buffer = std::vector<std::byte>(kPiece + 2 * kMaxBlock);

  void fetched(void*, Result<ByteCount> result) noexcept override {
    std::shared_ptr<Pending> last;  // freed after the lock
    const MutexLock lock(mutex);
    answer.emplace(std::move(result));
    last = std::move(self);
    changed.notify_all();
  }

  /// Empty if the deadline passed.
  std::optional<Result<ByteCount>> wait(Deadline deadline) {
    const MutexLock lock(mutex);
    while (!answer && !deadline.passed()) changed.wait_until(mutex, deadline.when());
    return std::exchange(answer, std::nullopt);
  }
};

BlockingReader::BlockingReader(PageSource& source, Duration timeout) : source_(&source), timeout_(timeout) {}
BlockingReader::BlockingReader(BlockingReader&&) noexcept = default;
BlockingReader::~BlockingReader() = default;

Result<void> BlockingReader::read_piece(ByteRange blocks) {
  if (!pending_) pending_ = std::make_shared<Pending>();
  const auto buffer = std::span(pending_->buffer).first(blocks.length.value);
  {
    const MutexLock lock(pending_->mutex);
    pending_->self = pending_;
  }
  const Deadline deadline = Deadline::after(timeout_);
  source_->fetch(FetchTicket(*pending_, nullptr, blocks, buffer, deadline));
  const std::optional<Result<ByteCount>> answer = pending_->wait(deadline);
  if (!answer) {
    pending_.reset();  // the source still has it
    return fail(Errc::timed_out, fmt::format("{}: no answer for {} bytes at {}", source_->name(), blocks.length.value,
                                             blocks.start.value));
  }
  if (!*answer) return std::unexpected(answer->error());
  if (**answer == blocks.length) return {};
  return fail(Errc::io, fmt::format("{}: short read: {} of {} bytes at {}", source_->name(), (*answer)->value,
                                    blocks.length.value, blocks.start.value));
}

Result<void> BlockingReader::read(ByteOffset offset, std::span<std::byte> out) {
  const SourceProperties& source = source_->properties();
  const std::uint64_t block = source.block_size.value;
  while (!out.empty()) {
    const std::size_t length = std::min<std::size_t>(out.size(), kPiece);
    const std::uint64_t start = align_down(offset.value, block);
    const std::uint64_t end = std::min(align_up(offset.value + length, block), source.size.value);
    if (source.immediate && start == offset.value && end == offset.value + length) {
      if (auto read = source_->fetch_now(offset, out.first(length)); !read)
        return std::unexpected(read.error().within(fmt::format("{}: {} bytes at {}", source_->name(), length, start)));
    } else {
      UFFDA_TRY_VOID(read_piece({{start}, {end - start}}));
      const auto got = std::span(pending_->buffer).subspan(offset.value - start, length);
      std::ranges::copy(got, out.begin());
    }
    out = out.subspan(length);
    offset.value += length;
  }
  return {};
}

}  // namespace uffda::pack
