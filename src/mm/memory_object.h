// A memory object: one sized instance of a memory type, with its page cache and its page source (Linux: inode and
// address_space).
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "mm/budget.h"
#include "mm/core.h"
#include "mm/eviction_queue.h"
#include "mm/folio_bits.h"
#include "mm/folio_observer.h"
#include "mm/folio_states.h"
#include "mm/latency_floor.h"
#include "mm/memory_type.h"
#include "mm/read_ahead.h"
#include "mm/request_table.h"
#include "mm/writeback.h"
#include "uffda/page_source.h"
#include "uffda/result.h"
#include "uffda/units.h"

namespace uffda {

/// A present folio, pinned: it is neither evicted nor changed until the reference goes. Held for one step, never across
/// a wait.
class FolioRef {
 public:
  FolioRef(FolioStates& states, FolioIndex index) : states_(&states), index_(index) {}
  FolioRef(FolioRef&& other) noexcept : states_(std::exchange(other.states_, nullptr)), index_(other.index_) {}
  FolioRef& operator=(FolioRef&& other) noexcept {
    std::swap(states_, other.states_);
    std::swap(index_, other.index_);
    return *this;
  }
  FolioRef(const FolioRef&) = delete;
  FolioRef& operator=(const FolioRef&) = delete;
  ~FolioRef() {
    if (states_ != nullptr) states_->unpin(index_);
  }
  [[nodiscard]] FolioIndex index() const { return index_; }
  /// Whose folio it is.
  [[nodiscard]] const FolioStates* owner() const { return states_; }
  /// Gives the reference up without unpinning: for one that was found never to have been taken.
  void disown() { states_ = nullptr; }

 private:
  FolioStates* states_;
  FolioIndex index_;
};

class ObjectSink;

/// Threads: any, for everything public.
class MemoryObject final : public FetchOwner, public std::enable_shared_from_this<MemoryObject> {
 public:
  static constexpr std::uint64_t kChunkFolios = 64;  ///< of one page; of larger folios fewer

  struct Options {
    std::string_view type;    ///< for the memory type
    ByteCount budget{};       ///< 0: the core's
    bool write_back = false;  ///< what is written to it goes to the source, which is writable
    Successor successor{};
  };
  static Result<std::shared_ptr<MemoryObject>> create(Core& core, const MemoryType& type,
                                                      std::unique_ptr<PageSource> source, Options options);
  ~MemoryObject();
  MemoryObject(const MemoryObject&) = delete;
  MemoryObject& operator=(const MemoryObject&) = delete;

  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] std::uint32_t number() const { return number_; }
  [[nodiscard]] ByteCount size() const { return size_; }
  /// Where the bytes end: its size, unless its source is growable.
  [[nodiscard]] ByteCount length() const { return {length_.load(std::memory_order_acquire)}; }
  /// Moves that end, at the source too; what is behind it reads as zeroes. Requires: writes_back(). Waits on the
  /// source. Errors: unsupported, out_of_range, and what the source said.
  enum class Resize : std::uint8_t {
    exactly,
    grow,  ///< to at least this
  };
  Result<void> resize(ByteCount length, Deadline deadline, Resize how = Resize::exactly) UFFDA_EXCLUDES(mutex_);
  [[nodiscard]] ByteCount folio_size() const { return folio_size_; }
  [[nodiscard]] std::uint64_t folios() const { return states_.count(); }
  [[nodiscard]] const MemoryType& type() const { return type_; }
  [[nodiscard]] Backing& backing() { return *backing_; }
  [[nodiscard]] FolioStates& states() { return states_; }
  [[nodiscard]] PageSource& source() { return *source_; }
  /// Whether the type raises faults. If not, all of it is populated before anybody maps it, and it is never dropped.
  [[nodiscard]] bool faults() const { return faults_; }
  /// Whether contents are cached (and mapped by CONTINUE, if at all), or go straight to who waits (by COPY).
  [[nodiscard]] bool cached() const { return cached_; }

  /// The type's answer to CONTINUE: its get_folio hook, or its fault() with userfault_continue. Checked. Errors:
  /// not_found; protocol (the type answered with something else than the folio, pinned: said, with its name).
  Result<FolioRef> get_folio(FolioIndex index);
  /// The folio as our own states know it. Errors: not_found.
  Result<FolioRef> find_folio(FolioIndex index);
  /// The kernel has lost a folio that we know as present (somebody punched it): it is absent again.
  void lost(FolioIndex index);

  /// The type's ordinary fault: see MemoryType::fault.
  FaultOutcome fault(FolioIndex index, const FolioWait& wait);
  /// What that does if the type adds nothing: starts or joins a fetch. Read-ahead decides how much of it.
  FaultOutcome fault_in(FolioIndex index, const FolioWait& wait);
  /// Whether a fault that found this folio cached makes a read-ahead go on. Cheap; with any lock held.
  [[nodiscard]] bool triggers_read_ahead(FolioIndex index) const;
  /// A fault found its folio cached: a sequential reader's read-ahead goes on. May ask the source: call with no lock
  /// held.
  void note_hit(FolioIndex index);

  /// A monitor has a mapping of it: from now on nothing is fetched but what somebody touches, for what is absent may be
  /// the monitor's to fill.
  void watch() { watched_.store(true, std::memory_order_relaxed); }
  [[nodiscard]] bool watched() const { return watched_.load(std::memory_order_relaxed); }

  /// From now on `observer` hears of the object's folios, until the object goes. Errors: busy (kMaxObservers do).
  static constexpr std::size_t kMaxObservers = 2;
  Result<void> observe(std::shared_ptr<FolioObserver> observer) UFFDA_EXCLUDES(mutex_);
  /// With any lock held. Costs two loads where nobody observes.
  void note_touched(FolioRange folios) const noexcept {
    for (const auto& slot : observers_) {
      if (FolioObserver* observer = slot.load(std::memory_order_acquire)) observer->touched(folios);
    }
  }

  /// A fault found them cached: whoever evicts sees that they are in use. With any lock held.
  void note_used(FolioRange folios) noexcept { used_->set(folios); }

  /// What came of prefetch(): the folios that were asked of the source (none if nothing was absent), and the first
  /// folio of what was wanted that has not been dealt with.
  struct Prefetched {
    FolioRange asked;
    FolioIndex next = 0;
  };
  /// Starts to fetch the first run of absent folios in `wanted`, in the background: with requests, buffers and
  /// parallelism of the source that neither a fault nor read-ahead wants, and at most `most_in_flight` at once (but
  /// always one request). `wait` hears of what was asked; without a cache it is who gets the bytes, and is needed. Asks
  /// the source, and does not wait: call with no lock held. Errors: again (no room: see wait_for_answer; with ENOMEM:
  /// in the budget), unsupported (nobody would get the bytes; or a monitor has a mapping, whose business absent folios
  /// are).
  Result<Prefetched> prefetch(FolioRange wanted, ByteCount most_in_flight, const FolioWait& wait = {})
      UFFDA_EXCLUDES(mutex_);
  /// Returns when the source has answered something, and at `until` at the latest.
  void wait_for_answer(TimePoint until) UFFDA_EXCLUDES(mutex_);
  /// Prefetches that the source has not answered.
  [[nodiscard]] std::size_t prefetches_under_way() UFFDA_EXCLUDES(mutex_);
  [[nodiscard]] Core& core() { return core_; }

  /// Makes a range present, and waits for it. Errors: io, timed_out, out_of_range.
  Result<void> populate(ByteRange range, Deadline deadline);
  /// Copies bytes out through the page cache, and waits for them. `offset + bytes.size()` at most size(). Errors: as
  /// populate.
  Result<void> read(ByteOffset offset, std::span<std::byte> bytes, Deadline deadline);
  /// Fills one folio in the calling thread, without a lock held, an allocation or another thread, if the source can;
  /// otherwise as populate.
  FaultOutcome fill_now(FolioIndex index, Deadline deadline);
  /// Returns when no fetch of the folio is under way.
  void wait_while_filling(FolioIndex index, Deadline deadline);

  /// A descriptor of the page cache, good for reading only.
  Result<os::UniqueFd> share();
  /// One that is good for writing, too. Requires: writes_back().
  Result<os::UniqueFd> share_writable();
  /// Somebody is about to map it MAP_PRIVATE: from now on nothing is dropped that would take private copies along.
  void note_private_mapping();

  /// A monitor's bytes for the absent folios at the start of `range`: as many as are absent in a row, which become
  /// Dirty, for the source does not have them. Their number. Errors: already_exists (the first one is cached), again
  /// (it is being filled or evicted), no_memory.
  Result<std::uint64_t> fill_absent(FolioRange range, std::span<const std::byte> bytes);

  /// The folios of a run, pinned, may be written to from now on: Dirty. Requires: not writes_back(). Locks of the first
  /// kind may be held.
  void note_written(FolioRange run) UFFDA_EXCLUDES(mutex_);

  /// Whether what is written to it goes to its source. If so, every mapping that can be written is kept protected until
  /// a write is admitted, folio by folio.
  [[nodiscard]] bool writes_back() const { return writeback_ != nullptr; }
  /// From now on `mapper` is asked to protect folios, and to unmap them.
  void add_mapper(const std::weak_ptr<FolioMapper>& mapper) UFFDA_EXCLUDES(mutex_);
  /// The rest requires writes_back(), but for dirty_folios().
  FolioMapper::Protected protect(FolioRange folios) UFFDA_EXCLUDES(mutex_);
  /// Of an object with a predecessor: all who had it mapped are added. What is dirty is not written before.
  void mappers_known() {
    if (writeback_) writeback_->release();
  }
  /// The folio, pinned, is about to be written to: it is Dirty, if that is granted. Locks of the first kind may be
  /// held.
  Admission admit_write(FolioIndex index) { return writeback_->admit(index); }
  /// Who wanted to write to this folio, which is clean and cannot become dirty, is to get SIGBUS: it is cached no more.
  /// `meanwhile`: called when nobody maps it any more, and before anybody can again. False: it is pinned at the moment.
  bool drop_denied(FolioIndex index, const std::function<void()>& meanwhile);
  /// Writes through the page cache; waits for the bytes around, and for room. `offset + bytes.size()` at most size().
  /// Errors: as populate; no_memory (there is no space).
  Result<void> write(ByteOffset offset, std::span<const std::byte> bytes, Deadline deadline);
  /// See Writeback.
  [[nodiscard]] std::uint64_t failures_told() { return writeback_->failures_told(); }
  Result<void> sync(ByteRange range, Deadline deadline, std::uint64_t& seen);
  Result<WriteLog*> start_log(Deadline deadline) { return writeback_->start_log(deadline); }
  void end_log() { writeback_->end_log(); }
  [[nodiscard]] std::uint64_t dirty_folios() const { return writeback_ ? writeback_->dirty() : 0; }
  void kick_writeback() {
    if (writeback_) writeback_->kick();
  }
  /// Folios are clean, and can be evicted.
  void note_cleaned();

  /// PageSink's work: see there.
  Result<void> supply(ByteOffset offset, std::span<const std::byte> bytes);
  Result<void> fail_range(ByteRange range, const Error& error);
  Result<void> invalidate(ByteRange range);

  /// The budget of this object alone.
  [[nodiscard]] const Budget& budget() const { return budget_; }
  void forget_wanted() { budget_.forget_wanted(); }
  /// Of the two budgets it lives in, the one that has less room.
  [[nodiscard]] const Budget& tighter_budget() const;
  /// Evicts some folios whose turn it is. How many are gone, and how many were looked at: 0 if there is nothing to
  /// look at. Threads: one at a time.
  struct Evicted {
    std::uint64_t folios = 0;
    std::uint64_t looked_at = 0;
  };
  enum class Mercy : std::uint8_t {
    used,    ///< what was touched on probation stays
    nobody,  ///< somebody must go
  };
  Evicted evict_some(Mercy mercy) UFFDA_EXCLUDES(queue_mutex_);
  [[nodiscard]] std::uint64_t folios_queued() UFFDA_EXCLUDES(queue_mutex_);

  /// Evicts what is clean and unpinned of a chunk, whoever uses it. The number of folios that are gone.
  std::uint64_t evict_chunk(std::uint64_t chunk);
  /// Warns of requests that take long and fails those that take too long.
  void check_deadlines(TimePoint now);

  [[nodiscard]] ByteRange bytes_of(FolioRange folios) const;
  /// Fetches that the source has not answered.
  [[nodiscard]] std::size_t fetches_under_way() UFFDA_EXCLUDES(mutex_);
  [[nodiscard]] std::uint64_t folios_present() const { return present_.load(std::memory_order_relaxed); }

 private:
  [[nodiscard]] std::uint64_t chunk_folios() const {
    return std::max(kChunkFolios * kPageSize.value / folio_size_.value, std::uint64_t{1});
  }

  MemoryObject(Core& core, const MemoryType& type, std::unique_ptr<PageSource> source, std::unique_ptr<Backing> backing,
               FolioStates states, ByteCount budget, std::uint32_t number);
  /// Puts in order what a dead server left: before anybody knows the object. Errors: no_memory (what must stay has no
  /// room in the budget), and what punching said.
  Result<void> recover_folios();
  Result<void> recover_folio(FolioIndex index, bool dirty);

  // FetchOwner: the source's answer.
  void fetched(void* cookie, Result<ByteCount> result) noexcept override;

  struct Started {
    FetchRequest* request;
    FolioRange range;
    std::span<std::byte> buffer;
    Deadline deadline;
  };
  /// At most one demand and some ranges ahead, to be asked of the source once the lock is gone.
  struct ToStart {
    std::array<std::optional<Started>, AheadRanges::kMost + 1> list;
    std::size_t count = 0;
    bool no_room = false;   ///< for the demanded folio
    bool for_good = false;  ///< so it has been for too long
  };

  FaultOutcome fault_in_locked(FolioIndex index, const FolioWait& wait, bool sleeper, ToStart& to_start)
      UFFDA_REQUIRES(mutex_);
  FaultOutcome join_locked(FolioIndex index, const FolioWait& wait, bool sleeper) UFFDA_REQUIRES(mutex_);
  FetchRequest* start_locked(FolioRange range, ToStart& to_start, FetchFor purpose = FetchFor::demand)
      UFFDA_REQUIRES(mutex_);
  /// Room for folios, in both budgets; or apart from them if nothing of the object is ever dropped. False: none.
  bool take_room_locked(std::uint64_t folios, Budget::Reserve reserve) UFFDA_REQUIRES(mutex_);
  void give_room_back_locked(std::uint64_t folios) UFFDA_REQUIRES(mutex_);
  /// What had room in the budget counts apart from now on.
  void keep_apart_locked(std::uint64_t folios) UFFDA_REQUIRES(mutex_);
  /// Once more there was no room for what somebody waits for: whether that has been so for the core's deadline.
  bool refused_too_long_locked() UFFDA_REQUIRES(mutex_);
  std::shared_ptr<FolioMapper> next_mapper(std::uint64_t& next) UFFDA_EXCLUDES(mutex_);
  void watch_some(std::uint64_t most) UFFDA_EXCLUDES(queue_mutex_);
  void unmap(std::span<const FolioRange> folios) UFFDA_EXCLUDES(mutex_);
  enum class Verdict : std::uint8_t { goes, stays, gone };
  Verdict judge(FolioIndex index, Mercy mercy);
  std::uint64_t drop_all(std::span<FolioIndex> evicting);
  [[nodiscard]] bool source_is_silent_locked() const UFFDA_REQUIRES(mutex_);
  void start_ahead_locked(const AheadRanges& ahead, ToStart& to_start) UFFDA_REQUIRES(mutex_);
  FolioRange claimable_locked(FolioIndex index, FolioRange wanted) UFFDA_REQUIRES(mutex_);
  void publish_triggers_locked() UFFDA_REQUIRES(mutex_);
  void ask_source(const ToStart& to_start);
  [[nodiscard]] ReadAheadLimits read_ahead_limits_locked() const UFFDA_REQUIRES(mutex_);
  [[nodiscard]] bool fetches_alone(FolioIndex index) const { return states_.fetch_alone(index) || watched(); }

  Result<FolioRef> check_folio(FolioRef folio, FolioIndex index) const;
  Result<void> check_answer(const FetchRequest& request, const Result<ByteCount>& result) const;
  void succeed(FetchRequest& request);
  Result<void> start_publishing(FetchRequest& request) UFFDA_EXCLUDES(mutex_);
  void give_up(FetchRequest& request, const Error& error);
  void mark_filled_locked(FolioRange range) UFFDA_REQUIRES(mutex_);
  void mark_failed_locked(FetchRequest& request, bool poison) UFFDA_REQUIRES(mutex_);
  void count_present(FolioRange range);
  /// Those of them that do not wait to be evicted already do so from now on.
  void queue(FolioRange range) UFFDA_EXCLUDES(queue_mutex_);
  void tell(const std::vector<FolioWait>& waits, FolioRange range, FolioNews news,
            std::span<const std::byte> bytes) const;
  Result<void> wait_for(FolioIndex index, Deadline deadline);
  FaultOutcome fetch_claimed(FolioRange range);
  Result<void> publish_claimed(FolioRange range, std::span<const std::byte> bytes);
  void notify_changed() UFFDA_EXCLUDES(mutex_);
  FolioRange claim_absent_locked(FolioRange range) UFFDA_REQUIRES(mutex_);
  FolioRange claim_with_room_locked(FolioRange range, Budget::Reserve reserve) UFFDA_REQUIRES(mutex_);
  /// What was lifted, and cannot be filled. False if somebody is at it.
  bool poison_again(FolioIndex index) UFFDA_EXCLUDES(mutex_);
  void give_claim_back(FolioRange range, PageEvent event) UFFDA_EXCLUDES(mutex_);
  void note_poisoned_locked(const FolioWait& wait) UFFDA_REQUIRES(mutex_);
  [[nodiscard]] std::vector<FolioWait> poisoned_waits() UFFDA_EXCLUDES(mutex_);
  Result<void> drop_cached(FolioIndex index);
  bool begin_drop();
  void end_drop();
  Result<std::span<std::byte>> fill_buffer(ByteRange range);
  void release_buffer(std::span<std::byte> buffer);
  void discard_in_place(ByteRange range);
  bool lift_poison(FolioIndex index);
  Result<void> fetch_poisoned_anew(FolioIndex index);
  std::uint64_t drop_evicting(FolioRange range, const std::function<void()>& meanwhile = nullptr);
  Result<void> move_end(ByteCount length, Deadline deadline, Resize how);
  void end_writeback();
  Result<void> clear_cached(ByteRange range, Deadline deadline);

  Core& core_;
  const MemoryType& type_;
  const bool faults_;
  const bool cached_;
  const bool in_place_;  // folios are too large to be staged
  const ByteCount size_;
  std::atomic<std::uint64_t> length_;
  const ByteCount folio_size_;
  const std::string name_;
  const std::uint32_t number_;
  std::shared_ptr<ObjectSink> sink_;
  std::unique_ptr<PageSource> source_;
  std::unique_ptr<Backing> backing_;
  FolioStates states_;
  std::atomic<std::uint64_t> present_{0};
  std::atomic<bool> watched_{false};

  Budget budget_;
  Mutex queue_mutex_;
  EvictionQueue queue_ UFFDA_GUARDED_BY(queue_mutex_);
  std::optional<FolioBits> used_;  // since they were put on probation; there from create() on

  Mutex mutex_;
  std::uint64_t apart_ UFFDA_GUARDED_BY(mutex_) = 0;  // folios that the budgets do not hold
  TimePoint refused_since_ UFFDA_GUARDED_BY(mutex_);
  TimePoint last_refused_ UFFDA_GUARDED_BY(mutex_);
  CondVar changed_;  // some request is over
  RequestTable requests_ UFFDA_GUARDED_BY(mutex_);
  ReadAhead read_ahead_ UFFDA_GUARDED_BY(mutex_);
  LatencyFloor latency_ UFFDA_GUARDED_BY(mutex_);
  std::vector<std::shared_ptr<FolioObserver>> kept_observers_ UFFDA_GUARDED_BY(mutex_);
  std::size_t abandoned_ UFFDA_GUARDED_BY(mutex_) = 0;
  bool resizing_ UFFDA_GUARDED_BY(mutex_) = false;
  bool closing_ UFFDA_GUARDED_BY(mutex_) = false;  // whoever fetches is about to be gone
  bool droppable_ UFFDA_GUARDED_BY(mutex_);
  unsigned dropping_ UFFDA_GUARDED_BY(mutex_) = 0;  // threads that drop folios at the moment
  // Who was shown poison: its marker in a page table raises no fault any more, so what replaces it has to come from
  // here.
  static constexpr std::size_t kMaxPoisoned = 1024;  // the poison of others stays
  struct Poisoned {
    std::weak_ptr<FolioWaiter> waiter;
    std::uint64_t base;
  };
  std::vector<Poisoned> poisoned_ UFFDA_GUARDED_BY(mutex_);
  // Where a hit makes read-ahead go on: begin << 20 | length, one word per stream, read without the lock.
  std::array<std::atomic<std::uint64_t>, ReadAhead::kStreams> triggers_{};
  struct Mapper {
    std::uint64_t number;
    std::weak_ptr<FolioMapper> who;
  };
  std::vector<Mapper> mappers_ UFFDA_GUARDED_BY(mutex_);  // by number
  std::uint64_t next_mapper_ UFFDA_GUARDED_BY(mutex_) = 0;
  std::unique_ptr<Writeback> writeback_;  // null: what is written stays here. Set before anybody else knows the object
  std::array<std::atomic<FolioObserver*>, kMaxObservers> observers_{};  // in kept_observers_, for as long as this lives
};

}  // namespace uffda
