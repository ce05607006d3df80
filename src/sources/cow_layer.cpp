// cow+: what is written over a source goes to a file of its own (OverlayFile), and the source stays as it is.
//
//   fetch: nothing of the range was written   the source, as if we were not there
//          all of it was                      the file
//          some                               the source, and over that the file's blocks, in the thread that answers
//   write: the file; its blocks are known from its answer on
#include <fcntl.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "base/log.h"
#include "base/mutex.h"
#include "sources/builtin.h"
#include "sources/file_engine.h"
#include "sources/layer.h"
#include "sources/overlay_file.h"

namespace uffda::sources {
namespace {

class CowLayer final : public Layer, private FetchOwner, private WriteOwner {
 public:
  static Result<std::unique_ptr<PageSource>> wrap(std::unique_ptr<PageSource> inner, const SourceUri& uri) {
    const std::string* const path = uri.find("overlay");
    if (path == nullptr)
      return uffda::fail(Errc::invalid_argument, "cow+ keeps what is written in a file: give overlay=FILE");
    if (uri.what_for() == OpenFor::growing)
      return uffda::fail(Errc::unsupported, "cow+ keeps the size of its source: map it with rw");
    auto overlay = UFFDA_TRY(OverlayFile::open(*path, *inner, uri.what_for()));
    auto layer = std::make_unique<CowLayer>(std::move(inner), std::move(overlay), uri.what_for());
    auto engine = make_ring_engine(layer->access_);
    layer->engine_ = engine ? *std::move(engine) : UFFDA_TRY(make_thread_engine(layer->access_));
    return layer;
  }

  CowLayer(std::unique_ptr<PageSource> source, std::unique_ptr<OverlayFile> overlay, OpenFor what_for)
      : Layer(std::move(source)), overlay_(std::move(overlay)), slots_(std::size_t{2} * kFileParallel) {
    access_.buffered.reset(::fcntl(overlay_->fd(), F_DUPFD_CLOEXEC, 0));
    access_.name = "cow+" + inner().name();
    access_.writable = true;
    SourceProperties properties = inner().properties();
    properties.parallel = std::min(properties.parallel, kFileParallel);
    properties.writable = what_for != OpenFor::reading;
    properties.reserves = properties.writable;
    properties.growable = false;
    properties.version.clear();  // it changes
    const MutexLock lock(mutex_);
    for (Slot& slot : slots_) free_.push_back(&slot);
    opened(access_.name, properties);
  }

  CowLayer(const CowLayer&) = delete;
  CowLayer& operator=(const CowLayer&) = delete;
  ~CowLayer() override {
    close_inner();  // answers what it was asked for us
    engine_.reset();
  }

 private:
  /// A ticket of the core's, while one of ours is under way for it.
  struct Slot {
    std::optional<FetchTicket> fetch;
    std::optional<WriteTicket> write;
    bool mixed = false;
  };

  Slot* take_slot() UFFDA_EXCLUDES(mutex_) {
    const MutexLock lock(mutex_);
    if (free_.empty()) return nullptr;
    Slot* const slot = free_.back();
    free_.pop_back();
    return slot;
  }
  void give_back(Slot& slot) UFFDA_EXCLUDES(mutex_) {
    slot = Slot{};
    const MutexLock lock(mutex_);
    free_.push_back(&slot);
  }

  void do_fetch(FetchTicket ticket) noexcept override {
    const ByteRange range = ticket.range();
    const OverlayFile::Run run = overlay_->run_of(range);
    const bool all = run.length == range.length;
    if (all && !run.written) return inner().fetch(std::move(ticket));
    Slot* const slot = take_slot();
    if (slot == nullptr) return std::move(ticket).fail(Error(Errc::busy, name() + ": too many fetches at once"));
    const std::span<std::byte> buffer = ticket.buffer();
    const Deadline deadline = ticket.deadline();
    slot->mixed = !all;
    slot->fetch.emplace(std::move(ticket));
    if (!all) return inner().fetch(FetchTicket(*this, slot, range, buffer, deadline));
    const ByteRange place{overlay_->place_of(range.start), range.length};
    engine_->start({FetchTicket(*this, slot, place, buffer, deadline), {0}, range.length});
  }

  void fetched(void* request, Result<ByteCount> result) noexcept override {
    Slot& slot = *static_cast<Slot*>(request);
    FetchTicket ticket = *std::move(slot.fetch);
    const bool mixed = slot.mixed;
    give_back(slot);
    if (result && mixed) {
      if (const Result<void> laid = lay_over(ticket.range().start, ticket.buffer().first(ticket.range().length.value));
          !laid)
        result = std::unexpected(laid.error());
    }
    result ? std::move(ticket).complete(*result) : std::move(ticket).fail(std::move(result.error()));
  }

  /// The blocks of the range that were written.
  Result<void> lay_over(ByteOffset start, std::span<std::byte> bytes) const {
    for (std::uint64_t at = 0; at < bytes.size();) {
      const OverlayFile::Run run = overlay_->run_of({.start = start + ByteCount{at}, .length = {bytes.size() - at}});
      if (run.written) UFFDA_TRY_VOID(overlay_->read(start + ByteCount{at}, bytes.subspan(at, run.length.value)));
      at += run.length.value;
    }
    return {};
  }

  Result<void> do_fetch_now(ByteOffset offset, std::span<std::byte> buffer) noexcept override {
    UFFDA_TRY_VOID(inner().fetch_now(offset, buffer));
    return lay_over(offset, buffer);
  }

  void do_write_back(WriteTicket ticket) noexcept override {
    Slot* const slot = take_slot();
    if (slot == nullptr) return std::move(ticket).fail(Error(Errc::busy, name() + ": too many writes at once"));
    const ByteRange range = ticket.range();
    const std::span<const std::byte> bytes = ticket.bytes();
    const Deadline deadline = ticket.deadline();
    slot->write.emplace(std::move(ticket));
    under_way_.fetch_add(1, std::memory_order_relaxed);
    engine_->start(
        {WriteTicket(*this, slot, overlay_->place_of(range.start), bytes, deadline), range.length, under_way_});
  }

  void written_back(void* request, Result<void> result) noexcept override {
    Slot& slot = *static_cast<Slot*>(request);
    WriteTicket ticket = *std::move(slot.write);
    give_back(slot);
    if (!result) return std::move(ticket).fail(std::move(result.error()));
    if (Result<void> noted = overlay_->note_written(ticket.range()); !noted)
      return std::move(ticket).fail(std::move(noted.error()));
    std::move(ticket).complete();
  }

  Result<void> do_flush() override { return overlay_->flush(); }
  Result<void> do_reserve(ByteRange range) override { return overlay_->reserve(range); }

  Result<std::vector<Extent>> do_extents(ByteRange range) override {
    const OverlayFile::Run run = overlay_->run_of(range);
    if (!run.written) return inner().extents({.start = range.start, .length = run.length});
    return std::vector{Extent{.range = {.start = range.start, .length = run.length}}};
  }

  std::unique_ptr<OverlayFile> overlay_;
  FileAccess access_;  // the same file, for the engine
  std::unique_ptr<FileEngine> engine_;
  std::atomic<unsigned> under_way_{0};  // writes; whoever wants to know
  Mutex mutex_;
  std::vector<Slot> slots_;
  std::vector<Slot*> free_ UFFDA_GUARDED_BY(mutex_);
};

}  // namespace

SourceLayer cow_layer() {
  return {.name = "cow",
          .help = "keeps what is written in a file of its own; the source stays as it is",
          .parameters = {{"overlay", "the file: made if it is not there and the source is opened for writing"}},
          .wrap = CowLayer::wrap};
}

}  // namespace uffda::sources
