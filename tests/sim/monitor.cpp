#include "sim/monitor.h"

#include <algorithm>
#include <array>
#include <vector>

namespace uffda::sim {
namespace {

constexpr ResolveFlags kNone{};

UffdModes some_modes() {
  constexpr std::array<UffdModes, 6> kModes{{{UffdMode::missing},
                                             {UffdMode::minor},
                                             {UffdMode::wp},
                                             {UffdMode::missing, UffdMode::minor},
                                             {UffdMode::missing, UffdMode::wp},
                                             {UffdMode::missing, UffdMode::minor, UffdMode::wp}}};
  return kModes.at(random().below(kModes.size()));
}

}  // namespace

Monitor::Monitor(World& world, Process& process, std::shared_ptr<AddressSpace> space, KernelLock& changing, bool async)
    : world_(world), process_(process), changing_(changing), async_(async) {
  UffdFeatures features{UffdFeature::thread_id, UffdFeature::minor_shmem};
  if (async) features = features | UffdFeatures{UffdFeature::wp_async};
  monitor_.emplace(std::move(space), *UffdContext::create(features));
}

Monitor::~Monitor() {
  stopping_ = true;
  if (reader_ != nullptr) join(reader_);
}

std::uint64_t Monitor::kernel_features(bool async) {
  return UFFD_FEATURE_THREAD_ID | (async ? UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED : 0);
}

void Monitor::start() {
  reader_ = spawn(fmt::format("monitor {}", process_.id()), [this] { answer_faults(); });
  world_.must_end(spawn(fmt::format("monitor {} acts", process_.id()), [this] { act(); }));
}

void Monitor::note_store(std::uint64_t page) {
  expect(!protected_.contains(page), "a write to {:#x}, which is protected", page);
  stores_.insert(page);
}

void Monitor::forget(std::uint64_t start, std::uint64_t end) {
  protected_.erase(protected_.lower_bound(start), protected_.lower_bound(end));
  stores_.erase(stores_.lower_bound(start), stores_.lower_bound(end));
}

void Monitor::answer_faults() {
  std::array<uffd_msg, 4> messages{};
  while (!stopping_) {
    const Result<std::size_t> count =
        monitor_->context().read(messages, Deadline::after(std::chrono::milliseconds(50)));
    for (std::size_t i = 0; i < *count; ++i) answer(messages[i]);
  }
}

void Monitor::answer(const uffd_msg& message) {
  constexpr std::uint64_t kLazy = 8;                      // now and then only a wake: the fault comes again
  constexpr auto kPause = std::chrono::microseconds(50);  // what is being fetched cannot be copied to until it is there
  const std::uint64_t page = align_down(message.arg.pagefault.address, kPage);
  const std::uint64_t flags = message.arg.pagefault.flags;
  trace("the monitor hears of {:#x}, flags {}", page, flags);
  ++world_.totals_.told;
  changing_.lock();
  UffdOutcome outcome{.error = EAGAIN, .done = {}};
  if (random().one_in(kLazy)) {
  } else if ((flags & UFFD_PAGEFAULT_FLAG_WP) != 0) {
    expect(!async_, "a write-protect fault with WP_ASYNC");
    protected_.erase(page);
    outcome = monitor_->writeprotect({page}, {kPage}, kNone);
  } else if ((flags & UFFD_PAGEFAULT_FLAG_MINOR) != 0) {
    outcome = monitor_->continue_({page}, {kPage}, flags_of(page));
  } else {
    outcome = fill(page);
  }
  changing_.unlock();
  if (outcome.error == 0) return;
  sleep_for(random().up_to(kPause));
  monitor_->wake({page}, {kPage});
}

/// What is missing: its bytes, none for ever, or the core's turn.
UffdOutcome Monitor::fill(std::uint64_t page) {
  constexpr std::uint64_t kPoisons = 30;
  constexpr UffdOutcome kNothing{.error = EAGAIN, .done = {}};
  const Vma* const vma = process_.find(page);
  if (vma == nullptr) return kNothing;
  Truth& truth = *world_.objects_[vma->shows->object].truth;
  const std::uint64_t index = vma->index_of(page);
  if (index >= truth.pages()) return kNothing;
  if (crowded()) {
    forget(page, page + kPage);
    (void)monitor_->unregister_range({page}, {kPage});
    return kNothing;
  }
  if (random().one_in(kPoisons)) {
    truth.note_failure(index);
    protected_.erase(page);
    return monitor_->poison({page}, {kPage}, kNone);
  }
  const PageBytes bytes = truth.bytes_now(index);
  return monitor_->copy({page}, {reinterpret_cast<std::uintptr_t>(bytes.data())}, {kPage}, flags_of(page));
}

/// What a monitor supplies is not evicted: with a small limit nothing else would find room.
bool Monitor::crowded() const {
  std::uint64_t dirty = 0;
  for (const World::Object& object : world_.objects_) dirty += object.dirty();
  return dirty >= world_.plan_.core.budget.value / kPage / 2;
}

ResolveFlags Monitor::flags_of(std::uint64_t page) const {
  return protected_.contains(page) ? ResolveFlags{ResolveFlag::wp} : kNone;
}

std::optional<Monitor::Part> Monitor::pick() {
  std::vector<const Vma*> all;
  for (const Vma* vma = process_.find_from(0); vma != nullptr; vma = process_.find_from(vma->end())) all.push_back(vma);
  if (all.empty()) return std::nullopt;
  const Vma& vma = *all[random().below(all.size())];
  const std::uint64_t pages = vma.length / kPage;
  const std::uint64_t first = random().one_in(2) ? 0 : random().below(pages);
  const std::uint64_t count = random().one_in(2) ? pages - first : 1 + random().below(pages - first);
  return Part{.start = vma.start + first * kPage, .length = count * kPage, .file = vma.file != nullptr};
}

void Monitor::act() {
  for (unsigned i = 0; i < 8 * world_.plan_.steps; ++i) {
    sleep_for(random().up_to(std::chrono::microseconds(300)));
    changing_.lock();
    check_protected();
    const std::optional<Part> part = pick();
    if (part) {
      switch (random().below(5)) {
        case 0:
          change_registration(*part);
          break;
        case 1:
          (void)fill(part->start);
          break;
        default:
          async_ ? look_for_written(*part) : change_protection(*part);
      }
    }
    changing_.unlock();
  }
}

/// What is protected stays so, mapped or not, until the monitor lifts it; but poison takes its place.
void Monitor::check_protected() const {
  for (const std::uint64_t page : protected_) {
    const Vma& vma = *process_.find(page);
    const Truth& truth = *world_.objects_[vma.shows->object].truth;
    const std::uint64_t index = vma.index_of(page);
    const bool poisoned = index >= truth.pages() || truth.failed(index);
    expect(poisoned || process_.pte(page).protected_, "{:#x} has lost its protection", page);
  }
}

void Monitor::change_registration(const Part& part) {
  const bool registers = !random().one_in(3);
  const UffdModes modes = some_modes();
  if (!registers || !modes.has(UffdMode::wp)) forget(part.start, part.end());
  trace("the monitor {} {:#x} + {} pages: {}", registers ? "registers" : "unregisters", part.start, part.length / kPage,
        modes.bits());
  if (registers) {
    (void)monitor_->register_range({part.start}, {part.length}, modes);
  } else {
    (void)monitor_->unregister_range({part.start}, {part.length});
  }
}

void Monitor::change_protection(const Part& part) {
  const bool protects = !random().one_in(3);
  trace("the monitor {} {:#x} + {} pages", protects ? "protects" : "lifts", part.start, part.length / kPage);
  if (!protects) forget(part.start, part.end());
  const UffdOutcome outcome =
      monitor_->writeprotect({part.start}, {part.length}, protects ? ResolveFlags{ResolveFlag::wp} : kNone);
  trace("  {}", outcome.error);
  // Pages without a file are protected only where there are some, and poison is not.
  for (std::uint64_t page = part.start; protects && part.file && outcome.error == 0 && page < part.end();
       page += kPage) {
    if (process_.pte(page).kind != Pte::Kind::poison) protected_.insert(page);
  }
  world_.totals_.protections += protects && outcome.error == 0 ? 1 : 0;
}

void Monitor::look_for_written(const Part& part) {
  const std::set<std::uint64_t> before(stores_.lower_bound(part.start), stores_.lower_bound(part.end()));
  std::array<WrittenRange, 8> ranges{};
  const bool rearms = random().one_in(2);
  const auto found = monitor_->written({part.start}, {part.length}, ranges, rearms ? Rearm::yes : Rearm::no);
  if (!found) return;
  trace("the monitor looks for what was written at {:#x} + {} pages up to {:#x}{}: {} ranges, the first {:#x} + {}",
        part.start, part.length / kPage, found->end.value, rearms ? ", and protects it again" : "", found->ranges,
        ranges[0].start.value, ranges[0].length.value / kPage);
  ++world_.totals_.scans;
  const std::span named = std::span(ranges).first(found->ranges);
  for (auto page = before.begin(); page != before.end() && *page < found->end.value; ++page) {
    const bool is_named = std::ranges::any_of(named, [&](const WrittenRange& range) {
      return range.start.value <= *page && *page < (range.start + range.length).value;
    });
    expect(is_named, "{:#x} was written, and written() does not say so", *page);
  }
  // What was stored meanwhile may be named or not; it is not looked for.
  if (rearms) stores_.erase(stores_.lower_bound(part.start), stores_.lower_bound(found->end.value));
}

}  // namespace uffda::sim
