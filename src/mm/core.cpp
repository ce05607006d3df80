#include "mm/core.h"

#include <algorithm>

#include "base/log.h"
#include "mm/address_space.h"
#include "mm/memory_object.h"

namespace uffda {
namespace {

constexpr Duration kParkTime = std::chrono::milliseconds(1);        // before a parked fault comes again
constexpr Duration kHousekeeping = std::chrono::milliseconds(100);  // between looks at deadlines and the resident set
constexpr Duration kAdmitWait = std::chrono::milliseconds(50);  // for the evictor, before a fetch goes over the limit
constexpr std::size_t kParkedReserve = 4096;

}  // namespace

Result<std::shared_ptr<Core>> Core::create(const CoreOptions& options) {
  CoreOptions effective = options;
  if (effective.resident_limit.value == 0) effective.resident_limit = {os::physical_memory().value / 2};
  return std::shared_ptr<Core>(new Core(effective, UFFDA_TRY(StagingPool::create())), &Core::end);
}

void Core::end(Core* core) {
  if (this_thread::get_id() != core->housekeeping_.get_id()) {
    delete core;
    return;
  }
  // Housekeeping holds address spaces for a moment, and with one of them held the last reference: a thread cannot join
  // itself.
  const MutexLock lock(core->parked_mutex_);
  core->stopping_ = core->orphaned_ = true;
}

void Core::end_if_orphaned() {
  {
    const MutexLock lock(parked_mutex_);
    if (!orphaned_) return;
  }
  housekeeping_.detach();
  delete this;
}

Core::Core(const CoreOptions& options, StagingPool staging) : options_(options), staging_(std::move(staging)) {
  parked_.reserve(kParkedReserve);
  housekeeping_ = Thread([this] {
    run_housekeeping();
    end_if_orphaned();
  });
}

Core::~Core() {
  {
    const MutexLock lock(parked_mutex_);
    stopping_ = true;
  }
  parked_changed_.notify_all();
  if (housekeeping_.joinable()) housekeeping_.join();
}

Result<std::shared_ptr<MemoryObject>> Core::create_object(std::unique_ptr<PageSource> source, std::string_view type) {
  const std::size_t options = std::min(type.find('?'), type.size());
  const MemoryType* found = UFFDA_TRY(types_.find(type.substr(0, options)));
  const std::string_view type_options = type.substr(std::min(options + 1, type.size()));
  std::shared_ptr<MemoryObject> object =
      UFFDA_TRY(MemoryObject::create(*this, *found, std::move(source), type_options));
  const MutexLock lock(objects_mutex_);
  std::erase_if(objects_, [](const auto& other) { return other.expired(); });
  objects_.push_back(object);
  return object;
}

void Core::wake_later(std::weak_ptr<AddressSpace> space, Address start, ByteCount length) {
  add(stats_.wakes_deferred);
  {
    const MutexLock lock(parked_mutex_);
    parked_.push_back({.space = std::move(space), .start = start, .length = length});
  }
  parked_changed_.notify_one();
}

void Core::report_failure(const SourceFailure& failure) const {
  log(LogLevel::error, "{}: bytes {} to {} cannot be had: {}", failure.object, failure.range.start.value,
      failure.range.end().value, failure.error.message());
  if (failure_hook_) failure_hook_(failure);
}

void Core::run_housekeeping() {
  TimePoint next_look = Clock::now() + kHousekeeping;
  while (true) {
    bool parked = false;
    {
      const MutexLock lock(parked_mutex_);
      const bool over = resident() > options_.resident_limit;
      // Over the limit with nothing to evict (all of it pinned, or in flight): look again soon, but do not spin.
      if (!stopping_ && parked_.empty())
        parked_changed_.wait_until(parked_mutex_, over ? Clock::now() + kParkTime : next_look);
      if (stopping_) return;
      parked = !parked_.empty();
    }
    if (parked) wake_parked();
    // Ahead of the limit, so that fetches seldom have to wait for room.
    const ByteCount reserve{options_.resident_limit.value / 16};
    if (resident() > options_.resident_limit - reserve) evict_down_to(options_.resident_limit - reserve - reserve);
    if (Clock::now() < next_look) continue;
    next_look = Clock::now() + kHousekeeping;
    check_deadlines();
  }
}

void Core::wake_parked() {
  this_thread::sleep_for(kParkTime);
  std::vector<Parked> due;
  due.reserve(kParkedReserve);
  {
    const MutexLock lock(parked_mutex_);
    due.swap(parked_);
  }
  for (const Parked& parked : due) {
    if (const auto space = parked.space.lock()) space->wake(parked.start, parked.length);
  }
}

void Core::check_deadlines() {
  // One at a time, so that looking allocates nothing. One that moves when others go is looked at next time.
  for (std::size_t i = 0;; ++i) {
    std::shared_ptr<MemoryObject> object;
    {
      const MutexLock lock(objects_mutex_);
      if (i >= objects_.size()) return;
      object = objects_[i].lock();
    }
    if (object) object->check_deadlines(Clock::now());
  }
}

bool Core::count(ByteCount bytes) {
  const std::uint64_t now = resident_.fetch_add(bytes.value, std::memory_order_relaxed) + bytes.value;
  if (now <= options_.resident_limit.value - options_.resident_limit.value / 16) [[likely]]
    return true;
  {
    const MutexLock lock(parked_mutex_);
  }
  parked_changed_.notify_one();
  return now <= options_.resident_limit.value;
}

void Core::admit(ByteCount bytes) {
  if (count(bytes)) [[likely]]
    return;
  const MutexLock lock(resident_mutex_);
  const TimePoint until = Clock::now() + kAdmitWait;
  while (resident() > options_.resident_limit && Clock::now() < until) {
    if (!evicted_.wait_until(resident_mutex_, until)) break;
  }
}

void Core::queue_chunk(std::weak_ptr<MemoryObject> object, std::uint64_t chunk) {
  const MutexLock lock(resident_mutex_);
  chunks_.push_back({.object = std::move(object), .index = chunk});
}

bool Core::next_chunk(Chunk& chunk) {
  const MutexLock lock(resident_mutex_);
  if (chunks_.empty()) return false;
  chunk = std::move(chunks_.front());
  chunks_.pop_front();
  return true;
}

void Core::evict_down_to(ByteCount limit) {
  // Chunks of which some folios stay go back to the end of the queue: one pass over it is enough.
  std::size_t left = 0;
  {
    const MutexLock lock(resident_mutex_);
    left = chunks_.size();
  }
  Chunk chunk;
  for (; left != 0 && resident() > limit && next_chunk(chunk); --left) {
    if (const auto object = chunk.object.lock()) object->evict_chunk(chunk.index);
    // The lock orders this after the check of a thread that is about to wait.
    {
      const MutexLock lock(resident_mutex_);
    }
    evicted_.notify_all();
  }
}

}  // namespace uffda
