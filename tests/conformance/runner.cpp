// Runs a script in one world and writes down all that can be seen.
//
// A touch is made by a thread of its own, which completes it or waits in its fault; in that case its message is
// awaited, so that what happens next does not depend on who is faster. After a step that may have woken somebody, those
// who waited in its range complete, or their next message comes.
#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <set>

#include "conformance/script.h"
#include "os/kernel_abi.h"
#include "os/memory.h"

namespace uffda::conformance {
namespace {

constexpr auto kPatience = std::chrono::seconds(5);  // only a difference takes that long

class Runner {
 public:
  explicit Runner(World& world) : world_(world), unit_(world.unit()) {
    unreadable_ = *os::map_memory(unit_ * (kPages + 2), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
    ::mprotect(unreadable_.bytes().data() + unit_.value, unit_.value * (kPages + 1), PROT_NONE);
  }

  std::vector<std::string> run(const Script& script) {
    for (Step step : script) {
      if (hung_) break;
      // Which parts of private file memory merge again depends on what was written in them, and huge pages never do:
      // they are registered as a whole.
      const bool whole = world_.copies() || unit_ != kPageSize;
      if (whole && (step.op == Op::register_range || step.op == Op::unregister_range)) {
        step.page = 0;
        step.count = static_cast<std::int64_t>(kPages);
      }
      say("> {}", to_string(step));
      one(step);
    }
    end();
    return std::move(seen_);
  }

 private:
  template <typename... Args>
  void say(fmt::format_string<Args...> format, Args&&... args) {
    seen_.push_back(fmt::format(format, std::forward<Args>(args)...));
  }

  void say_outcome(const UffdOutcome& outcome) {
    if (outcome.done) {
      say("error {} field {}", outcome.error, *outcome.done);
    } else {
      say("error {} field untouched", outcome.error);
    }
  }

  Address start_of(const Step& step) const {
    return world_.page(step.page) + ByteCount{static_cast<std::uint64_t>(step.skew)};
  }
  [[nodiscard]] ByteCount length_of(const Step& step) const { return unit_ * static_cast<std::uint64_t>(step.count); }

  void one(const Step& step) {
    const Address start = start_of(step);
    const ByteCount length = length_of(step);
    switch (step.op) {
      case Op::register_range: {
        if (overlaps_replaced(step) || somebody_reads() || drops_protection(step)) return say("skipped");
        // The kernel names MOVE for shmem, too, where it is EINVAL; here the type's table speaks.
        const Registered said = world_.register_range(start, length, step.modes);
        if (said.error == 0) note_modes(step, step.modes);
        // So that every page of it has an entry in a page table: what has none is written, or not, as it comes.
        if (world_.tracks()) world_.writeprotect(start, length, ResolveFlag::wp);
        return say("error {} ioctls {:#x}", said.error, said.ioctls & ~(std::uint64_t{1} << _UFFDIO_MOVE));
      }
      case Op::unregister_range:
        if (overlaps_replaced(step) || somebody_reads()) return say("skipped");
        if (const int error = world_.unregister_range(start, length); error != 0) {
          say("error {}", error);
        } else {
          note_modes(step, 0);
        }
        world_.wake(world_.page(0), unit_ * kPages);
        return woken();
      case Op::read:
      case Op::write:
        return touch_by(step);
      case Op::copy:
        say_outcome(world_.copy(start, source_of(step), length, step.flags));
        return woken();
      case Op::zeropage:
        say_outcome(world_.zeropage(start, length, step.flags));
        return woken();
      case Op::continue_:
        say_outcome(world_.continue_(start, length, step.flags));
        return woken();
      case Op::poison:
        say_outcome(world_.poison(start, length, step.flags));
        return woken();
      case Op::move:
        return move(step, start, length);
      case Op::writeprotect:
        say_outcome(world_.writeprotect(start, length, step.flags));
        return woken();
      case Op::wake:
        say_outcome(world_.wake(start, length));
        return woken();
      case Op::scan:
        return scan(step, start, length);
      default:
        return change(step, length);
    }
  }

  bool overlaps_replaced(const Step& step) const {
    for (std::int64_t i = step.page; i < step.page + step.count; ++i) {
      if (i >= 0 && i < static_cast<std::int64_t>(kPages) && replaced_.at(static_cast<std::size_t>(i))) return true;
    }
    return false;
  }

  /// Lasts from script to script: huge pages of it take long to fault in.
  std::span<std::byte> source_memory() const {
    static os::MappedMemory memory;
    if (memory.bytes().size() < (unit_ * (kPages + 2)).value)
      memory = *os::map_memory(unit_ * (kPages + 2), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
    return memory.bytes();
  }

  const void* source_of(const Step& step) {
    const std::span<std::byte> source = source_memory();
    // Nobody looks further into a huge page, and filling it takes its time.
    const std::uint64_t looked_at = std::min(unit_.value, 2 * kPageSize.value);
    for (std::int64_t i = 0; i <= step.count; ++i) {
      std::ranges::fill(source.subspan(static_cast<std::size_t>(i) * unit_.value, looked_at),
                        static_cast<std::byte>(step.value));
    }
    // Huge pages: the kernel looks whether the page is there before it reads, elsewhere after.
    switch (unit_ == kPageSize ? step.from : 0) {
      case 1:
        return unreadable_.bytes().data() + unit_.value;
      case 2:
        return source.data() + 100;
      case 3:
        return unreadable_.bytes().data();
      default:
        return source.data();
    }
  }

  void move(const Step& step, Address start, ByteCount length) {
    const bool inside = step.from < static_cast<std::int64_t>(kPages);
    // A child has had these pages, and for a while they are not the parent's alone: EBUSY. The engine's have no child.
    if (inside && forked_) return say("skipped");
    const auto index = static_cast<std::uint64_t>(step.from) % kPages;
    const Address from = inside ? world_.page(step.from) : world_.aside() + unit_ * index;
    if (!inside) {
      workers().start(kThreads, [this, at = from + ByteCount{7}, value = step.value] {
        return world_.touch(at, How::store, value);
      });
      workers().idle_within(kThreads, kPatience);
      workers().outcome(kThreads);
    }
    // Beyond its end lies whatever the process has there.
    const ByteCount fits = unit_ * (kPages - index);
    say_outcome(world_.move(start, from, std::min(length, fits), step.flags));
    woken();
  }

  void scan(const Step& step, Address start, ByteCount length) {
    if (!world_.tracks() || overlaps_replaced(step)) return say("skipped");
    const auto rearm = step.flags.has(ResolveFlag::wp) ? Rearm::yes : Rearm::no;
    const Written found = world_.written(start, length, rearm);
    say("error {}", found.error);
    for (const WrittenRange& range : found.ranges)
      say("written: {} bytes from {}", range.length.value, (range.start - world_.page(0)).value);
  }

  void touch_by(const Step& step) {
    // One of several that wait for a page would be first, and nobody knows which.
    if (workers().busy(step.thread) || std::ranges::count(waits_at_, step.page) != 0) return say("busy");
    const Address at = world_.page(step.page) + ByteCount{7};
    waits_at_.at(static_cast<std::size_t>(step.thread)) = step.page;
    if (step.op == Op::write) tried_.at(static_cast<std::size_t>(step.page)) = true;
    cache_private_huge(step.page);
    const How how = step.op == Op::write ? How::store : load(step.page);
    workers().start(step.thread, [this, at, how, value = step.value] { return world_.touch(at, how, value); });
    await({step.thread});
    note_idle();
  }

  /// An absent huge page that nobody wants to hear of is a private one of zeroes for the kernel; here it comes from the
  /// source, and is cached. So somebody else has it cached first.
  void cache_private_huge(std::int64_t page) {
    if (unit_ == kPageSize || !world_.copies()) return;
    if ((modes_.at(static_cast<std::size_t>(page)) & UFFDIO_REGISTER_MODE_MISSING) != 0) return;
    read_now(world_.other() + unit_ * static_cast<std::uint64_t>(page));
  }

  /// The kernel maps the cached neighbours of a page that is read, unless write-protect or minor faults are wanted
  /// there. uffda leaves to a monitor what it has not resolved. So there, a page is read by writing what is in it.
  How load(std::int64_t page) const {
    constexpr std::uint64_t kAround = UFFDIO_REGISTER_MODE_WP | UFFDIO_REGISTER_MODE_MINOR;
    const std::uint64_t modes = modes_.at(static_cast<std::size_t>(page));
    const bool never_around = !world_.has_other() || unit_ != kPageSize;
    return never_around || (modes & kAround) != 0 ? How::load : How::rewrite;
  }

  /// Registering anew without write-protect: the kernel keeps what is protected until it is touched, uffda lifts it.
  bool drops_protection(const Step& step) const {
    for (std::int64_t i = step.page; i < step.page + step.count; ++i) {
      const std::uint64_t now = modes_.at(static_cast<std::size_t>(i));
      if ((now & ~step.modes & UFFDIO_REGISTER_MODE_WP) != 0 && (now & step.modes) != step.modes) return true;
    }
    return false;
  }

  /// Such a read would go on where the kernel maps neighbours.
  bool somebody_reads() const {
    return world_.has_other() && std::ranges::any_of(waits_at_, [](std::int64_t page) { return page >= 0; });
  }

  /// What the pages of a range are registered for, by the kernel's rule.
  void note_modes(const Step& step, std::uint64_t modes) {
    split_ = split_ || step.count != static_cast<std::int64_t>(kPages);
    for (std::int64_t i = step.page; i < step.page + step.count; ++i) {
      std::uint64_t& now = modes_.at(static_cast<std::size_t>(i));
      if (modes == 0 || (now & modes) != modes) now = modes;
    }
  }

  /// The threads are done, or their messages are there. Who of several is faster does not count.
  void await(const std::set<int>& threads) {
    const auto until = workers().now() + kPatience;
    std::set<int> waiting = threads;
    std::set<std::string> said;
    while (!waiting.empty()) {
      for (const int thread : threads) {
        if (!waiting.contains(thread)) continue;
        if (!workers().idle_within(thread, std::chrono::microseconds(30))) continue;
        said.insert(fmt::format("thread {}: {}", thread, workers().outcome(thread)));
        waiting.erase(thread);
      }
      for (const int thread : read_messages(said)) waiting.erase(thread);
      if (workers().now() < until) continue;
      for (const int thread : waiting) said.insert(fmt::format("thread {} hangs", thread));
      hung_ = !waiting.empty();
      break;
    }
    for (const std::string& line : said) say("{}", line);
  }

  /// Says events; puts what it says of faults in `said`. The threads whose faults these are.
  std::set<int> read_messages(std::set<std::string>& said) {
    std::set<int> found;
    for (const uffd_msg& message : world_.read()) {
      if (message.event != UFFD_EVENT_PAGEFAULT) {
        say_event(message);
        continue;
      }
      const auto& fault = message.arg.pagefault;
      const auto offset = static_cast<std::int64_t>(fault.address - world_.page(0).value);
      const int thread = name_of(fault.feat.ptid);
      said.insert(fmt::format("fault at {} flags {:#x} thread {}", offset, fault.flags, thread));
      found.insert(thread);
    }
    return found;
  }

  int name_of(std::uint32_t id) {
    for (int i = 0; i <= kThreads; ++i) {
      if (workers().id(i) == id) return i;
    }
    return -1;
  }

  void say_event(const uffd_msg& message) {
    const auto offset = [&](std::uint64_t address) {
      return static_cast<std::int64_t>(address) - static_cast<std::int64_t>(world_.page(0).value);
    };
    if (message.event == UFFD_EVENT_REMAP) {
      say("event remap of {} bytes from {}", message.arg.remap.len, offset(message.arg.remap.from));
    } else {
      say("event {:#x} from {} to {}", message.event, offset(message.arg.remove.start), offset(message.arg.remove.end));
    }
  }

  /// Whoever may have been woken completes or faults again. A thread that nobody woke is woken: it says the same again.
  void woken() {
    std::set<int> threads;
    for (int i = 0; i < kThreads; ++i) {
      if (waits_at_.at(static_cast<std::size_t>(i)) < 0) continue;
      threads.insert(i);
      world_.wake(world_.page(waits_at_.at(static_cast<std::size_t>(i))), unit_);
    }
    await(threads);
    note_idle();
  }

  void note_idle() {
    for (int i = 0; i < kThreads; ++i) {
      if (!workers().busy(i)) waits_at_.at(static_cast<std::size_t>(i)) = -1;
    }
  }

  /// mremap refuses several mappings. What splits and what merges again is not the same here, where the engine has
  /// registered everything already: so only what was never split is moved.
  [[nodiscard]] bool is_one_mapping() const { return !split_; }

  /// What changes mappings waits until the monitor has read of it.
  void change(const Step& step, ByteCount length) {
    // Huge pages: where they go would have to be aligned, and whether a hole was punched cannot be asked.
    if (unit_ != kPageSize && (step.op == Op::remap || step.op == Op::remove)) return say("skipped");
    if (step.op == Op::remap && (remapped_ || !is_one_mapping())) return say("skipped");
    const bool elsewhere = step.op == Op::other_read || step.op == Op::other_write || step.op == Op::remove;
    if (elsewhere && !world_.has_other()) return say("skipped");
    // Of a private page that waits to be written the kernel has a copy already; here it is copied when it is written.
    const bool copied = world_.copies() && tried_.at(static_cast<std::size_t>(step.page));
    if ((step.op == Op::remove && world_.copies()) || (step.op == Op::other_write && copied)) return say("skipped");
    const Address at = (elsewhere ? world_.other() : world_.base()) + unit_ * static_cast<std::uint64_t>(step.page);
    workers().start(kThreads, [this, step, at, length] { return changed(step, at, length); });
    const auto until = workers().now() + kPatience;
    std::set<std::string> said;
    while (!workers().idle_within(kThreads, std::chrono::microseconds(50))) {
      read_messages(said);
      if (workers().now() < until) continue;
      hung_ = true;
      return say("{} hangs", to_string(step.op));
    }
    world_.settle();
    read_messages(said);
    for (const std::string& line : said) say("{}", line);
    say("{}: {}", to_string(step.op), workers().outcome(kThreads));
    if (step.op == Op::remap) {
      remapped_ = true;
      world_.wake(world_.page(0), unit_ * kPages);
      world_.move_to_target();
    }
    forked_ = forked_ || step.op == Op::fork;
    if (step.op == Op::replace) {
      split_ = true;
      for (std::int64_t i = step.page; i < step.page + step.count; ++i)
        replaced_.at(static_cast<std::size_t>(i)) = true;
    }
    woken();
  }

  std::string changed(const Step& step, Address at, ByteCount length) {
    switch (step.op) {
      case Op::other_read:
        return world_.touch(at + ByteCount{7}, How::load, 0);
      case Op::other_write:
        return world_.touch(at + ByteCount{7}, How::store, step.value);
      case Op::dontneed:
        return world_.change(Change::dontneed, at, length);
      case Op::remove:
        return world_.change(Change::remove, at, length);
      case Op::replace:
        return world_.change(Change::replace, at, length);
      case Op::fork:
        return world_.fork();
      default:
        return world_.remap();
    }
  }

  /// Everybody comes home, and the contents are compared.
  void end() {
    world_.unregister_range(world_.page(0), unit_ * kPages);
    for (std::int64_t i = 0; i < static_cast<std::int64_t>(kPages); ++i) world_.unregister_range(world_.page(i), unit_);
    world_.wake(world_.page(0), unit_ * kPages);
    for (int i = 0; i < kThreads; ++i) {
      if (workers().idle_within(i, kPatience)) {
        const std::string outcome = workers().outcome(i);
        if (!outcome.empty()) say("at the end thread {}: {}", i, outcome);
      } else {
        say("at the end thread {} hangs", i);
        for (const std::string& line : seen_) fmt::print(stderr, "{}\n", line);
        std::abort();  // it touches memory that is about to go
      }
    }
    for (std::uint64_t i = 0; i < kPages; ++i) {
      const Address page = world_.page(static_cast<std::int64_t>(i));
      const std::string first = read_now(page + ByteCount{7});
      say("at the end page {}: {} {}", i, first, read_now(page + ByteCount{4000}));
    }
  }

  std::string read_now(Address at) {
    workers().start(kThreads, [this, at] { return world_.touch(at, How::load, 0); });
    workers().idle_within(kThreads, kPatience);
    return workers().outcome(kThreads);
  }

  Workers& workers() { return world_.workers(); }

  World& world_;
  const ByteCount unit_;
  os::MappedMemory unreadable_;
  std::array<std::int64_t, kThreads> waits_at_{-1, -1, -1};  ///< pages; -1: nowhere
  std::array<bool, kPages> replaced_{};
  std::array<bool, kPages> tried_{};  ///< to write
  std::array<std::uint64_t, kPages> modes_{};
  bool remapped_ = false;
  bool split_ = false;
  bool hung_ = false;
  bool forked_ = false;
  std::vector<std::string> seen_;
};

}  // namespace

std::vector<std::string> run(const Script& script, World& world) { return Runner(world).run(script); }

}  // namespace uffda::conformance
