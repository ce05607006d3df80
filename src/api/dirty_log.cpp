#include "uffda/dirty_log.h"

#include <array>
#include <cstdint>

#include "api/memory.h"
#include "mm/write_log.h"

namespace uffda {

/// Whoever keeps the log.
class DirtyLog::Keeper {
 public:
  virtual ~Keeper() = default;
  virtual Result<std::vector<ByteRange>> look(Rearm rearm) = 0;
};

/// The kernel does, in the page table.
class DirtyLog::KernelKeeper final : public Keeper {
 public:
  static Result<std::unique_ptr<Keeper>> start(const Engine& engine, const Memory& memory) {
    auto monitor = Userfault::open(engine, UffdFeature::wp_async);
    if (!monitor)
      return std::unexpected(monitor.error().within("a dirty log needs EngineOptions::monitors with wp_async"));
    const Address start{reinterpret_cast<std::uintptr_t>(memory.bytes().data())};
    const ByteCount length{align_up(memory.bytes().size(), memory.page_size().value)};
    UFFDA_TRY(monitor->register_range(start, length, UffdMode::wp));
    const UffdOutcome armed = monitor->writeprotect(start, length, ResolveFlag::wp);
    if (armed.error != 0) return fail_errno(armed.error, "protecting what a dirty log is kept of");
    return std::make_unique<KernelKeeper>(*std::move(monitor), start, length, ByteCount{memory.bytes().size()});
  }
  KernelKeeper(Userfault monitor, Address start, ByteCount length, ByteCount size)
      : monitor_(std::move(monitor)), start_(start), length_(length), size_(size) {}

  Result<std::vector<ByteRange>> look(Rearm rearm) override {
    constexpr std::size_t kRoom = 256;
    std::array<WrittenRange, kRoom> room{};
    std::vector<ByteRange> found;
    const Address end = start_ + length_;
    for (Address at = start_; at < end;) {
      const auto pages = monitor_.written(at, end - at, room, rearm);
      if (!pages) {
        // What was found and protected again must not be forgotten.
        all_ = all_ || rearm == Rearm::yes;
        return std::unexpected(pages.error());
      }
      for (const WrittenRange& range : std::span(room).first(pages->ranges)) {
        const ByteOffset offset{(range.start - start_).value};
        if (!found.empty() && found.back().end() == offset) {
          found.back().length += range.length;
        } else {
          found.push_back({.start = offset, .length = range.length});
        }
      }
      at = pages->end;
    }
    if (all_) found = {{.start = {}, .length = length_}};
    // The last page may go on behind the end of the memory.
    if (!found.empty() && found.back().end().value > size_.value)
      found.back().length = size_ - ByteCount{found.back().start.value};
    if (rearm == Rearm::yes) all_ = false;
    return found;
  }

 private:
  Userfault monitor_;
  Address start_;
  ByteCount length_;
  ByteCount size_;
  bool all_ = false;  ///< counts as written
};

/// The object does, which hears of the first writes to its pages.
class DirtyLog::ObjectKeeper final : public Keeper {
 public:
  static Result<std::unique_ptr<Keeper>> start(std::shared_ptr<MemoryObject> object) {
    const Duration patience = object->core().options().deadline;
    WriteLog* const log = UFFDA_TRY(object->start_log(Deadline::after(patience)));
    return std::make_unique<ObjectKeeper>(std::move(object), *log);
  }
  ObjectKeeper(std::shared_ptr<MemoryObject> object, WriteLog& log) : object_(std::move(object)), log_(log) {}
  ObjectKeeper(const ObjectKeeper&) = delete;
  ObjectKeeper& operator=(const ObjectKeeper&) = delete;
  ~ObjectKeeper() override { object_->end_log(); }

  Result<std::vector<ByteRange>> look(Rearm rearm) override {
    const auto found =
        rearm == Rearm::no ? log_.peek() : UFFDA_TRY(log_.collect(Deadline::after(object_->core().options().deadline)));
    std::vector<ByteRange> ranges;
    ranges.reserve(found.size());
    for (const FolioRange& folios : found) ranges.push_back(object_->bytes_of(folios));
    return ranges;
  }

 private:
  std::shared_ptr<MemoryObject> object_;
  WriteLog& log_;
};

DirtyLog::DirtyLog(std::unique_ptr<Keeper> keeper) : keeper_(std::move(keeper)) {}
DirtyLog::DirtyLog(DirtyLog&&) noexcept = default;
DirtyLog& DirtyLog::operator=(DirtyLog&&) noexcept = default;
DirtyLog::~DirtyLog() = default;

Result<DirtyLog> DirtyLog::start(const Engine& engine, const Memory& memory) {
  const bool of_object = memory.impl_->object->writes_back() && memory.impl_->access != Access::private_;
  return DirtyLog(
      UFFDA_TRY(of_object ? ObjectKeeper::start(memory.impl_->object) : KernelKeeper::start(engine, memory)));
}

Result<std::vector<ByteRange>> DirtyLog::collect() { return keeper_->look(Rearm::yes); }
Result<std::vector<ByteRange>> DirtyLog::peek() { return keeper_->look(Rearm::no); }

}  // namespace uffda
