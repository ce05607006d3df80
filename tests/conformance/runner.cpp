// Runs a script in one world and writes down all that can be seen.
//
// A touch is made by a thread of its own, which completes it or waits in its fault; in that case its message is
// awaited, so that what happens next does not depend on who is faster. After a step that may have woken somebody, those
// who waited in its range complete, or their next message comes.
#include <fmt/format.h>
#include <setjmp.h>  // NOLINT(modernize-deprecated-headers): sigsetjmp is POSIX
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <functional>
#include <mutex>
#include <set>
#include <thread>

#include "conformance/script.h"
#include "os/kernel_abi.h"
#include "os/memory.h"

namespace uffda::conformance {
namespace {

constexpr auto kPatience = std::chrono::seconds(5);  // only a difference takes that long

thread_local sigjmp_buf escape;
thread_local volatile sig_atomic_t escapable = 0;

void on_fault_signal(int signal) {
  if (escapable == 0) {
    ::signal(signal, SIG_DFL);
    return;
  }
  siglongjmp(escape, signal);
}

void install_handlers() {
  static const bool done = [] {
    struct sigaction action{};
    action.sa_handler = on_fault_signal;
    action.sa_flags = SA_NODEFER;
    sigaction(SIGBUS, &action, nullptr);
    sigaction(SIGSEGV, &action, nullptr);
    return true;
  }();
  (void)done;
}

/// How a byte is touched: a load, a store, or a store of what is there.
enum class How : std::uint8_t { load, store, rewrite };

/// A touch of one byte. Its outcome: the byte, or the signal.
std::string touch(std::byte* at, How how, std::uint8_t value = 0) {
  const int signal = sigsetjmp(escape, 1);
  if (signal != 0) {
    escapable = 0;
    return signal == SIGBUS ? "SIGBUS" : "SIGSEGV";
  }
  escapable = 1;
  std::string outcome;
  const std::atomic_ref<std::byte> byte(*at);
  if (how == How::store) {
    byte.store(static_cast<std::byte>(value));
    outcome = "stored";
  } else if (how == How::rewrite) {
    // Not by std::atomic: a compiler makes a load of an operation that changes nothing.
    asm volatile("lock orb $0, %0" : "+m"(*at) : : "memory");
    outcome = fmt::format("{}", static_cast<unsigned>(byte.load()));
  } else {
    outcome = fmt::format("{}", static_cast<unsigned>(byte.load()));
  }
  escapable = 0;
  return outcome;
}

/// A thread that does what it is told, one thing at a time.
class Worker {
 public:
  Worker() : thread_([this] { run(); }) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return id_ != 0; });
  }
  ~Worker() {
    start([] { return std::string(); });
    {
      const std::scoped_lock lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  [[nodiscard]] std::uint32_t id() const { return id_; }
  [[nodiscard]] bool busy() {
    const std::scoped_lock lock(mutex_);
    return static_cast<bool>(task_);
  }
  void start(std::function<std::string()> task) {
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return !task_; });
      task_ = std::move(task);
    }
    changed_.notify_all();
  }
  /// True if it becomes idle before `when`.
  bool idle_by(std::chrono::steady_clock::time_point when) {
    std::unique_lock lock(mutex_);
    return changed_.wait_until(lock, when, [&] { return !task_; });
  }
  std::string outcome() {
    const std::scoped_lock lock(mutex_);
    return std::exchange(outcome_, {});
  }

 private:
  void run() {
    {
      const std::scoped_lock lock(mutex_);
      id_ = static_cast<std::uint32_t>(::syscall(SYS_gettid));
    }
    changed_.notify_all();
    while (true) {
      std::function<std::string()> task;
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return task_ || stopping_; });
        if (stopping_) return;
        task = task_;
      }
      std::string outcome = task();
      {
        const std::scoped_lock lock(mutex_);
        outcome_ = std::move(outcome);
        task_ = nullptr;
      }
      changed_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::function<std::string()> task_;
  std::string outcome_;
  std::uint32_t id_ = 0;
  bool stopping_ = false;
  std::thread thread_;
};

/// kThreads that touch, and one that changes mappings: it waits until its event is read.
std::array<Worker, kThreads + 1>& workers() {
  static std::array<Worker, kThreads + 1> all;
  return all;
}

class Runner {
 public:
  explicit Runner(World& world) : world_(world), unit_(world.unit()) {
    const ByteCount length = unit_ * kPages;
    source_ = *os::map_memory(unit_ * (kPages + 2), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
    unreadable_ = *os::map_memory(unit_ * (kPages + 2), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
    ::mprotect(unreadable_.bytes().data() + unit_.value, unit_.value * (kPages + 1), PROT_NONE);
    aside_ = *os::map_memory(length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
    ::madvise(aside_.bytes().data(), length.value, MADV_NOHUGEPAGE);
    ::madvise(world_.base(), length.value, MADV_NOHUGEPAGE);
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

  const void* source_of(const Step& step) {
    const std::size_t used = (unit_ * static_cast<std::uint64_t>(step.count + 1)).value;
    std::ranges::fill(source_.bytes().first(used), static_cast<std::byte>(step.value));
    // Huge pages: the kernel looks whether the page is there before it reads, elsewhere after.
    switch (unit_ == kPageSize ? step.from : 0) {
      case 1:
        return unreadable_.bytes().data() + unit_.value;
      case 2:
        return source_.bytes().data() + 100;
      case 3:
        return unreadable_.bytes().data();
      default:
        return source_.bytes().data();
    }
  }

  void move(const Step& step, Address start, ByteCount length) {
    const bool inside = step.from < static_cast<std::int64_t>(kPages);
    const auto index = static_cast<std::uint64_t>(step.from) % kPages;
    const Address from = inside ? world_.page(step.from) : aside_.address() + unit_ * index;
    if (!inside) aside_.bytes()[index * unit_.value + 7] = static_cast<std::byte>(step.value);
    // Beyond its end lies whatever the process has there.
    const ByteCount fits = unit_ * (kPages - index);
    say_outcome(world_.move(start, from, std::min(length, fits), step.flags));
    woken();
  }

  void touch_by(const Step& step) {
    Worker& worker = workers().at(static_cast<std::size_t>(step.thread));
    // One of several that wait for a page would be first, and nobody knows which.
    if (worker.busy() || std::ranges::count(waits_at_, step.page) != 0) return say("busy");
    auto* at = reinterpret_cast<std::byte*>(world_.page(step.page).value + 7);
    waits_at_.at(static_cast<std::size_t>(step.thread)) = step.page;
    if (step.op == Op::write) tried_.at(static_cast<std::size_t>(step.page)) = true;
    const How how = step.op == Op::write ? How::store : load(step.page);
    worker.start([at, how, value = step.value] { return touch(at, how, value); });
    await({step.thread});
    note_idle();
  }

  /// The kernel maps the cached neighbours of a page that is read, unless write-protect or minor faults are wanted
  /// there. uffda leaves to a monitor what it has not resolved. So there, a page is read by writing what is in it.
  How load(std::int64_t page) const {
    constexpr std::uint64_t kAround = UFFDIO_REGISTER_MODE_WP | UFFDIO_REGISTER_MODE_MINOR;
    const std::uint64_t modes = modes_.at(static_cast<std::size_t>(page));
    const bool never_around = world_.other() == nullptr || unit_ != kPageSize;
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
    return world_.other() != nullptr && std::ranges::any_of(waits_at_, [](std::int64_t page) { return page >= 0; });
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
    const auto until = std::chrono::steady_clock::now() + kPatience;
    std::set<int> waiting = threads;
    std::set<std::string> said;
    while (!waiting.empty()) {
      for (const int thread : threads) {
        if (!waiting.contains(thread)) continue;
        Worker& worker = workers().at(static_cast<std::size_t>(thread));
        if (!worker.idle_by(std::chrono::steady_clock::now() + std::chrono::microseconds(30))) continue;
        said.insert(fmt::format("thread {}: {}", thread, worker.outcome()));
        waiting.erase(thread);
      }
      for (const int thread : read_messages(said)) waiting.erase(thread);
      if (std::chrono::steady_clock::now() < until) continue;
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

  static int name_of(std::uint32_t id) {
    for (int i = 0; i <= kThreads; ++i) {
      if (workers().at(static_cast<std::size_t>(i)).id() == id) return i;
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
      if (!workers().at(static_cast<std::size_t>(i)).busy()) waits_at_.at(static_cast<std::size_t>(i)) = -1;
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
    if (elsewhere && world_.other() == nullptr) return say("skipped");
    // Of a private page that waits to be written the kernel has a copy already; here it is copied when it is written.
    const bool copied = world_.copies() && tried_.at(static_cast<std::size_t>(step.page));
    if ((step.op == Op::remove && world_.copies()) || (step.op == Op::other_write && copied)) return say("skipped");
    Worker& worker = workers().at(kThreads);
    std::byte* const at =
        (elsewhere ? world_.other() : world_.base()) + step.page * static_cast<std::int64_t>(unit_.value);
    worker.start([this, step, at, length] { return changed(step, at, length.value); });
    const auto until = std::chrono::steady_clock::now() + kPatience;
    std::set<std::string> said;
    while (!worker.idle_by(std::chrono::steady_clock::now() + std::chrono::microseconds(50))) {
      read_messages(said);
      if (std::chrono::steady_clock::now() < until) continue;
      hung_ = true;
      return say("{} hangs", to_string(step.op));
    }
    world_.settle();
    read_messages(said);
    for (const std::string& line : said) say("{}", line);
    say("{}: {}", to_string(step.op), worker.outcome());
    if (step.op == Op::remap) {
      remapped_ = true;
      world_.wake(world_.page(0), unit_ * kPages);
      world_.moved(target_.bytes().data());
    }
    if (step.op == Op::replace) {
      split_ = true;
      for (std::int64_t i = step.page; i < step.page + step.count; ++i)
        replaced_.at(static_cast<std::size_t>(i)) = true;
    }
    woken();
  }

  std::string changed(const Step& step, std::byte* at, std::uint64_t length) {
    int status = 0;
    switch (step.op) {
      case Op::other_read:
      case Op::other_write:
        return touch(at + 7, step.op == Op::other_write ? How::store : How::load, step.value);
      case Op::dontneed:
        status = ::madvise(at, length, MADV_DONTNEED);
        break;
      case Op::remove:
        status = ::madvise(at, length, MADV_REMOVE);
        break;
      case Op::replace:
        status =
            ::mmap(at, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) == MAP_FAILED
                ? -1
                : 0;
        break;
      default: {
        target_ = *os::map_memory(unit_ * kPages, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE);
        const std::size_t whole = unit_.value * kPages;
        void* const to = ::mremap(world_.base(), whole, whole, MREMAP_MAYMOVE | MREMAP_FIXED, target_.bytes().data());
        if (to == MAP_FAILED) return fmt::format("errno {}", errno);
        // Nobody else may come to lie where it was.
        ::mmap(world_.base(), whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
        return "moved";
      }
    }
    return status == 0 ? "done" : fmt::format("errno {}", errno);
  }

  /// Everybody comes home, and the contents are compared.
  void end() {
    world_.unregister_range(world_.page(0), unit_ * kPages);
    for (std::int64_t i = 0; i < static_cast<std::int64_t>(kPages); ++i) world_.unregister_range(world_.page(i), unit_);
    world_.wake(world_.page(0), unit_ * kPages);
    for (int i = 0; i < kThreads; ++i) {
      Worker& worker = workers().at(static_cast<std::size_t>(i));
      if (worker.idle_by(std::chrono::steady_clock::now() + kPatience)) {
        const std::string outcome = worker.outcome();
        if (!outcome.empty()) say("at the end thread {}: {}", i, outcome);
      } else {
        say("at the end thread {} hangs", i);
        for (const std::string& line : seen_) fmt::print(stderr, "{}\n", line);
        std::abort();  // it touches memory that is about to go
      }
    }
    for (std::uint64_t i = 0; i < kPages; ++i) {
      say("at the end page {}: {} {}", i, touch(world_.base() + i * unit_.value + 7, How::load),
          touch(world_.base() + i * unit_.value + 4000, How::load));
    }
  }

  World& world_;
  const ByteCount unit_;
  os::MappedMemory source_;
  os::MappedMemory unreadable_;
  os::MappedMemory aside_;
  os::MappedMemory target_;
  std::array<std::int64_t, kThreads> waits_at_{-1, -1, -1};  ///< pages; -1: nowhere
  std::array<bool, kPages> replaced_{};
  std::array<bool, kPages> tried_{};  ///< to write
  std::array<std::uint64_t, kPages> modes_{};
  bool remapped_ = false;
  bool split_ = false;
  bool hung_ = false;
  std::vector<std::string> seen_;
};

}  // namespace

std::vector<std::string> run(const Script& script, World& world) {
  install_handlers();
  return Runner(world).run(script);
}

}  // namespace uffda::conformance
