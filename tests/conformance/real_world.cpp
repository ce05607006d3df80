#include "conformance/real_world.h"

#include <fmt/format.h>
#include <setjmp.h>  // NOLINT(modernize-deprecated-headers): sigsetjmp is POSIX
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <csignal>
#include <mutex>
#include <thread>

namespace uffda::conformance {
namespace {

thread_local sigjmp_buf escape;
thread_local volatile sig_atomic_t escapable = 0;

void on_fault_signal(int signal) {
  if (escapable == 0) {
    ::signal(signal, SIG_DFL);
    return;
  }
  siglongjmp(escape, signal);
}

/// A touch of one byte. Its outcome: the byte, or the signal.
std::string touch_byte(std::byte* at, How how, std::uint8_t value) {
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

class RealWorkers final : public Workers {
 public:
  std::uint32_t id(int thread) override { return at(thread).id(); }
  bool busy(int thread) override { return at(thread).busy(); }
  void start(int thread, Task task) override { at(thread).start(std::move(task)); }
  bool idle_within(int thread, Duration time) override {
    return at(thread).idle_by(std::chrono::steady_clock::now() + time);
  }
  std::string outcome(int thread) override { return at(thread).outcome(); }
  std::chrono::steady_clock::time_point now() override { return std::chrono::steady_clock::now(); }

 private:
  Worker& at(int thread) { return all_.at(static_cast<std::size_t>(thread)); }
  std::array<Worker, kThreads + 1> all_;
};

}  // namespace

void RealWorld::install_handlers() {
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

RealWorld::RealWorld(const Kind& kind) : World(kind.unit, kind.features.has(UffdFeature::wp_async)) {
  install_handlers();
  const ByteCount length = kind.unit * kPages;
  aside_memory_ = *os::map_memory(length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  ::madvise(aside_memory_.bytes().data(), length.value, MADV_NOHUGEPAGE);
  aside_ = aside_memory_.address();
}

void RealWorld::monitors(std::span<std::byte> memory) {
  base_ = address_of(memory);
  ::madvise(memory.data(), (unit() * kPages).value, MADV_NOHUGEPAGE);
}

Workers& RealWorld::workers() {
  static RealWorkers all;
  return all;
}

std::string RealWorld::touch(Address at, How how, std::uint8_t value) { return touch_byte(pointer(at), how, value); }

std::string RealWorld::change(Change what, Address at, ByteCount length) {
  const auto done = [](bool ok) { return ok ? std::string("done") : fmt::format("errno {}", errno); };
  switch (what) {
    case Change::dontneed:
      return done(::madvise(pointer(at), length.value, MADV_DONTNEED) == 0);
    case Change::remove:
      return done(::madvise(pointer(at), length.value, MADV_REMOVE) == 0);
    default:
      return done(::mmap(pointer(at), length.value, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE,
                         -1, 0) != MAP_FAILED);
  }
}

std::string RealWorld::fork() {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(0);
  int status = 0;
  return child > 0 && ::waitpid(child, &status, 0) == child ? "done" : fmt::format("errno {}", errno);
}

std::string RealWorld::remap() {
  const std::size_t whole = unit().value * kPages;
  target_memory_ = *os::map_memory({whole}, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE);
  target_ = target_memory_.address();
  const void* const to =
      ::mremap(pointer(base_), whole, whole, MREMAP_MAYMOVE | MREMAP_FIXED, target_memory_.bytes().data());
  if (to == MAP_FAILED) return fmt::format("errno {}", errno);
  ::mmap(pointer(base_), whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
  return "moved";
}

}  // namespace uffda::conformance
