#include "mm/writeback.h"

#include <sys/mman.h>

#include <fmt/format.h>

#include <algorithm>
#include <bit>

#include "base/log.h"
#include "mm/memory_object.h"

namespace uffda {
namespace {

constexpr unsigned kBits = 64;                               // of a word of dirty_chunks_
constexpr Duration kRecheck = std::chrono::milliseconds(1);  // a pin that goes, and a protection, do not signal
constexpr Duration kFirstBackOff = std::chrono::milliseconds(100);
constexpr int kTriesInDeadline = 8;  // at least: who waits for room is not refused for a wait of ours
constexpr Duration kLook = std::chrono::milliseconds(500);  // between looks for what is late
constexpr Duration kSayAgain = std::chrono::seconds(1);
constexpr std::uint64_t kDirtyShare = 2;  // of the budget: the rest is for who reads

ByteCount buffer_size(ByteCount folio) { return std::max(folio, kPageSize * MemoryObject::kChunkFolios); }

}  // namespace

Result<std::unique_ptr<Writeback>> Writeback::create(MemoryObject& object) {
  if (object.folio_size() > kHugeBuffer) {
    return fail(Errc::unsupported, fmt::format("memory type {} has folios of {} bytes, too large to be written back",
                                               object.type().name(), object.folio_size().value));
  }
  const ByteCount buffer = buffer_size(object.folio_size());
  const std::size_t runs = object.folio_size() > kPageSize ? kMostRuns / 4 : kMostRuns;
  os::MappedMemory buffers =
      UFFDA_TRY(os::map_memory(buffer * runs, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS));
  return std::unique_ptr<Writeback>(new Writeback(object, std::move(buffers), runs, buffer));
}

Writeback::Writeback(MemoryObject& object, os::MappedMemory buffers, std::size_t runs, ByteCount buffer)
    : object_(object),
      states_(object.states()),
      failures_(object.states().failures()),
      buffers_(std::move(buffers)),
      run_folios_(buffer.value / object.folio_size().value),
      chunk_folios_(
          std::max(MemoryObject::kChunkFolios * kPageSize.value / object.folio_size().value, std::uint64_t{1})),
      dirty_limit_(std::max(object.budget().limit().value / object.folio_size().value / kDirtyShare, std::uint64_t{1})),
      reserves_(object.source().properties().reserves),
      dirty_chunks_(align_up(align_up(object.folios(), chunk_folios_) / chunk_folios_, kBits) / kBits),
      space_(align_up(object.size().value, kRegion.value) / kRegion.value) {
  {
    const MutexLock lock(mutex_);
    for (std::size_t i = 0; i < runs; ++i)
      runs_.at(i).buffer = buffers_.bytes().subspan(i * buffer.value, buffer.value);
  }
  thread_ = Thread([this] { run_thread(); });
}

Writeback::~Writeback() { UFFDA_ASSERT(!thread_.joinable()); }

Result<void> Writeback::finish(Deadline deadline) {
  {
    const MutexLock lock(mutex_);
    stopping_ = true;
  }
  wanted_.notify_all();
  thread_.join();
  std::uint64_t seen = 0;
  {
    const MutexLock lock(mutex_);
    seen = failures_.all.load();
    if (next_id_ == 1 && dirty() == 0) return {};  // nothing was ever written
  }
  if (held_.load()) return fail(Errc::cancelled, "who has it mapped is not known: left to another successor");
  while (true) {
    Result<void> synced = sync({.start = {0}, .length = object_.size()}, deadline, seen);
    if (synced || deadline.passed()) return synced;
    const MutexLock lock(mutex_);
    changed_.wait_until(mutex_, std::min(deadline.when(), std::max(retry_at_, Clock::now() + kFirstBackOff)));
  }
}

// What may become dirty.

Admission Writeback::ask_for_space(FolioIndex index) {
  if (!reserves_) return Admission::granted;
  std::atomic<Space>& space = space_[index * object_.folio_size().value / kRegion.value];
  Space known = space.load(std::memory_order_acquire);
  if (known == Space::reserved) [[likely]]
    return Admission::granted;
  // Who comes next asks anew: somebody may have made space.
  if (known == Space::refused && space.compare_exchange_strong(known, Space::unknown)) return Admission::denied;
  if (known == Space::unknown && space.compare_exchange_strong(known, Space::asked)) {
    {
      const MutexLock lock(mutex_);
      space_asked_ = true;
    }
    wanted_.notify_one();
  }
  return Admission::later;
}

void Writeback::forget_space(ByteRange range) {
  if (range.length.value == 0) return;
  for (std::uint64_t i = range.start.value / kRegion.value; i * kRegion.value < range.end().value; ++i) {
    Space known = Space::reserved;
    space_[i].compare_exchange_strong(known, Space::unknown);
  }
}

bool Writeback::throttled_too_long() {
  const TimePoint now = Clock::now();
  const MutexLock lock(mutex_);
  kicked_ = true;
  wanted_.notify_one();
  if (throttled_since_ == TimePoint{}) throttled_since_ = now;  // until a run succeeds
  return now - throttled_since_ > object_.core().options().deadline;
}

Admission Writeback::admit(FolioIndex index) {
  if (states_.get(index) == PageState::dirty) {
    note_written(index);  // whoever made it dirty may not have come to that
    return Admission::granted;
  }
  if (const Admission space = ask_for_space(index); space != Admission::granted) return space;
  const std::uint64_t others = dirty_.fetch_add(1, std::memory_order_relaxed);
  if (others >= dirty_limit_) {
    dirty_.fetch_sub(1, std::memory_order_relaxed);
    return throttled_too_long() ? Admission::denied : Admission::later;
  }
  const std::optional<PageState> before = states_.change(index, PageEvent::written);
  UFFDA_ASSERT(before.has_value());  // pinned, so present
  if (*before != PageState::clean) dirty_.fetch_sub(1, std::memory_order_relaxed);
  note_written(index);
  return Admission::granted;
}

void Writeback::recover(FolioIndex index) {
  dirty_.fetch_add(1, std::memory_order_relaxed);
  mark_chunk(index);
  if (reserves_) space_[index * object_.folio_size().value / kRegion.value].store(Space::asked);
  const MutexLock lock(mutex_);
  space_asked_ = space_asked_ || reserves_;
}

void Writeback::release() {
  held_.store(false, std::memory_order_release);
  kick();
}

// What is dirty.

FolioRange Writeback::folios_of(std::uint64_t chunk) const {
  const FolioIndex first = chunk * chunk_folios_;
  return {.first = first, .count = std::min(chunk_folios_, states_.count() - first)};
}

void Writeback::mark_chunk(FolioIndex index) {
  const std::uint64_t chunk = index / chunk_folios_;
  dirty_chunks_[chunk / kBits].fetch_or(std::uint64_t{1} << chunk % kBits, std::memory_order_acq_rel);
}

void Writeback::note_written(FolioIndex index) {
  mark_chunk(index);
  if (WriteLog* const log = log_.load(std::memory_order_seq_cst)) [[unlikely]]
    log->note(index);
}

/// After the bit is gone the folios are looked at again: whoever writes changes the state first, and sets the bit then.
void Writeback::settle_locked(std::uint64_t chunk) {
  dirty_chunks_[chunk / kBits].fetch_and(~(std::uint64_t{1} << chunk % kBits), std::memory_order_acq_rel);
  const FolioRange folios = folios_of(chunk);
  for (FolioIndex i = folios.first; i < folios.end(); ++i) {
    if (!states_.unwritten(i)) continue;
    mark_chunk(i);
    return;
  }
}

std::uint64_t Writeback::next_dirty_chunk(std::uint64_t from, std::uint64_t end) {
  const MutexLock lock(mutex_);
  for (std::uint64_t word = from / kBits; word * kBits < end; ++word) {
    std::uint64_t bits = dirty_chunks_[word].load(std::memory_order_acquire);
    if (word == from / kBits) bits &= ~std::uint64_t{0} << from % kBits;
    if (bits != 0) return std::min(end, word * kBits + static_cast<unsigned>(std::countr_zero(bits)));
  }
  return end;
}

std::uint64_t Writeback::dirty_mask(FolioRange folios) const {
  std::uint64_t mask = 0;
  for (std::uint64_t i = 0; i < folios.count; ++i) {
    if (states_.get(folios.first + i) == PageState::dirty) mask |= std::uint64_t{1} << i;
  }
  return mask;
}

// Writing it.

FolioRange Writeback::claim(FolioRange range) {
  FolioIndex first = held_.load(std::memory_order_acquire) ? range.end() : range.first;
  while (first < range.end() && !states_.start_writeback(first)) ++first;
  FolioIndex end = std::min(first + 1, range.end());
  while (end < range.end() && end - first < run_folios_ && states_.start_writeback(end)) ++end;
  return {.first = first, .count = end - first};
}

Writeback::Run* Writeback::take_run(Deadline deadline) {
  const MutexLock lock(mutex_);
  while (true) {
    for (Run& run : runs_) {
      if (run.buffer.empty() || run.in_use) continue;
      run = {.folios = {}, .buffer = run.buffer, .id = next_id_++, .deadline = deadline, .in_use = true};
      return &run;
    }
    if (deadline.passed()) return nullptr;
    changed_.wait_until(mutex_, deadline.when());
  }
}

Result<void> Writeback::copy_out(const Run& run, Deadline deadline) {
  const ByteRange bytes = object_.bytes_of(run.folios);
  const std::span<std::byte> buffer = run.buffer.first(bytes.length.value);
  if (canary(Canary::copied_before_protected)) UFFDA_TRY_VOID(object_.backing().read(bytes.start, buffer));
  while (object_.protect(run.folios) != FolioMapper::Protected::done) {
    if (deadline.passed()) return fail(Errc::timed_out, "an address space could not be kept from writing");
    const MutexLock lock(mutex_);
    changed_.wait_until(mutex_, Clock::now() + kRecheck);
  }
  if (canary(Canary::copied_before_protected)) return {};
  return object_.backing().read(bytes.start, buffer);
}

/// Starts to write the first run in `range` that can be: the run, empty at the range's end if there is none.
/// Errors: timed_out.
Result<FolioRange> Writeback::write_first(FolioRange range, Deadline deadline) {
  Run* const run = take_run(deadline);
  if (run == nullptr) return fail(Errc::timed_out, object_.name() + ": the source did not answer earlier writes");
  const FolioRange claimed = claim(range);
  {
    const MutexLock lock(mutex_);
    run->folios = claimed;
  }
  if (claimed.empty()) {
    end_run(*run, {});
    return claimed;
  }
  if (const Result<void> copied = copy_out(*run, deadline); !copied) {
    end_run(*run, copied);
    return claimed;
  }
  const ByteRange bytes = object_.bytes_of(claimed);
  if (canary(Canary::clean_before_written)) {
    for (FolioIndex i = claimed.first; i < claimed.end(); ++i) {
      if (states_.change(i, PageEvent::written_back) == PageState::awaiting_clean) note_lost();
    }
  }
  object_.source().write_back(
      WriteTicket(*this, run, bytes.start, run->buffer.first(bytes.length.value), run->deadline));
  return claimed;
}

void Writeback::written_back(void* request, Result<void> result) noexcept {
  end_run(*static_cast<Run*>(request), result);
}

void Writeback::end_run(Run& run, const Result<void>& result) {
  std::uint64_t cleaned = 0;
  bool says = false;
  {
    const MutexLock lock(mutex_);
    const FolioRange folios = run.folios;
    const PageEvent event = result && !run.late ? PageEvent::written_back : PageEvent::writeback_failed;
    for (FolioIndex i = folios.first; i < folios.end(); ++i) {
      if (states_.end_writeback(i, event)) ++cleaned;
    }
    dirty_.fetch_sub(cleaned, std::memory_order_relaxed);
    if (!folios.empty()) settle_locked(folios.first / chunk_folios_);
    if (!result && !run.late) says = note_failure_locked(result.error(), Failed::write);
    if (cleaned != 0) {
      throttled_since_ = {};
      back_off_ = {};
      retry_at_ = {};
    }
    run.in_use = false;
  }
  changed_.notify_all();
  if (says) say_failure(result.error());
  if (cleaned == 0) return;
  add(object_.core().stats().folios_written_back, cleaned);
  object_.note_cleaned();
}

bool Writeback::note_failure_locked(const Error& error, Failed what) {
  const TimePoint now = Clock::now();
  failures_.all.fetch_add(1);
  last_failure_ = error;
  add(object_.core().stats().writeback_failures);
  if (what == Failed::write) {
    const Duration longest = object_.core().options().deadline / kTriesInDeadline;
    back_off_ = std::min<Duration>(std::max<Duration>(back_off_ * 2, kFirstBackOff), longest);
    retry_at_ = now + back_off_;
  }
  if (now - said_at_ < kSayAgain) return false;
  said_at_ = now;
  return true;
}

void Writeback::say_failure(const Error& error) const {
  log(LogLevel::error, "{}: not stored, and tried again later: {}", object_.name(), error.message());
}

void Writeback::expire_late() {
  const Error error(Errc::timed_out, "the source did not answer before the deadline");
  bool says = false;
  {
    const MutexLock lock(mutex_);
    for (Run& run : runs_) {
      if (!run.in_use || run.late || run.folios.empty() || !run.deadline.passed()) continue;
      run.late = true;
      for (FolioIndex i = run.folios.first; i < run.folios.end(); ++i) states_.apply(i, PageEvent::writeback_failed);
      says = note_failure_locked(error, Failed::write) || says;
    }
  }
  if (says) say_failure(error);
}

// Who asks for it.

/// Starts to write all that is dirty now of folios of one chunk. Errors: timed_out.
Result<void> Writeback::write_folios(FolioRange folios, Deadline deadline) {
  for (std::uint64_t left = dirty_mask(folios); left != 0; left &= dirty_mask(folios)) {
    const FolioIndex first = folios.first + static_cast<unsigned>(std::countr_zero(left));
    const FolioRange started = UFFDA_TRY(write_first({.first = first, .count = folios.end() - first}, deadline));
    for (FolioIndex i = started.first; i < started.end(); ++i) left &= ~(std::uint64_t{1} << (i - folios.first));
    if (started.first == first) continue;
    // Pinned for the length of one step, or an older write of it is under way.
    if (deadline.passed()) return fail(Errc::timed_out, object_.name() + ": an earlier write had no answer in time");
    const MutexLock lock(mutex_);
    changed_.wait_until(mutex_, Clock::now() + kRecheck);
  }
  return {};
}

Result<void> Writeback::wait_answered(std::uint64_t last, Deadline deadline) {
  const auto pending = [&](const Run& run) { return run.in_use && run.id <= last; };
  const MutexLock lock(mutex_);
  while (std::ranges::any_of(runs_, pending)) {
    if (deadline.passed())
      return fail(Errc::timed_out, object_.name() + ": the source did not answer a write before the deadline");
    changed_.wait_until(mutex_, deadline.when());
  }
  return {};
}

Result<void> Writeback::sync(ByteRange range, Deadline deadline, std::uint64_t& seen) {
  const std::uint64_t folio = object_.folio_size().value;
  const FolioIndex first = range.start.value / folio;
  const FolioIndex stop = align_up(range.end().value, folio) / folio;
  const std::uint64_t end = align_up(stop, chunk_folios_) / chunk_folios_;
  for (std::uint64_t chunk = next_dirty_chunk(first / chunk_folios_, end); chunk < end;
       chunk = next_dirty_chunk(chunk + 1, end)) {
    const FolioRange folios = folios_of(chunk);
    const FolioIndex from = std::max(folios.first, first);
    const FolioIndex to = std::min(folios.end(), stop);
    UFFDA_TRY_VOID(write_folios({.first = from, .count = to - from}, deadline));
  }
  std::uint64_t last = 0;
  {
    const MutexLock lock(mutex_);
    last = next_id_ - 1;
  }
  UFFDA_TRY_VOID(wait_answered(last, deadline));
  UFFDA_TRY_VOID(tell_failures(seen));
  UFFDA_TRY_VOID(flush(deadline));
  // Who flushed at the same time may have been given the failure that was ours.
  return tell_failures(seen);
}

Result<void> Writeback::tell_failures(std::uint64_t& seen) {
  const MutexLock lock(mutex_);
  const std::uint64_t all = failures_.all.load();
  if (seen > all) seen = 0;  // of another server's life, or somebody's invention
  if (seen == all) return {};
  seen = all;
  failures_.told.store(all);
  if (!last_failure_) return fail(Errc::io, "the source failed to store something before the server was restarted");
  return std::unexpected(*last_failure_);
}

std::uint64_t Writeback::failures_told() {
  const MutexLock lock(mutex_);
  return failures_.told.load();
}

/// A failure is noted, for tell_failures() to tell.
Result<void> Writeback::flush(Deadline deadline) {
  {
    const MutexLock lock(mutex_);
    while (flushing_) {
      if (deadline.passed()) return fail(Errc::timed_out, object_.name() + ": another flush does not end");
      changed_.wait_until(mutex_, deadline.when());
    }
    flushing_ = true;
  }
  const Result<void> flushed = object_.source().flush();
  bool says = false;
  {
    const MutexLock lock(mutex_);
    flushing_ = false;
    if (!flushed) says = note_failure_locked(flushed.error(), Failed::flush);
  }
  changed_.notify_all();
  if (says) say_failure(flushed.error());
  return {};
}

Result<WriteLog*> Writeback::start_log(Deadline deadline) {
  WriteLog* log = nullptr;
  {
    const MutexLock lock(mutex_);
    if (logged_) return fail(Errc::busy, object_.name() + ": another log is kept of what is written to it");
    logged_ = true;
    if (!kept_log_) kept_log_ = std::make_unique<WriteLog>(object_);
    log = kept_log_.get();
  }
  log_.store(log, std::memory_order_seq_cst);
  const Result<void> started = log->start(deadline);
  if (started) return log;
  end_log();
  return std::unexpected(started.error());
}

void Writeback::end_log() {
  log_.store(nullptr, std::memory_order_seq_cst);
  const MutexLock lock(mutex_);
  logged_ = false;
}

void Writeback::kick() {
  if (dirty() == 0) return;
  {
    const MutexLock lock(mutex_);
    kicked_ = true;
  }
  wanted_.notify_one();
}

// The thread.

void Writeback::reserve_asked() {
  for (std::uint64_t i = 0; i < space_.size(); ++i) {
    if (space_[i].load(std::memory_order_acquire) != Space::asked) continue;
    const std::uint64_t start = i * kRegion.value;
    const ByteCount length{std::min(kRegion.value, object_.size().value - start)};
    const Result<void> reserved = object_.source().reserve({.start = {start}, .length = length});
    if (!reserved) log(LogLevel::error, "{}: {}", object_.name(), reserved.error().message());
    space_[i].store(reserved ? Space::reserved : Space::refused, std::memory_order_release);
  }
}

void Writeback::write_all() {
  const Deadline deadline = Deadline::after(object_.core().options().deadline);
  const std::uint64_t end = align_up(states_.count(), chunk_folios_) / chunk_folios_;
  for (std::uint64_t chunk = next_dirty_chunk(0, end); chunk < end; chunk = next_dirty_chunk(chunk + 1, end)) {
    FolioRange rest = folios_of(chunk);
    while (!rest.empty()) {
      const Result<FolioRange> started = write_first(rest, deadline);
      if (!started) return;
      rest = {.first = started->end(), .count = rest.end() - started->end()};
    }
    const MutexLock lock(mutex_);
    if (stopping_ || retry_at_ > Clock::now()) return;
  }
}

void Writeback::run_thread() {
  TimePoint next_pass = Clock::now() + kInterval;
  while (true) {
    bool reserve = false;
    bool write = false;
    {
      const MutexLock lock(mutex_);
      const TimePoint look = std::min(next_pass, Clock::now() + kLook);
      if (!stopping_ && !space_asked_ && !kicked_) wanted_.wait_until(mutex_, look);
      if (!stopping_ && !space_asked_ && kicked_ && retry_at_ > Clock::now())
        wanted_.wait_until(mutex_, std::min(look, retry_at_));
      if (stopping_) return;
      const TimePoint now = Clock::now();
      if (now >= next_pass) {
        next_pass = now + kInterval;
        kicked_ = true;
      }
      reserve = std::exchange(space_asked_, false);
      write = kicked_ && now >= retry_at_;
      if (write) kicked_ = false;
    }
    expire_late();
    if (reserve) reserve_asked();
    if (write) write_all();
  }
}

}  // namespace uffda
