#include "sim/program.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "sim/crash.h"

namespace uffda::sim {
namespace {

constexpr std::uint64_t kBase = 0x7000'0000'0000;
constexpr std::uint64_t kSlotSize = 0x100'0000;
constexpr std::uint64_t kOwnMark = std::uint64_t{0xBEEF} << 48U;
constexpr Duration kPatience = std::chrono::seconds(20);  // no touch takes longer, whatever the source does
constexpr std::uint64_t kEvents =
    UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP;

PageBytes own_bytes() {
  PageBytes bytes;
  std::uint64_t word = kOwnMark | random().next() >> 17U;
  for (std::size_t at = 0; at < bytes.size(); at += sizeof word, ++word) std::memcpy(&bytes[at], &word, sizeof word);
  return bytes;
}

bool are_own_bytes(const PageBytes& bytes) {
  std::uint64_t first = 0;
  std::memcpy(&first, bytes.data(), sizeof first);
  for (std::size_t at = 0; at < bytes.size(); at += sizeof first) {
    std::uint64_t word = 0;
    std::memcpy(&word, &bytes[at], sizeof word);
    if (word != first + at / sizeof word) return false;
  }
  return first >> 48U == kOwnMark >> 48U;
}

}  // namespace

Program::Program(World& world, std::shared_ptr<Process> process, Plan::Handling handling)
    : world_(world), process_(std::move(process)), handling_(handling) {
  // Copies are read from the cache, as direct reads are: a hole that somebody else makes there is not seen.
  copies_ = handling == Plan::Handling::remote && !world.plan_.punches && random().one_in(3);
}

/// Local processes lie apart: the core looks into the page table of "this process" by address alone.
std::uint64_t Program::slot(std::uint64_t index) const {
  const std::uint64_t apart = handling_ == Plan::Handling::remote ? 0 : process_->id() + 1;
  return kBase + (apart * 2 * kSlots + index) * kSlotSize;
}

bool Program::monitored() const { return world_.plan_.monitors && handling_ == Plan::Handling::local; }

void Program::open() {
  const Plan& plan = world_.plan_;
  const std::uint64_t features = handling_ == Plan::Handling::remote      ? kEvents
                                 : handling_ == Plan::Handling::in_thread ? UFFD_FEATURE_SIGBUS
                                 : monitored()                            ? Monitor::kernel_features(plan.async)
                                                                          : 0;
  process_->set_context(world_.kernel_.open_userfault(*process_, features));
  if (world_.crashes_) return world_.ask([this] { world_.crashes_->attach(*this); });
  adopt(AddressSpace::create(world_.core_, world_.kernel_.wrap(process_->context()),
                             fmt::format("process {}", process_->id())));
  if (!monitored()) return;
  monitor_ = std::make_unique<Monitor>(world_, *process_, space_, changing_, plan.async);
  monitor_->start();
}

void Program::adopt(std::shared_ptr<AddressSpace> space) {
  take(std::move(space));
  start_readers();
}

std::shared_ptr<AddressSpace> Program::forget() {
  readers_.clear();
  return std::exchange(space_, nullptr);
}

void Program::take(std::shared_ptr<AddressSpace> space) {
  space_ = std::move(space);
  if (handling_ == Plan::Handling::in_thread) {
    process_->handle_in_thread([this](Address address, Access access) {
      const auto touch = access == Access::write ? AddressSpace::Touch::store : AddressSpace::Touch::load;
      return space_->handle_inline(address, touch) == AddressSpace::InlineOutcome::resolved;
    });
    return;
  }
  space_->on_fork([world = &world_](std::shared_ptr<AddressSpace> child) {
    for (const auto& program : world->programs_) {
      if (program && program->process_->context() && program->process_->context()->fd() == child->userfault().fd())
        return program->adopt(std::move(child));
    }
    violation("a child that nobody knows");
  });
}

void Program::start_readers() {
  if (handling_ == Plan::Handling::in_thread) return;
  for (unsigned i = 0; i < world_.plan_.readers; ++i) {
    readers_.push_back(spawn(fmt::format("reader {}.{}", process_->id(), i), [this] {
      if (handling_ == Plan::Handling::remote || monitored()) {  // as the engine does
        poll_messages();
      } else {
        read_messages();
      }
    }));
  }
}

// As FaultLoop::poll_loop.
void Program::poll_messages() {
  std::vector<uffd_msg> messages(world_.plan_.batch);
  while (!stopping_) {
    if (!process_->context()->wait_readable(now() + std::chrono::seconds(1))) {
      if (!space_->alive()) return;
      continue;
    }
    const Result<std::size_t> count = space_->drain(messages);
    note_unread(process_->context()->has_unread_event());
    if (!count && count.error().code() == Errc::no_memory) sleep_for(std::chrono::milliseconds(100));
    expect(count || count.error().code() == Errc::no_memory, "reading fails: {}", count ? "" : count.error().message());
  }
}

/// An event that cannot be read, for want of a descriptor, keeps every resolution waiting: what is dirty is not written
/// back meanwhile, and who wants to write may be refused after the deadline.
void Program::note_unread(bool unread) {
  unread_since_ = unread ? std::min(unread_since_, now()) : kForever;
  if (!unread || now() - unread_since_ < world_.plan_.core.deadline / 4) return;
  for (const World::Object& object : world_.objects_) {
    if (object.truth->written_back()) object.truth->note_silence();
  }
}

// As FaultLoop::blocking_loop.
void Program::read_messages() {
  std::vector<uffd_msg> messages(world_.plan_.batch);
  while (!stopping_) {
    const Result<std::size_t> count = space_->userfault().read(messages, os::Wait::yes);
    if (!count) continue;
    for (std::size_t i = 0; i < *count; ++i) space_->handle_fault({messages[i].arg.pagefault.address}, &messages[i]);
  }
}

void Program::map_something() {
  const std::uint64_t number = random().below(kSlots);
  const std::uint64_t start = slot(number);
  const std::size_t which = random().below(world_.objects_.size());
  const World::Object& object = world_.objects_[which];
  if (handling_ == Plan::Handling::in_thread && !object.cached) return;
  changing_.lock();
  const std::uint64_t pages = object.truth->pages();
  const std::uint64_t first = random().one_in(3) ? random().below(pages) : 0;
  // A mapping may go on behind the end of its object.
  const std::uint64_t length = pages - first + (random().one_in(4) ? random().below(4) : 0);
  // Over what is there already, for processes whose events tell of it.
  const bool free = handling_ == Plan::Handling::remote ? process_->find(start) == nullptr
                                                        : !process_->maps_any(start, length * kPage);
  // A child whose FORK event is not read yet has nobody to tell.
  if (!free || !process_->alive() || !space_) return changing_.unlock();
  const bool copied = copies_ && object.cached && !object.truth->written_back() && random().one_in(2);
  const auto shows = std::make_shared<Shows>(Shows{.object = which, .copied = copied, .dropping = {}, .dropped = {}});
  const auto file = copied ? nullptr : object.file;
  process_->mmap({.start = start,
                  .length = length * kPage,
                  .file = file,
                  .offset = first * kPage,
                  .shared = file && !random().one_in(object.truth->written_back() ? 4 : 2),
                  .accessible = false,
                  .shows = shows});
  UffdModes modes = file ? UffdModes{UffdMode::missing, UffdMode::minor} : UffdModes{UffdMode::missing};
  const bool writable = object.truth->written_back() && process_->find(start)->shared;
  if (monitored() || writable) modes = modes | UffdModes{UffdMode::wp};
  std::uint64_t ioctls = 0;
  process_->context()->register_range({start}, {length * kPage}, modes.bits(), ioctls);
  Result<void> attached;
  world_.ask([&] {
    const auto space = space_;
    attached = space->attach({start}, {length * kPage}, object.object, {first * kPage},
                             copied     ? Sharing::copied
                             : writable ? Sharing::shared_writable
                                        : Sharing::shared);
  });
  expect(attached.has_value(), "attach fails");
  shows->attached = true;
  process_->make_accessible(start);
  trace("maps object {} from page {} on at {:#x}", which, first, start);
  changing_.unlock();
  mapped_.push_back(number);
}

void Program::start_threads(const Program* parent) {
  if (parent != nullptr) {
    mapped_ = parent->mapped_;
    copies_ = parent->copies_;
  }
  for (unsigned i = 0; i < world_.plan_.threads; ++i) {
    world_.busy_.push_back(spawn(fmt::format("process {}.{}", process_->id(), i), [this] { live(); }));
  }
}

void Program::live() {
  for (unsigned i = 0; i < world_.plan_.steps && process_->alive(); ++i) step();
}

void Program::step() {
  const bool changes = world_.plan_.changes_mappings;
  const std::uint64_t what = random().below(100);
  if (mapped_.empty()) {
    sleep_for(std::chrono::microseconds(10));
    return map_something();
  }
  if (monitored() && random().one_in(2)) return touch(pick_address(), Access::write);
  if (world_.plan_.writes_back && random().one_in(2)) return store_run();
  if (copies_ && random().one_in(8)) return drop_run();
  if (what < 40) return read_run();
  if (what < 75) return touch(pick_address(), Access::read);
  if (what < 84) return touch(pick_address(), Access::write);
  if (what < 88) return sleep_for(random().up_to(std::chrono::milliseconds(5)));
  if (what < 90) return drop_run();
  if (changes) change_mappings();
}

std::uint64_t Program::pick_address() {
  const std::uint64_t start = slot(mapped_[random().below(mapped_.size())]);
  Vma* const vma = process_->find(start);
  const std::uint64_t pages = vma == nullptr ? 8 : vma->length / kPage;
  return start + random().below(pages) * kPage;
}

void Program::read_run() {
  const std::uint64_t start = pick_address();
  const std::uint64_t count = 1 + random().below(24);
  const std::uint64_t stride = random().one_in(3) ? 1 + random().below(4) : 1;
  const bool backward = random().one_in(4);
  for (std::uint64_t i = 0; i < count && process_->alive(); ++i) {
    const std::uint64_t distance = i * stride * kPage;
    if (process_->find(backward ? start - distance : start + distance) == nullptr) return;
    touch(backward ? start - distance : start + distance, Access::read);
  }
}

/// Often to the same few pages, so that they are stored to while they are written back.
void Program::store_run() {
  const std::uint64_t start = slot(mapped_[random().below(mapped_.size())]);
  const bool hot = random().one_in(2);
  for (std::uint64_t i = 1 + random().below(12); i-- != 0 && process_->alive();)
    touch(hot ? start + random().below(3) * kPage : pick_address(), Access::write);
}

/// What is copied there is zeroes from then on. Nobody changes mappings meanwhile: which memory is meant would be open.
void Program::drop_run() {
  const std::uint64_t start = pick_address();
  const std::uint64_t end = start + (1 + random().below(16)) * kPage;
  if (!copies_) return process_->madvise_dontneed(start, end - start);
  changing_.lock();
  std::vector<std::pair<std::shared_ptr<Shows>, std::uint64_t>> gone;
  for (std::uint64_t at = start; at < end; at += kPage) {
    const Vma* const vma = process_->find(at);
    if (vma != nullptr && vma->shows->copied) gone.emplace_back(vma->shows, vma->index_of(at));
  }
  for (const auto& [shows, page] : gone) shows->dropping.insert(page);
  process_->madvise_dontneed(start, end - start);
  for (const auto& [shows, page] : gone) shows->dropped.insert(page);
  world_.totals_.dropped += gone.size();
  changing_.unlock();
}

void Program::touch(std::uint64_t address, Access access) {
  // What may be seen is decided by what has settled when the touch begins.
  const Vma* const vma = process_->find(address);
  const auto shows = vma == nullptr ? nullptr : vma->shows;
  const std::uint64_t page = vma == nullptr ? 0 : (vma->offset + align_down(address, kPage) - vma->start) / kPage;
  const std::size_t object = shows ? shows->object : 0;
  const Truth& truth = *world_.objects_[object].truth;
  const bool known = shows && !shows->copied && page < truth.pages() && world_.objects_[object].cached;
  const std::uint64_t oldest = known ? truth.settled(page) : 0;
  const bool gone = shows && shows->dropped.contains(page);
  if (access == Access::write && vma != nullptr && vma->shared && !truth.written_back()) access = Access::read;
  const PageBytes written = access == Access::write ? own_bytes() : PageBytes{};
  world_.check_budget();
  const auto served = [&] { return now() - (world_.crashes_ ? world_.crashes_->paused() : Duration{}); };
  const TimePoint began = served();
  ++world_.totals_.touches;
  const Touched touched = process_->touch(address, access, [&](PageBytes& bytes) {
    const Vma& there = *process_->find(address);  // perhaps another one by now
    if (there.shared) return store_shared(there, align_down(address, kPage), bytes);
    if (monitor_) monitor_->note_store(align_down(address, kPage));
    bytes = written;
  });
  expect(served() - began < kPatience, "a touch of {:#x} took {} s", address,
         std::chrono::duration<double>(served() - began).count());
  const bool same = touched.shows && shows && touched.shows->object == shows->object && touched.page == page;
  check(touched, same ? oldest : 0, touched.shows == shows && touched.page == page && gone, address);
}

void Program::store_shared(const Vma& vma, std::uint64_t page, PageBytes& bytes) const {
  const World::Object& object = world_.objects_[vma.shows->object];
  const std::uint64_t index = vma.index_of(page);
  // Who writes to what its own process is about to unmap has lost it.
  if (!object.truth->written_back() || index >= object.truth->pages() || vma.shows->detached) return;
  bytes = object.truth->store(index);
  ++world_.totals_.stores;
}

void Program::check(const Touched& touched, std::uint64_t oldest, bool gone, std::uint64_t address) const {
  if (touched.outcome == Touched::Outcome::segv || touched.outcome == Touched::Outcome::killed) return;
  expect(touched.shows != nullptr, "a page at {:#x} shows nothing", address);
  const Truth& truth = *world_.objects_[touched.shows->object].truth;
  const std::string where = fmt::format("{:#x}, page {} of object {}", address, touched.page, truth.object());
  if (touched.outcome == Touched::Outcome::sigbus) {
    trace("SIGBUS at {}", where);
    ++world_.totals_.sigbus;
    const bool behind = touched.page >= truth.pages();
    expect(behind || !touched.shows->attached || touched.shows->detached || truth.failed(touched.page),
           "SIGBUS at {}, though its source never failed there", where);
    return;
  }
  if (touched.own_write) {
    expect(are_own_bytes(touched.bytes), "what was written at {} is not there", where);
    return;
  }
  const bool zeroes = std::ranges::all_of(touched.bytes, [](std::byte byte) { return byte == std::byte{0}; });
  expect(!gone || zeroes, "what was dropped is back at {}", where);
  if (zeroes && touched.shows->dropping.contains(touched.page)) return;
  expect(touched.page < truth.pages(), "a page behind the end at {}", where);
  expect(truth.is_version_since(touched.page, oldest, touched.bytes), "wrong bytes at {}", where);
}

void Program::change_mappings() {
  if (!space_) return;
  switch (random().below(8)) {
    case 0:
    case 1:
      return unmap_something();
    case 2:
      return handling_ == Plan::Handling::remote ? move_something() : unmap_something();
    case 3:
      return handling_ == Plan::Handling::remote ? fork_once() : map_something();
    case 4:
      if (handling_ == Plan::Handling::remote && random().one_in(8)) return exit();
      return map_something();
    default:
      return map_something();
  }
}

void Program::exit() {
  changing_.lock();
  if (process_->alive()) process_->exit();
  changing_.unlock();
}

void Program::unmap_something() {
  const std::uint64_t start = slot(random().below(kSlots));
  changing_.lock();
  const Vma* const vma = process_->find(start);
  if (vma != nullptr && process_->alive()) {
    std::uint64_t first = vma->start;
    std::uint64_t length = vma->length;
    if (handling_ != Plan::Handling::remote) {
      vma->shows->detached = true;
      if (monitor_) monitor_->forget(first, first + length);
      space_->detach({first}, {length});
    } else if (length > 4 * kPage && random().one_in(2)) {
      first += random().below(length / kPage - 2) * kPage;  // the middle of it
      length = std::min(length, vma->end() - first) / 2 / kPage * kPage + kPage;
    }
    process_->munmap(first, length);
  }
  changing_.unlock();
}

void Program::move_something() {
  changing_.lock();
  const std::uint64_t from = slot(random().below(kSlots));
  const std::uint64_t to = slot(random().below(kSlots));
  const Vma* const vma = process_->find(from);
  if (vma != nullptr && process_->alive() && process_->find(to) == nullptr) {
    // Parts of the other slot may be mapped still.
    const std::uint64_t length = vma->length;
    if (!process_->maps_any(to, length) && process_->mremap(from, to, length))
      mapped_.push_back((to - kBase) / kSlotSize);
  }
  changing_.unlock();
}

void Program::fork_once() {
  constexpr std::size_t kMost = 6;
  changing_.lock();
  if (world_.programs_.size() < kMost && process_->alive()) {
    // The child is known before its userfaultfd is: the event may be read before fork() returns.
    ++world_.totals_.forks;
    world_.programs_.push_back(nullptr);
    const std::size_t at = world_.programs_.size() - 1;
    process_->fork([&](const std::shared_ptr<Process>& process) {
      world_.programs_[at] = std::make_unique<Program>(world_, process, handling_);
    });
    world_.programs_[at]->start_threads(this);
  }
  changing_.unlock();
}

void Program::close() {
  monitor_ = nullptr;
  stopping_ = true;
  if (process_->context()) process_->context()->interrupt();
  for (Fiber* reader : readers_) join(reader);
  process_->handle_in_thread(nullptr);
  if (space_) space_->close();
  space_ = nullptr;
}

}  // namespace uffda::sim
