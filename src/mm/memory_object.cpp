// Faults and fetches of an object. Synchronous use and supply are in object_fill.cpp, eviction in object_evict.cpp.
#include "mm/memory_object.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/log.h"

namespace uffda {
namespace {

constexpr std::uint64_t kFewestFolios = 2;  // of a budget
constexpr unsigned kTriggerShift = 20;      // a trigger is at most 2^20 folios long
constexpr std::uint64_t kTriggerMask = (std::uint64_t{1} << kTriggerShift) - 1;
// What one reader may be ahead of itself: all buffers that are not kept for demand.
constexpr ByteCount kMostAhead =
    kLargeBuffer * (StagingPool::kLargeBuffers - StagingPool::kLargeBuffers / StagingPool::kDemandShare);

/// One folio that somebody waits for may use the reserve; a window around it leaves it to others.
Budget::Reserve reserve_of(FetchFor purpose, FolioRange range) {
  if (purpose == FetchFor::background) return Budget::Reserve::spare;
  return purpose == FetchFor::demand && range.count == 1 ? Budget::Reserve::use : Budget::Reserve::leave;
}

}  // namespace

/// What a source gets to offer pages unasked: it may outlive the object. No reference to it: the last one must not be
/// dropped in a thread of the source, which the object's end waits for.
class ObjectSink final : public PageSink {
 public:
  explicit ObjectSink(MemoryObject& object) : object_(&object) {}

  Result<void> supply(ByteOffset offset, std::span<const std::byte> bytes) override {
    return call([&](MemoryObject& object) { return object.supply(offset, bytes); });
  }
  Result<void> fail(ByteRange range, const Error& error) override {
    return call([&](MemoryObject& object) { return object.fail_range(range, error); });
  }
  Result<void> invalidate(ByteRange range) override {
    return call([&](MemoryObject& object) { return object.invalidate(range); });
  }

  /// Returns when no call is under way; calls that come later do nothing.
  void close() {
    const MutexLock lock(mutex_);
    object_ = nullptr;
    while (calls_ != 0) ended_.wait_until(mutex_, Clock::now() + std::chrono::seconds(1));
  }

 private:
  template <typename Call>
  Result<void> call(Call&& what) {
    MemoryObject* object = nullptr;
    {
      const MutexLock lock(mutex_);
      if (object_ == nullptr) return {};
      object = object_;
      ++calls_;
    }
    Result<void> result = what(*object);
    {
      const MutexLock lock(mutex_);
      --calls_;
      ended_.notify_all();
    }
    return result;
  }

  Mutex mutex_;
  CondVar ended_;
  MemoryObject* object_ UFFDA_GUARDED_BY(mutex_);
  unsigned calls_ UFFDA_GUARDED_BY(mutex_) = 0;
};

Result<std::shared_ptr<MemoryObject>> MemoryObject::create(Core& core, const MemoryType& type,
                                                           std::unique_ptr<PageSource> source, Options options) {
  const SourceProperties& properties = source->properties();
  if (properties.size.value == 0)
    return fail(Errc::invalid_argument, fmt::format("{} is empty: there is nothing to map", source->name()));
  if (properties.block_size > type.folio_size()) {
    return fail(Errc::unsupported, fmt::format("{} has blocks of {} bytes, larger than the folios of type {}",
                                               source->name(), properties.block_size.value, type.name()));
  }
  const ByteCount budget =
      options.budget.value != 0 ? std::min(options.budget, core.budget().limit()) : core.budget().limit();
  if (!raises_faults(*type.ops()) && properties.size > budget) {
    return fail(Errc::no_memory, fmt::format("memory type {} keeps all of its {} bytes, and the budget is {}",
                                             type.name(), properties.size.value, budget.value));
  }
  if (budget < type.folio_size() * kFewestFolios) {
    return fail(Errc::invalid_argument,
                fmt::format("a budget of {} bytes is too small for folios of {}: give at least {}", budget.value,
                            type.folio_size().value, (type.folio_size() * kFewestFolios).value));
  }
  if (type.folio_size() > kLargeBuffer && type.folio_size() <= kHugeBuffer) UFFDA_TRY_VOID(core.staging().add_huge());
  const bool adopts = options.successor.kept.has_value();
  std::unique_ptr<Backing> backing =
      adopts ? UFFDA_TRY(type.adopt(properties.size, std::move(options.successor.kept->cache)))
             : UFFDA_TRY(type.create_with(properties.size, source->name(), options.type));
  const std::uint64_t folios = align_up(properties.size.value, type.folio_size().value) / type.folio_size().value;
  FolioStates states = adopts ? UFFDA_TRY(FolioStates::adopt(std::move(options.successor.kept->states), folios))
                              : UFFDA_TRY(FolioStates::create(folios));
  source->set_arena(core.staging().arena());
  const bool writable = source->properties().writable;
  std::shared_ptr<MemoryObject> object(new MemoryObject(core, type, std::move(source), std::move(backing),
                                                        std::move(states), budget, options.successor.number));
  object->used_ = UFFDA_TRY(FolioBits::create(folios));
  {
    auto queue = UFFDA_TRY(EvictionQueue::create(folios, budget.value / type.folio_size().value));
    const MutexLock lock(object->queue_mutex_);
    object->queue_ = std::move(queue);
  }
  if (options.write_back) {
    if (!writable) return fail(Errc::unsupported, object->name() + ": this source can only be read");
    if (!object->cached() || !object->faults() || !type.ops()->modes.has(UffdMode::wp)) {
      return fail(
          Errc::unsupported,
          fmt::format("memory type {} cannot be written back: that needs a page cache, faults, and write protection",
                      type.name()));
    }
    object->writeback_ = UFFDA_TRY(Writeback::create(*object));
  }
  if (adopts) UFFDA_TRY_VOID(object->recover_folios());
  object->source_->attach(object->sink_);
  return object;
}

MemoryObject::MemoryObject(Core& core, const MemoryType& type, std::unique_ptr<PageSource> source,
                           std::unique_ptr<Backing> backing, FolioStates states, ByteCount budget, std::uint32_t number)
    : core_(core),
      type_(type),
      faults_(raises_faults(*type.ops())),
      cached_(type.ops()->ioctls.has(UffdIoctl::continue_) || !faults_),
      in_place_(type.folio_size() > kHugeBuffer),
      size_(source->properties().size),
      length_(source->properties().growable ? source->properties().length.value : size_.value),
      folio_size_(type.folio_size()),
      name_(source->name()),
      number_(number),
      sink_(std::make_shared<ObjectSink>(*this)),
      source_(std::move(source)),
      backing_(std::move(backing)),
      states_(std::move(states)),
      budget_(budget),
      droppable_(faults_) {
  requests_.set_most(source_->properties().parallel);
}

MemoryObject::~MemoryObject() {
  sink_->close();
  end_writeback();
  {
    const MutexLock lock(mutex_);
    closing_ = true;
  }
  source_.reset();  // answers every ticket
  const MutexLock lock(mutex_);
  core_.budget().give_back(budget_.used());
  core_.remove_apart(folio_size_ * apart_);
}

ByteRange MemoryObject::bytes_of(FolioRange folios) const {
  const std::uint64_t start = folios.first * folio_size_.value;
  const std::uint64_t end = std::min(folios.end() * folio_size_.value, size_.value);
  return {.start = {start}, .length = {end - start}};
}

std::size_t MemoryObject::fetches_under_way() {
  const MutexLock lock(mutex_);
  return requests_.in_use();
}

Result<FolioRef> MemoryObject::find_folio(FolioIndex index) {
  if (index >= folios() || !states_.pin(index)) return fail(Errc::not_found);
  return FolioRef(states_, index);
}

Result<FolioRef> MemoryObject::get_folio(FolioIndex index) {
  const UffdOps& ops = *type_.ops();
  if (ops.get_folio == nullptr) {
    if (type_.fault(*this, index, FaultFlag::userfault_continue, {}) != FaultOutcome::ready)
      return fail(Errc::not_found);
    return find_folio(index);
  }
  Result<FolioRef> folio = ops.get_folio(*this, index);
  if (!folio) return folio;
  return check_folio(std::move(*folio), index);
}

Result<FolioRef> MemoryObject::check_folio(FolioRef folio, FolioIndex index) const {
  const char* wrong = nullptr;
  if (folio.owner() != &states_) {
    wrong = "a folio of another object";
  } else if (folio.index() != index) {
    wrong = "another folio";
  } else if (!states_.pinned(index)) {
    wrong = "a folio that it did not pin";
  }
  if (wrong == nullptr) [[likely]]
    return folio;
  // A reference to what nobody pinned must not unpin it.
  if (folio.owner() != nullptr && !folio.owner()->pinned(folio.index())) folio.disown();
  log(LogLevel::error, "memory type {} answered get_folio({}) with {}: the fault fails", type_.name(), index, wrong);
  return fail(Errc::protocol, fmt::format("memory type {} answered get_folio with {}", type_.name(), wrong));
}

void MemoryObject::lost(FolioIndex index) {
  // Somebody who has the page cache open for writing punched it. What is not there is absent, and the source still has
  // it. The caller's knowledge may be old: the folio may have been fetched and mapped again since. Under the lock
  // nobody else loses it, and pinned nobody evicts it; so what the kernel says now is true of this folio.
  {
    const MutexLock lock(mutex_);
    if (!states_.pin(index)) return;
    // Of huge pages the kernel does not tell.
    const bool there =
        folio_size_ == kPageSize && os::has_page(backing_->mapping_fd(), bytes_of({.first = index, .count = 1}).start);
    std::optional<bool> apart;
    if (!there && writeback_) {
      const std::optional<PageState> before = states_.change(index, PageEvent::lost);
      if (before) apart = false;
      if (before && *before != PageState::clean) writeback_->note_lost();
    } else if (!there) {
      apart = states_.apply_apart(index, PageEvent::lost);
    }
    states_.unpin(index);
    if (!apart) return;
    if (*apart && droppable_) {
      --apart_;
      core_.remove_apart(folio_size_);
    } else {
      give_room_back_locked(1);
    }
  }
  present_.fetch_sub(1, std::memory_order_relaxed);
  notify_changed();
}

FaultOutcome MemoryObject::fault(FolioIndex index, const FolioWait& wait) {
  return type_.fault(*this, index, {}, wait);
}

FaultOutcome MemoryObject::fault_in(FolioIndex index, const FolioWait& wait) {
  ToStart to_start;
  FaultOutcome outcome{};
  {
    const MutexLock lock(mutex_);
    outcome = fault_in_locked(index, wait, /*sleeper=*/false, to_start);
  }
  ask_source(to_start);
  if (to_start.for_good) {
    core_.report_failure({.object = name(),
                          .range = bytes_of({.first = index, .count = 1}),
                          .error = Error(Errc::no_memory, "the budget had no room for it until the deadline")});
  }
  return outcome;
}

FaultOutcome MemoryObject::fault_in_locked(FolioIndex index, const FolioWait& wait, bool sleeper, ToStart& to_start) {
  switch (states_.get(index)) {
    case PageState::clean:
    case PageState::dirty:
    case PageState::awaiting_clean:
      return FaultOutcome::ready;
    case PageState::poisoned:
      note_poisoned_locked(wait);
      return FaultOutcome::poisoned;
    case PageState::evicting:
      return FaultOutcome::later;
    case PageState::filling:
      return join_locked(index, wait, sleeper);
    case PageState::absent:
      break;
  }
  if (source_is_silent_locked()) {
    note_poisoned_locked(wait);
    return FaultOutcome::poisoned;
  }
  const bool alone = fetches_alone(index);
  const ReadAheadPlan plan = alone ? ReadAheadPlan{.demand = {.first = index, .count = 1}, .ahead = {}}
                                   : read_ahead_.on_miss(index, read_ahead_limits_locked());
  // Where no large buffer is free, a small one may be.
  if (start_locked(claimable_locked(index, plan.demand), to_start) == nullptr &&
      start_locked({.first = index, .count = 1}, to_start) == nullptr) {
    to_start.for_good = to_start.no_room && refused_too_long_locked();
    if (!to_start.for_good) return FaultOutcome::later;
    note_poisoned_locked(wait);
    return FaultOutcome::poisoned;
  }
  refused_since_ = {};
  const FaultOutcome outcome = join_locked(index, wait, sleeper);
  // Without a cache, what nobody waits for would be fetched and thrown away.
  if (cached_) start_ahead_locked(plan.ahead, to_start);
  publish_triggers_locked();
  return outcome;
}

FaultOutcome MemoryObject::join_locked(FolioIndex index, const FolioWait& wait, bool sleeper) {
  FetchRequest* request = requests_.find(index);
  if (request == nullptr) return FaultOutcome::later;  // being supplied: soon there
  if (sleeper) {
    ++request->sleepers;
    return FaultOutcome::queued;
  }
  return wait.waiter == nullptr || RequestTable::join(*request, wait) ? FaultOutcome::queued : FaultOutcome::later;
}

FolioRange MemoryObject::claimable_locked(FolioIndex index, FolioRange wanted) {
  FolioIndex first = index;
  FolioIndex end = index + 1;
  const auto joins = [&](FolioIndex i) { return states_.get(i) == PageState::absent && !states_.fetch_alone(i); };
  const std::uint64_t most = kLargeBuffer.value / folio_size_.value;
  if (states_.fetch_alone(index)) return {.first = index, .count = 1};
  while (first > wanted.first && end - first < most && joins(first - 1)) --first;
  while (end < wanted.end() && end - first < most && joins(end)) ++end;
  return {.first = first, .count = end - first};
}

bool MemoryObject::source_is_silent_locked() const { return abandoned_ >= (requests_.most() + 1) / 2; }

FetchRequest* MemoryObject::start_locked(FolioRange range, ToStart& to_start, FetchFor purpose) {
  if (!requests_.room_for(purpose)) return nullptr;
  to_start.no_room = cached_ && !take_room_locked(range.count, reserve_of(purpose, range));
  if (to_start.no_room) return nullptr;
  const auto no_buffer = [&]() UFFDA_REQUIRES(mutex_) -> FetchRequest* {
    if (cached_) give_room_back_locked(range.count);
    return nullptr;
  };
  const ByteRange bytes = bytes_of(range);
  std::span<std::byte> buffer;  // in place: when the source is asked
  if (!in_place_) {
    buffer = core_.staging().acquire(bytes.length, purpose == FetchFor::demand ? BufferUse::demand : BufferUse::ahead);
    if (buffer.empty()) return no_buffer();
  }
  const TimePoint now = Clock::now();
  const Deadline deadline = Deadline::at(now + core_.options().deadline);
  FetchRequest* request = requests_.add(range, buffer, now, deadline, purpose);
  if (request == nullptr) {
    release_buffer(buffer);
    return no_buffer();
  }
  for (FolioIndex i = range.first; i < range.end(); ++i) UFFDA_ASSERT(states_.apply(i, PageEvent::fetch_started));
  to_start.list.at(to_start.count++) =
      Started{.request = request, .range = range, .buffer = buffer, .deadline = deadline};
  return request;
}

void MemoryObject::start_ahead_locked(const AheadRanges& ahead, ToStart& to_start) {
  if (in_place_) return;  // one such folio is far more than a window
  for (std::size_t i = 0; i < ahead.count; ++i) {
    FolioRange wanted = ahead.ranges.at(i);
    while (!wanted.empty() && (states_.get(wanted.first) != PageState::absent || states_.fetch_alone(wanted.first))) {
      ++wanted.first;
      --wanted.count;
    }
    if (wanted.empty()) continue;
    if (to_start.count == to_start.list.size()) return;
    if (start_locked(claimable_locked(wanted.first, wanted), to_start, FetchFor::ahead) == nullptr) return;
    add(core_.stats().fetches_ahead);
  }
}

ReadAheadLimits MemoryObject::read_ahead_limits_locked() const {
  // What is under way counts as resident: a small limit must leave room for what was asked for before.
  const std::uint64_t limit = budget_.limit().value;
  const std::uint64_t room = limit / 16;
  const std::uint64_t window = std::max(std::min(kLargeBuffer.value, room) / folio_size_.value, std::uint64_t{1});
  const std::uint64_t unit = std::max(source_->properties().unit.value / folio_size_.value, std::uint64_t{1});
  const std::uint64_t ahead = std::min(kMostAhead.value, limit / 4);
  return {.folios = folios(),
          .max_window = window,
          .max_ahead = std::max(ReadAhead::kProvenWindows * window, ahead / folio_size_.value),
          .unit = std::min(unit, window),
          .plenty = budget_.half_free() && core_.budget().half_free(),
          .latency = latency_.lowest(),
          .now = Clock::now()};
}

void MemoryObject::publish_triggers_locked() {
  for (std::size_t slot = 0; slot < triggers_.size(); ++slot) {
    const FolioRange trigger = read_ahead_.trigger(slot);
    triggers_.at(slot).store(trigger.first << kTriggerShift | std::min(trigger.count, kTriggerMask),
                             std::memory_order_relaxed);
  }
}

bool MemoryObject::triggers_read_ahead(FolioIndex index) const {
  return std::ranges::any_of(triggers_, [&](const std::atomic<std::uint64_t>& trigger) {
    const std::uint64_t word = trigger.load(std::memory_order_relaxed);
    return index - (word >> kTriggerShift) < (word & kTriggerMask);
  });
}

void MemoryObject::note_hit(FolioIndex index) {
  if (!triggers_read_ahead(index) || watched()) [[likely]]
    return;
  ToStart to_start;
  {
    const MutexLock lock(mutex_);
    start_ahead_locked(read_ahead_.on_hit(index, read_ahead_limits_locked()), to_start);
    publish_triggers_locked();
  }
  ask_source(to_start);
}

void MemoryObject::ask_source(const ToStart& to_start) {
  for (std::size_t i = 0; i < to_start.count; ++i) {
    const Started& started = *to_start.list.at(i);
    add(core_.stats().fetches);
    const ByteRange bytes = bytes_of(started.range);
    std::span<std::byte> buffer = started.buffer;
    if (in_place_) {
      const Result<std::span<std::byte>> memory = fill_buffer(bytes);
      if (!memory) {
        fetched(started.request, std::unexpected(memory.error()));
        continue;
      }
      started.request->buffer = buffer = *memory;
    }
    source_->fetch(FetchTicket(*this, started.request, bytes, buffer.first(bytes.length.value), started.deadline));
  }
}

Result<void> MemoryObject::check_answer(const FetchRequest& request, const Result<ByteCount>& result) const {
  if (!result) return std::unexpected(result.error());
  const ByteCount wanted = bytes_of(request.range).length;
  if (*result == wanted) return {};
  return fail(Errc::io, fmt::format("{}: short read: {} of {} bytes", name(), result->value, wanted.value));
}

void MemoryObject::fetched(void* cookie, Result<ByteCount> result) noexcept {
  FetchRequest& request = *static_cast<FetchRequest*>(cookie);
  core_.stats().of(Stage::fetch).record(Clock::now() - request.started);
  const Result<void> answer = check_answer(request, result);
  if (!answer) return give_up(request, answer.error());
  succeed(request);
}

void MemoryObject::succeed(FetchRequest& request) {
  const TimePoint answered = Clock::now();
  const FolioRange range = request.range;
  const TimePoint started = request.started;
  const ByteRange bytes = bytes_of(range);
  const std::span<const std::byte> contents = request.buffer.first(bytes.length.value);
  add(core_.stats().bytes_fetched, bytes.length.value);
  std::span<std::byte> buffer = request.buffer;
  std::vector<FolioWait> waits;
  // An abandoned range may have been claimed anew: only the owner of Filling publishes.
  Result<void> published = start_publishing(request);
  const bool shown = published && cached_ && canary(Canary::shown_before_filled);
  if (shown) {
    const MutexLock lock(mutex_);
    mark_filled_locked(range);
  }
  if (!cached_) {
    // Whole pages are copied to who waits: the last one ends in zeroes.
    std::ranges::fill(buffer.subspan(bytes.length.value, folio_size_.value * range.count - bytes.length.value),
                      std::byte{0});
  } else if (published) {
    published = backing_->publish(bytes, contents);
  }
  if (!published) return give_up(request, published.error());
  if (cached_) core_.stats().of(Stage::publish).record(Clock::now() - answered);
  {
    const MutexLock lock(mutex_);
    if (!shown) mark_filled_locked(range);
    latency_.note(answered, answered - started);
    waits = requests_.finish(request);
  }
  changed_.notify_all();
  if (cached_) count_present(range);
  tell(waits, range, FolioNews::ready, cached_ ? std::span<const std::byte>{} : contents);
  if (!waits.empty()) {
    const Duration taken = Clock::now() - started;
    core_.stats().of(Stage::missing).record(taken);
    for (const FolioWait& wait : waits) wait.waiter->waited(taken);
  }
  release_buffer(buffer);
}

Result<void> MemoryObject::start_publishing(FetchRequest& request) {
  const MutexLock lock(mutex_);
  if (request.abandoned) return fail(Errc::timed_out);
  if (request.stale) return fail(Errc::cancelled);
  request.publishing = true;
  return {};
}

void MemoryObject::mark_filled_locked(FolioRange range) {
  // A type without a cache has handed the bytes to who waits: the next fault asks again.
  const PageEvent event = cached_ ? PageEvent::filled : PageEvent::given_up;
  for (FolioIndex i = range.first; i < range.end(); ++i) UFFDA_ASSERT(states_.apply(i, event));
}

void MemoryObject::count_present(FolioRange range) {
  present_.fetch_add(range.count, std::memory_order_relaxed);
  queue(range);
}

void MemoryObject::queue(FolioRange range) {
  for (FolioIndex i = range.first; i < range.end(); ++i) {
    FolioRange run{.first = i, .count = 0};
    while (i < range.end() && !states_.mark_queued(i)) ++i;
    run.count = i - run.first;
    const MutexLock lock(queue_mutex_);
    queue_.add(run);
  }
}

void MemoryObject::mark_failed_locked(FetchRequest& request, bool poison) {
  for (FolioIndex i = request.range.first; i < request.range.end(); ++i) {
    UFFDA_ASSERT(states_.apply(i, poison ? PageEvent::failed : PageEvent::given_up));
    if (!poison && !request.stale) states_.mark_fetch_alone(i);
  }
  if (!poison) return;
  for (std::size_t i = 0; i < request.wait_count; ++i) note_poisoned_locked(request.waits.at(i));
}

void MemoryObject::give_up(FetchRequest& request, const Error& error) {
  const FolioRange range = request.range;
  const std::span<std::byte> buffer = request.buffer;
  std::vector<FolioWait> waits;
  bool poison = false;
  bool late = false;
  discard_in_place(bytes_of(range));
  {
    const MutexLock lock(mutex_);
    late = request.abandoned;
    if (cached_ && (!late || in_place_)) give_room_back_locked(range.count);
    if (late) {
      --abandoned_;
    } else {
      // A range that fails as a whole is fetched again folio by folio, so that exactly those that cannot be had are
      // poisoned. One that ends because the object goes says nothing about its bytes.
      poison = range.count == 1 && request.wanted() && !closing_ && !request.stale;
      mark_failed_locked(request, poison);
    }
    waits = requests_.finish(request);
  }
  changed_.notify_all();
  if (late && !in_place_) {
    core_.staging().release_replaced(buffer);
  } else {
    release_buffer(buffer);
  }
  add(core_.stats().fetch_failures);
  if (poison) core_.report_failure({.object = name(), .range = bytes_of(range), .error = error});
  tell(waits, range, poison ? FolioNews::poisoned : FolioNews::retry, {});
}

void MemoryObject::tell(const std::vector<FolioWait>& waits, FolioRange range, FolioNews news,
                        std::span<const std::byte> bytes) const {
  for (const FolioWait& wait : waits) wait.waiter->folios_news(*this, wait.base, range, news, bytes);
}

void MemoryObject::check_deadlines(TimePoint now) {
  struct Expired {
    FolioRange range;
    std::vector<FolioWait> waits;
    bool wanted;
  };
  std::vector<Expired> expired;
  std::vector<ByteRange> slow;
  {
    const MutexLock lock(mutex_);
    for (FetchRequest& request : requests_.slots()) {
      if (!request.in_use || request.abandoned || request.publishing) continue;
      if (now >= request.deadline.when()) {
        const bool wanted = request.wanted() && !request.stale;
        // In place the source may still write: such a folio stays poisoned until it has answered (lift_poison).
        mark_failed_locked(request, wanted || in_place_);
        ++abandoned_;
        // The source may never give it back, and others need room.
        if (!in_place_) {
          core_.staging().replace(request.buffer);
          if (cached_) give_room_back_locked(request.range.count);
        }
        expired.push_back({.range = request.range, .waits = RequestTable::abandon(request), .wanted = wanted});
      } else if (!request.warned && now - request.started >= core_.options().warn_after) {
        request.warned = true;
        slow.push_back(bytes_of(request.range));
      }
    }
  }
  for (const ByteRange& range : slow) {
    log(LogLevel::warning, "{}: no answer for bytes {} to {} after {} s; they fail after {} s", name(),
        range.start.value, range.end().value, std::chrono::duration<double>(core_.options().warn_after).count(),
        std::chrono::duration<double>(core_.options().deadline).count());
  }
  if (expired.empty()) return;
  changed_.notify_all();
  for (const Expired& late : expired) {
    add(core_.stats().fetch_timeouts);
    const Error error(Errc::timed_out, "the source did not answer before the deadline");
    if (late.wanted) core_.report_failure({.object = name(), .range = bytes_of(late.range), .error = error});
    tell(late.waits, late.range, late.wanted ? FolioNews::poisoned : FolioNews::retry, {});
  }
}

}  // namespace uffda
