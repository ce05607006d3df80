#include "monitors/mapped_fill.h"

#include <algorithm>
#include <utility>

#include "base/mutex.h"
#include "monitors/prefetch_plan.h"

namespace uffda {
namespace {

constexpr Duration kPause = std::chrono::milliseconds(2);  // before room is looked for again; an answer ends it

/// Hands to the address spaces what was fetched for them.
class Delivery final : public FolioWaiter {
 public:
  void begin(std::vector<std::shared_ptr<AddressSpace>> spaces) {
    const MutexLock lock(mutex_);
    spaces_ = std::move(spaces);
  }
  void expect(FolioRange folios) {
    const MutexLock lock(mutex_);
    under_way_ += folios.count;
  }
  /// Ends a wait for the answer to what could not be asked after all.
  void expect_no_more(FolioRange folios) { answered(folios, false); }

  void folios_news(const MemoryObject& object, std::uint64_t, FolioRange folios, FolioNews news,
                   std::span<const std::byte> bytes) override {
    std::vector<std::shared_ptr<AddressSpace>> spaces;
    {
      const MutexLock lock(mutex_);
      spaces = spaces_;
      if (news == FolioNews::poisoned) lost_ += folios.count;
    }
    bool again = news == FolioNews::retry;
    for (const auto& space : spaces) {
      if (!again) again = space->supply(object, folios, news, bytes) == AddressSpace::Supplied::later;
    }
    answered(folios, again);
  }

  /// What has to be fetched once more. Nothing, and `idle`: all of it is there.
  std::vector<FolioRange> take_again(bool& idle) {
    const MutexLock lock(mutex_);
    idle = under_way_ == 0;
    return std::exchange(again_, {});
  }
  void wait(TimePoint until) {
    const MutexLock lock(mutex_);
    if (under_way_ != 0 && again_.empty()) changed_.wait_until(mutex_, until);
  }
  std::uint64_t lost() {
    const MutexLock lock(mutex_);
    return lost_;
  }

 private:
  void answered(FolioRange folios, bool again) {
    {
      const MutexLock lock(mutex_);
      under_way_ -= folios.count;
      if (again) again_.push_back(folios);
    }
    changed_.notify_all();
  }

  Mutex mutex_;
  CondVar changed_;
  std::vector<std::shared_ptr<AddressSpace>> spaces_ UFFDA_GUARDED_BY(mutex_);
  std::vector<FolioRange> again_ UFFDA_GUARDED_BY(mutex_);
  std::uint64_t under_way_ UFFDA_GUARDED_BY(mutex_) = 0;  // folios
  std::uint64_t lost_ UFFDA_GUARDED_BY(mutex_) = 0;       // folios
};

/// By offset, without overlaps.
std::vector<FolioRange> merged(std::vector<FolioRange> ranges) {
  std::ranges::sort(ranges, {}, &FolioRange::first);
  std::vector<FolioRange> all;
  for (const FolioRange range : ranges) {
    if (!all.empty() && range.first <= all.back().end()) {
      all.back().count = std::max(all.back().end(), range.end()) - all.back().first;
    } else {
      all.push_back(range);
    }
  }
  return all;
}

struct MappedFillRun {
  std::shared_ptr<MemoryObject> object;
  ListSpaces spaces;
  ByteCount most_in_flight;
  std::shared_ptr<Delivery> delivery = std::make_shared<Delivery>();

  FillEnd run(BackgroundFill::Impl& job) const {
    std::vector<std::shared_ptr<AddressSpace>> filled;
    for (;;) {
      std::vector<std::shared_ptr<AddressSpace>> fresh = spaces();
      std::erase_if(fresh, [&](const auto& space) { return std::ranges::find(filled, space) != filled.end(); });
      if (fresh.empty()) break;
      filled.insert(filled.end(), fresh.begin(), fresh.end());
      delivery->begin(fresh);
      std::vector<FolioRange> shown;
      for (const auto& space : fresh) std::ranges::copy(space->shown(*object), std::back_inserter(shown));
      for (const FolioRange range : merged(std::move(shown))) {
        if (const FillEnd end = fill(job, range); end != FillEnd::running) return end;
      }
      if (const FillEnd end = settle(job); end != FillEnd::running) return end;
    }
    job.update([&](FillProgress& progress) { progress.left = object->folio_size() * delivery->lost(); });
    return FillEnd::complete;
  }

  /// FillEnd::running: all that is data is there or under way.
  FillEnd fill(BackgroundFill::Impl& job, FolioRange shown) const {
    const ByteRange bytes = object->bytes_of(shown);
    job.update([&](FillProgress& progress) { progress.wanted += bytes.length; });
    for (ByteOffset at = bytes.start; at < bytes.end();) {
      const auto known = object->source().extents({.start = at, .length = bytes.end() - at});
      // What cannot be told is data; perhaps later more can.
      const std::vector<Extent> unknown{{.range = {.start = at, .length = std::min(bytes.end() - at, kPrefetchRead)}}};
      for (const Extent& extent : known && !known->empty() ? *known : unknown) {
        at = extent.range.end();
        const bool data = extent.kind == Extent::Kind::data;
        if (data) {
          if (const FillEnd end = fetch_extent(job, extent.range); end != FillEnd::running) return end;
        }
        job.update([&](FillProgress& progress) {
          progress.done += extent.range.length;
          if (!data) progress.zero += extent.range.length;
        });
      }
    }
    return FillEnd::running;
  }

  FillEnd fetch_extent(BackgroundFill::Impl& job, ByteRange bytes) const {
    const std::uint64_t folio = object->folio_size().value;
    const std::uint64_t step = std::max(kPrefetchRead.value / folio, std::uint64_t{1});
    const FolioIndex end = align_up(bytes.end().value, folio) / folio;
    for (FolioIndex at = bytes.start.value / folio; at < end; at += std::min(step, end - at)) {
      if (const FillEnd why = fetch(job, {.first = at, .count = std::min(step, end - at)}); why != FillEnd::running)
        return why;
    }
    return FillEnd::running;
  }

  FillEnd fetch(BackgroundFill::Impl& job, FolioRange range) const {
    while (!range.empty()) {
      if (job.stopping()) return FillEnd::stopped;
      const PageState state = object->states().get(range.first);
      if (state != PageState::absent) {
        // A fault's fetch, which tells who waits for that; or it cannot be had, and is asked for by nobody.
        const FolioRange one{.first = range.first, .count = 1};
        const bool poisoned = state == PageState::poisoned;
        delivery->expect(one);
        delivery->folios_news(*object, 0, one, poisoned ? FolioNews::poisoned : FolioNews::retry, {});
        range = {.first = range.first + 1, .count = range.count - 1};
        continue;
      }
      // Before it is asked for: the answer may be faster than the question.
      delivery->expect(range);
      const auto started = object->prefetch(range, most_in_flight, {.waiter = delivery, .base = 0});
      const FolioRange asked = started ? started->asked : FolioRange{};
      const bool at_once = asked.first == range.first && !asked.empty();
      delivery->expect_no_more({.first = 0, .count = range.count - asked.count});
      if (!started && started.error().code() != Errc::again) return FillEnd::unsupported;
      if (!started) object->wait_for_answer(Clock::now() + kPause);
      if (asked.empty()) continue;
      if (!at_once) skip({.first = range.first, .count = asked.first - range.first});
      job.update([&](FillProgress& progress) { progress.fetched += object->bytes_of(asked).length; });
      range = {.first = asked.end(), .count = range.end() - asked.end()};
    }
    return FillEnd::running;
  }

  /// What began to be fetched for somebody else between two looks is looked at again.
  void skip(FolioRange range) const {
    delivery->expect(range);
    delivery->folios_news(*object, 0, range, FolioNews::retry, {});
  }

  /// Returns when all is there.
  FillEnd settle(BackgroundFill::Impl& job) const {
    for (;;) {
      bool idle = false;
      const std::vector<FolioRange> again = delivery->take_again(idle);
      if (again.empty() && idle) return FillEnd::running;
      if (job.stopping()) return FillEnd::stopped;
      if (again.empty()) {
        delivery->wait(Clock::now() + std::chrono::milliseconds(100));
        continue;
      }
      // What was changing gets a moment.
      object->wait_for_answer(Clock::now() + kPause);
      for (const FolioRange range : again) {
        if (const FillEnd end = fetch(job, range); end != FillEnd::running) return end;
      }
    }
  }
};

}  // namespace

BackgroundFill fill_address_spaces(std::shared_ptr<MemoryObject> object, ListSpaces spaces, FillOptions options) {
  auto fill = std::make_shared<MappedFillRun>(MappedFillRun{
      .object = std::move(object), .spaces = std::move(spaces), .most_in_flight = options.most_in_flight});
  return BackgroundFill(BackgroundFill::Impl::start([fill](BackgroundFill::Impl& job) { return fill->run(job); },
                                                    std::move(options.tell)));
}

}  // namespace uffda
