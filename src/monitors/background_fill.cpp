#include "monitors/background_fill.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/log.h"
#include "monitors/prefetch_plan.h"
#include "monitors/prefetch_tracker.h"

namespace uffda {
namespace {

constexpr Duration kNoRoom = std::chrono::milliseconds(2);  // before room is looked for again; an answer ends it
constexpr Duration kTellEvery = std::chrono::milliseconds(200);
constexpr std::uint64_t kLimitShare = 16;             // of the budget may be under way
constexpr Duration kGrace = std::chrono::seconds(1);  // the core's own deadline comes first

/// Asks for ranges of one object, as there is room.
class Filler {
 public:
  Filler(BackgroundFill::Impl& job, MemoryObject& object, const FillOptions& options, PrefetchTracker* tracker)
      : job_(job),
        object_(object),
        most_in_flight_(std::min(options.most_in_flight, {object.budget().limit().value / kLimitShare})),
        tracker_(tracker),
        rate_(options.per_second) {}

  /// FillEnd::running: all of it is there or under way.
  FillEnd fetch(FolioRange range) {
    for (range = without_known(range); !range.empty(); range = without_known(range)) {
      if (job_.stopping()) return FillEnd::stopped;
      if (const FillEnd why = judge(); why != FillEnd::running) return why;
      const std::uint64_t step = rate_.step(kPrefetchRead, object_.folio_size()).value / object_.folio_size().value;
      const FolioRange part{.first = range.first, .count = std::min(range.count, std::max(step, std::uint64_t{1}))};
      const auto started = object_.prefetch(part, most_in_flight_);
      if (!started) {
        if (started.error().code() != Errc::again) return FillEnd::unsupported;
        if (started.error().sys_errno() == ENOMEM && object_.prefetches_under_way() == 0) return FillEnd::memory;
        object_.wait_for_answer(Clock::now() + kNoRoom);
        continue;
      }
      if (!started->asked.empty() && !count(started->asked)) return FillEnd::stopped;
      range = {.first = started->next, .count = range.end() - started->next};
    }
    return FillEnd::running;
  }

  /// Returns when what is under way has been answered.
  void settle() {
    const Deadline deadline = Deadline::after(object_.core().options().deadline + kGrace);
    while (object_.prefetches_under_way() != 0 && !job_.stopping() && !deadline.passed())
      object_.wait_for_answer(Clock::now() + kNoRoom);
  }

 private:
  /// A read may begin with folios that are here by now, or with a gap between recorded ones.
  [[nodiscard]] FolioRange without_known(FolioRange range) const {
    const auto known = [&](FolioIndex i) {
      return object_.states().get(i) != PageState::absent || (tracker_ != nullptr && !tracker_->wanted(i));
    };
    while (!range.empty() && known(range.first)) range = {.first = range.first + 1, .count = range.count - 1};
    return range;
  }

  [[nodiscard]] FillEnd judge() {
    const PrefetchCounts now = tracker_ == nullptr ? PrefetchCounts{} : tracker_->counts();
    const Budget& budget = object_.tighter_budget();
    const PrefetchRoom room{.resident = budget.used(), .in_flight = most_in_flight_, .limit = budget.limit()};
    const FillEnd why = why_stop(now, since_, room);
    if (judged(now, since_)) since_ = now;
    return why;
  }

  bool count(FolioRange asked) {
    if (tracker_ != nullptr) tracker_->prefetched(asked);
    const ByteCount bytes = object_.bytes_of(asked).length;
    job_.update([&](FillProgress& progress) { progress.fetched += bytes; });
    return job_.sleep(rate_.take(bytes, Clock::now()));
  }

  BackgroundFill::Impl& job_;
  MemoryObject& object_;
  const ByteCount most_in_flight_;
  PrefetchTracker* tracker_;
  RateLimit rate_;
  PrefetchCounts since_;
};

/// What a replay needs, for as long as its handle lives. The object goes before what it depends on.
struct Replay {
  std::shared_ptr<void> keep;
  std::shared_ptr<MemoryObject> object;
  std::shared_ptr<PrefetchTracker> tracker;
  std::vector<FolioRange> reads;
  std::uint64_t wanted = 0;  // folios
  FillOptions options;

  FillEnd run(BackgroundFill::Impl& job) const {
    const ByteCount folio = object->folio_size();
    job.update([&](FillProgress& progress) { progress.wanted = folio * wanted; });
    Filler filler(job, *object, options, tracker.get());
    for (const FolioRange read : reads) {
      if (const FillEnd end = filler.fetch(read); end != FillEnd::running) return end;
      job.update([&](FillProgress& progress) {
        progress.done = std::min(progress.wanted, progress.done + folio * tracker->wanted_in(read));
      });
    }
    filler.settle();
    return job.stopping() ? FillEnd::stopped : FillEnd::complete;
  }
};

/// Everything, object by object.
struct PopulateRun {
  std::shared_ptr<void> keep;
  std::vector<std::shared_ptr<MemoryObject>> objects;
  std::vector<BackgroundFill> after;
  FillOptions options;

  FillEnd run(BackgroundFill::Impl& job) const {
    for (const BackgroundFill& fill : after) {
      while (fill.progress().end == FillEnd::running) {
        if (!job.sleep(kNoRoom)) return FillEnd::stopped;
      }
    }
    job.update([&](FillProgress& progress) {
      for (const auto& object : objects) progress.wanted += object->size();
    });
    for (const auto& object : objects) {
      if (const FillEnd end = fill(job, *object); end != FillEnd::running) return end;
    }
    return FillEnd::complete;
  }

  FillEnd fill(BackgroundFill::Impl& job, MemoryObject& object) const {
    std::vector<FolioRange> data;
    Filler filler(job, object, options, nullptr);
    for (std::uint64_t at = 0; at < object.size().value;) {
      for (const Extent& extent : extents(object, at)) {
        at = extent.range.end().value;
        if (extent.kind == Extent::Kind::data) {
          if (const FillEnd end = fetch(job, filler, object, extent.range, data); end != FillEnd::running) return end;
        } else {
          job.update([&](FillProgress& progress) { progress.zero += extent.range.length; });
        }
        job.update([&](FillProgress& progress) { progress.done += extent.range.length; });
        if (job.stopping()) return FillEnd::stopped;
      }
    }
    filler.settle();
    // A range that failed as a whole is asked for once more, folio by folio.
    for (const FolioRange range : data) {
      if (const FillEnd end = filler.fetch(range); end != FillEnd::running) return end;
    }
    filler.settle();
    count_left(job, object, data);
    return job.stopping() ? FillEnd::stopped : FillEnd::running;
  }

  static std::vector<Extent> extents(MemoryObject& object, std::uint64_t at) {
    const ByteRange rest{.start = {at}, .length = {object.size().value - at}};
    auto known = object.source().extents(rest);
    if (known && !known->empty()) return *std::move(known);
    const ByteCount step = std::min(rest.length, kPrefetchRead);  // what cannot be told is data; perhaps later more can
    return {{.range = {.start = rest.start, .length = step}}};
  }

  static FillEnd fetch(BackgroundFill::Impl& job, Filler& filler, MemoryObject& object, ByteRange bytes,
                       std::vector<FolioRange>& data) {
    const std::uint64_t folio = object.folio_size().value;
    const std::uint64_t step = std::max(kPrefetchRead.value / folio, std::uint64_t{1});
    const FolioIndex end = align_up(bytes.end().value, folio) / folio;
    for (FolioIndex at = bytes.start.value / folio; at < end; at += std::min(step, end - at)) {
      const FolioRange part{.first = at, .count = std::min(step, end - at)};
      if (const FillEnd why = filler.fetch(part); why != FillEnd::running) return why;
      if (!data.empty() && data.back().end() >= part.first) {
        data.back().count = part.end() - data.back().first;
      } else {
        data.push_back(part);
      }
      job.update([](FillProgress&) {});
    }
    return FillEnd::running;
  }

  static void count_left(BackgroundFill::Impl& job, MemoryObject& object, const std::vector<FolioRange>& data) {
    ByteCount left;
    for (const FolioRange range : data) {
      for (FolioIndex i = range.first; i < range.end(); ++i) {
        const PageState state = object.states().get(i);
        if (state == PageState::absent || state == PageState::poisoned)
          left += object.bytes_of({.first = i, .count = 1}).length;
      }
    }
    job.update([&](FillProgress& progress) { progress.left += left; });
  }
};

}  // namespace

std::string_view to_string(FillEnd end) noexcept {
  constexpr std::array<std::string_view, 7> kNames{"running", "complete", "stopped",    "memory",
                                                   "evicted", "useless",  "unsupported"};
  return kNames.at(static_cast<std::size_t>(end));
}

std::shared_ptr<BackgroundFill::Impl> BackgroundFill::Impl::start(Work work,
                                                                  std::function<void(const FillProgress&)> tell) {
  std::shared_ptr<Impl> impl(new Impl(std::move(tell)));
  impl->work_ = std::move(work);
  impl->thread_ = Thread([job = impl.get()] { job->run(); });
  return impl;
}

BackgroundFill::Impl::~Impl() {
  stop();
  if (thread_.joinable()) thread_.join();
}

void BackgroundFill::Impl::run() {
  const FillEnd end = work_(*this);
  FillProgress last;
  {
    const MutexLock lock(mutex_);
    progress_.end = end;
    last = progress_locked();
  }
  changed_.notify_all();
  if (tell_) tell_(last);
}

FillProgress BackgroundFill::Impl::progress_locked() const {
  FillProgress progress = progress_;
  if (live_) live_(progress);
  return progress;
}

FillProgress BackgroundFill::Impl::progress() const {
  const MutexLock lock(mutex_);
  return progress_locked();
}

Result<FillProgress> BackgroundFill::Impl::wait(Deadline deadline) {
  const MutexLock lock(mutex_);
  while (progress_.end == FillEnd::running) {
    if (deadline.passed()) return fail(Errc::timed_out, "the fill is still under way");
    changed_.wait_until(mutex_, deadline.when());
  }
  return progress_locked();
}

void BackgroundFill::Impl::stop() {
  {
    const MutexLock lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
}

bool BackgroundFill::Impl::stopping() const {
  const MutexLock lock(mutex_);
  return stopping_;
}

bool BackgroundFill::Impl::sleep(Duration duration) {
  const TimePoint until = Clock::now() + duration;
  const MutexLock lock(mutex_);
  while (!stopping_ && Clock::now() < until) changed_.wait_until(mutex_, until);
  return !stopping_;
}

void BackgroundFill::Impl::update(const std::function<void(FillProgress&)>& change) {
  FillProgress now;
  {
    const MutexLock lock(mutex_);
    change(progress_);
    now = progress_locked();
  }
  if (!tell_ || Clock::now() < told_ + kTellEvery) return;
  told_ = Clock::now();
  tell_(now);
}

void BackgroundFill::Impl::set_live(std::function<void(FillProgress&)> live) {
  const MutexLock lock(mutex_);
  live_ = std::move(live);
}

FillProgress BackgroundFill::progress() const { return impl_->progress(); }
Result<FillProgress> BackgroundFill::wait(Deadline deadline) const { return impl_->wait(deadline); }
void BackgroundFill::stop() const { impl_->stop(); }

Result<BackgroundFill> prefetch_working_set(std::shared_ptr<MemoryObject> object, const WorkingSet& set,
                                            FillOptions options, std::shared_ptr<void> keep) {
  const PrefetchTarget target{
      .size = object->size(), .folio_size = object->folio_size(), .unit = object->source().properties().unit};
  const std::vector<FolioRange> wanted = recorded_folios(set, target);
  auto tracker = UFFDA_TRY(PrefetchTracker::create(object->folios(), wanted));
  UFFDA_TRY_VOID(object->observe(tracker));
  const ByteCount folio = object->folio_size();
  const FolioRange all{.first = 0, .count = object->folios()};
  auto replay = std::make_shared<Replay>(Replay{.keep = std::move(keep),
                                                .object = std::move(object),
                                                .tracker = tracker,
                                                .reads = plan_prefetch(wanted, target),
                                                .wanted = tracker->wanted_in(all),
                                                .options = options});
  auto impl = BackgroundFill::Impl::start([replay](BackgroundFill::Impl& job) { return replay->run(job); },
                                          std::move(options.tell));
  impl->set_live([tracker, folio](FillProgress& progress) {
    const PrefetchCounts counts = tracker->counts();
    progress.hit = folio * counts.hits;
    progress.wasted = folio * counts.evicted_unread;
  });
  return BackgroundFill(std::move(impl));
}

BackgroundFill populate_in_background(std::vector<std::shared_ptr<MemoryObject>> objects, FillOptions options,
                                      std::vector<BackgroundFill> after, std::shared_ptr<void> keep) {
  auto populate = std::make_shared<PopulateRun>(PopulateRun{
      .keep = std::move(keep), .objects = std::move(objects), .after = std::move(after), .options = options});
  return BackgroundFill(BackgroundFill::Impl::start(
      [populate](BackgroundFill::Impl& job) { return populate->run(job); }, std::move(options.tell)));
}

}  // namespace uffda
