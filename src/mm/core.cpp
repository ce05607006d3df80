#include "mm/core.h"

#include <algorithm>

#include "base/log.h"
#include "mm/address_space.h"
#include "mm/memory_object.h"

namespace uffda {
namespace {

constexpr Duration kParkTime = std::chrono::milliseconds(1);        // before a parked fault comes again
constexpr Duration kHousekeeping = std::chrono::milliseconds(100);  // between looks at deadlines and the resident set
constexpr std::size_t kStepsAtOnce = 8;  // evicted before others have their turn: some milliseconds
constexpr std::size_t kParkedReserve = 4096;

}  // namespace

Result<std::shared_ptr<Core>> Core::create(const CoreOptions& options) {
  CoreOptions effective = options;
  if (effective.budget.value == 0) effective.budget = {os::physical_memory().value / 2};
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

Core::Core(const CoreOptions& options, StagingPool staging)
    : options_(options), staging_(std::move(staging)), budget_(options.budget) {
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

Result<std::shared_ptr<MemoryObject>> Core::create_object(std::unique_ptr<PageSource> source, std::string_view type,
                                                          ByteCount budget, OpenFor what_for, Successor successor) {
  const std::size_t options = std::min(type.find('?'), type.size());
  const MemoryType* found = UFFDA_TRY(types_.find(type.substr(0, options)));
  const std::string_view type_options = type.substr(std::min(options + 1, type.size()));
  std::shared_ptr<MemoryObject> object = UFFDA_TRY(MemoryObject::create(*this, *found, std::move(source),
                                                                        {.type = type_options,
                                                                         .budget = budget,
                                                                         .write_back = what_for != OpenFor::reading,
                                                                         .successor = std::move(successor)}));
  const MutexLock lock(objects_mutex_);
  std::erase_if(objects_, [](const auto& other) { return other.expired(); });
  objects_.push_back(object);
  return object;
}

void Core::wake_later(std::weak_ptr<AddressSpace> space, Address start, ByteCount length) {
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
    const bool warming = staging_.warm_up();
    bool parked = false;
    bool called = false;
    {
      const MutexLock lock(parked_mutex_);
      if (!stopping_ && parked_.empty() && !evictor_called_ && !warming)
        parked_changed_.wait_until(parked_mutex_, next_look);
      if (stopping_) return;
      parked = !parked_.empty();
      called = std::exchange(evictor_called_, false);
    }
    if ((called || budget_.is_short()) && reclaim()) call_evictor();
    if (parked) wake_parked();
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

void Core::call_evictor() {
  {
    const MutexLock lock(parked_mutex_);
    evictor_called_ = true;
  }
  parked_changed_.notify_one();
}

std::uint64_t Core::evictions() {
  const MutexLock lock(evicted_mutex_);
  return evictions_;
}

void Core::wait_for_eviction(std::uint64_t seen, TimePoint until) {
  const MutexLock lock(evicted_mutex_);
  while (evictions_ == seen && Clock::now() < until) evicted_.wait_until(evicted_mutex_, until);
}

/// Whether something is gone.
bool Core::evict_from(Victim& victim, MemoryObject& object) {
  using Mercy = MemoryObject::Mercy;
  // Where half of all are in use, or cannot go, somebody has to.
  const MemoryObject::Evicted evicted = object.evict_some(victim.in_vain > victim.folios ? Mercy::nobody : Mercy::used);
  victim.folios -= evicted.looked_at == 0 ? victim.folios : std::min(victim.folios, evicted.looked_at);
  victim.in_vain = evicted.folios == 0 ? victim.in_vain + evicted.looked_at : 0;
  if (evicted.folios == 0) return false;
  {
    const MutexLock lock(evicted_mutex_);
    ++evictions_;
  }
  evicted_.notify_all();
  return true;
}

void Core::list_victims() {
  victims_.clear();
  for (std::size_t i = 0;; ++i) {
    std::shared_ptr<MemoryObject> object;
    {
      const MutexLock lock(objects_mutex_);
      if (i >= objects_.size()) return;
      object = objects_[i].lock();
    }
    // Folios that stay go back to the end of their queue: one pass over it is enough.
    if (object) victims_.push_back({.object = object, .folios = object->folios_queued()});
  }
}

Core::Victim* Core::largest_victim() {
  Victim* largest = nullptr;
  ByteCount most;
  for (Victim& victim : victims_) {
    const auto object = victim.folios != 0 ? victim.object.lock() : nullptr;
    if (!object || (largest != nullptr && object->budget().used() <= most)) continue;
    largest = &victim;
    most = object->budget().used();
  }
  return largest;
}

/// Whether there is more to do: faults that wait, and deadlines, are looked after in between. Not where nothing could
/// be evicted: who needs the room asks again.
bool Core::reclaim() {
  std::size_t left = kStepsAtOnce;  // that evict something: looking is cheap, and ends after one pass
  list_victims();
  for (Victim& victim : victims_) {
    const auto object = victim.object.lock();
    if (!object || !object->budget().is_short()) continue;
    while (victim.folios != 0 && object->budget().wants_room()) {
      if (left == 0) return true;
      if (evict_from(victim, *object)) --left;
    }
    if (object->budget().is_short()) object->kick_writeback();
    object->forget_wanted();
  }
  if (!budget_.is_short()) return false;
  // From whoever has most: nobody who has less than an equal share loses something to one who has more.
  while (budget_.wants_room()) {
    Victim* const largest = largest_victim();
    if (largest == nullptr) break;
    if (left == 0) return true;
    if (const auto object = largest->object.lock()) {
      if (evict_from(*largest, *object)) --left;
    } else {
      largest->folios = 0;
    }
  }
  if (budget_.is_short()) {
    for (const Victim& victim : victims_) {
      if (const auto object = victim.object.lock()) object->kick_writeback();
    }
  }
  budget_.forget_wanted();
  return false;
}

}  // namespace uffda
