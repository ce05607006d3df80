// Reads and writes by io_uring: per CPU one thread, one ring, one queue.
//
//   caller:  take a free slot, put the ticket in, append it to the queue; write the eventfd if the thread sleeps (under
//   the mutex) thread:  take the whole queue, mark itself asleep (under the mutex)
//            prepare a read or write for each ticket, submit all and wait for one completion in one system call
//            for each completion: answer the ticket, or prepare the rest of a short read
//
// A caller that comes after the queue was taken finds `asleep_` set and writes the eventfd; a read of it is always
// pending in the ring, so the wait ends. Waking too often costs one turn of the loop; too seldom cannot happen.
#include <pthread.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include <csignal>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <optional>
#include <system_error>
#include <thread>
#include <vector>

#include <fmt/format.h>

#include "base/log.h"
#include "base/mutex.h"
#include "os/ring.h"
#include "sources/file_engine.h"

namespace uffda::sources {

namespace {

/// CPUs beyond this share rings: a ring and its thread cost about 100 KiB.
constexpr unsigned kMaxRings = 16;
/// Reads of this size are reading ahead more than answering a fault: copying them is worth more than waking another
/// CPU, so they go where the least is to do.
constexpr ByteCount kSpreadFrom = 128_KiB;
/// So does a read that would find this many more at home.
constexpr unsigned kCrowd = 2;
/// Rings that share such reads: enough to copy faster than disks deliver, without disturbing every CPU.
constexpr std::size_t kNeighbours = 4;
/// One more than may be in flight: whoever hears an answer may fetch again before the slot of the answered ticket is
/// free.
constexpr unsigned kSlots = kFileTransfers + 1;
constexpr std::uint64_t kWakeTag = ~std::uint64_t{0};
/// The kernel's limit for one registered buffer.
constexpr std::uint64_t kMaxFixedBuffer = std::uint64_t{1} << 30U;

/// One ring and the thread that owns it.
class RingThread {
 public:
  RingThread(const FileAccess& file, std::unique_ptr<os::Ring> ring, os::UniqueFd wake_fd)
      : file_(file), ring_(std::move(ring)), wake_fd_(std::move(wake_fd)), slots_(kSlots) {
    for (Slot& slot : slots_) {
      slot.next = free_;
      free_ = &slot;
    }
  }

  ~RingThread() {
    if (!thread_.joinable()) return;
    UFFDA_ASSERT(thread_.get_id() != std::this_thread::get_id());  // destroyed from within an answer
    {
      const MutexLock lock(mutex_);
      stopping_ = true;
    }
    wake();
    thread_.join();
  }

  RingThread(const RingThread&) = delete;
  RingThread& operator=(const RingThread&) = delete;

  static Result<std::unique_ptr<RingThread>> create(const FileAccess& file, const cpu_set_t& cpus) {
    auto ring = UFFDA_TRY(os::Ring::create(kSlots + 1));
    os::UniqueFd wake_fd(::eventfd(0, EFD_CLOEXEC));
    if (!wake_fd) return fail_errno(errno, "eventfd");
    auto self = std::make_unique<RingThread>(file, std::move(ring), std::move(wake_fd));
    UFFDA_TRY_VOID(self->start_thread(cpus));
    return self;
  }

  void start(FileTransfer transfer) noexcept {
    Slot* slot = nullptr;
    bool asleep = false;
    {
      const MutexLock lock(mutex_);
      slot = free_;
      if (slot != nullptr) {
        free_ = slot->next;
        slot->transfer.emplace(std::move(transfer));
        slot->next = nullptr;
        *queue_end_ = slot;
        queue_end_ = &slot->next;
        asleep = std::exchange(asleep_, false);
        load_.fetch_add(1, std::memory_order_relaxed);
      }
    }
    if (slot == nullptr) transfer.refuse(file_);  // NOLINT(bugprone-use-after-move): only if it was not
    if (asleep) wake();
  }

  /// Reads that are queued, under way or being answered: a hint that is old when it is read.
  [[nodiscard]] unsigned load() const noexcept { return load_.load(std::memory_order_relaxed); }

  void set_arena(std::span<std::byte> arena) {
    const MutexLock lock(mutex_);
    arena_ = arena;
    arena_is_new_ = true;
  }

 private:
  struct Slot {
    std::optional<FileTransfer> transfer;
    Slot* next = nullptr;
  };

  Result<void> start_thread(const cpu_set_t& cpus) {
    // No signal of the program is handled on this thread: the mask is inherited.
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    Result<void> started;
    try {
      thread_ = std::thread([this] { run(); });
    } catch (const std::system_error& error) {
      started = fail_errno(error.code().value(), "starting the thread of a file source");
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    if (!started) return started;
    pthread_setname_np(thread_.native_handle(), "uffda-file");
    if (pthread_setaffinity_np(thread_.native_handle(), sizeof cpus, &cpus) != 0) {
      log(LogLevel::debug, "{}: an I/O thread could not be pinned to its CPU", file_.name);
    }
    return {};
  }

  void wake() const noexcept {
    const std::uint64_t one = 1;
    // Cannot fail: the counter would have to be near 2^64.
    [[maybe_unused]] const ssize_t written = ::write(wake_fd_.get(), &one, sizeof one);
  }

  void run() noexcept {
    prepare_ring();
    arm_wake();
    for (bool stopping = false; !stopping || in_flight_ != 0;) {
      Slot* queue = nullptr;
      std::optional<std::span<std::byte>> arena;
      {
        const MutexLock lock(mutex_);
        queue = std::exchange(queue_, nullptr);
        queue_end_ = &queue_;
        asleep_ = true;
        stopping = stopping_;
        if (std::exchange(arena_is_new_, false)) arena = arena_;
      }
      if (arena) register_arena(*arena);
      while (queue != nullptr) {
        Slot* const slot = std::exchange(queue, queue->next);
        stopping ? cancel(slot) : submit(slot);
      }
      if (stopping && in_flight_ == 0) break;
      ring_->submit_and_wait();
      ring_->reap([this](std::uint64_t tag, std::int32_t result) { completed(tag, result); });
    }
  }

  void prepare_ring() {
    if (const auto enabled = ring_->enable(); !enabled) {
      log(LogLevel::error, "{}: {}", file_.name, enabled.error().message());
      UFFDA_ASSERT(enabled.has_value());
    }
    // Registered files come second to being able to read at all.
    const std::array<int, 2> fds{file_.buffered.get(), file_.direct ? file_.direct.get() : file_.buffered.get()};
    files_registered_ = ring_->register_files(fds).has_value();
  }

  void register_arena(std::span<std::byte> arena) {
    std::vector<iovec> buffers;
    for (std::uint64_t at = 0; at < arena.size(); at += kMaxFixedBuffer) {
      const std::uint64_t length = std::min(kMaxFixedBuffer, arena.size() - at);
      buffers.push_back({arena.data() + at, length});
    }
    const auto registered = ring_->register_buffers(buffers);
    if (registered) {
      fixed_ = arena;
    } else {
      log(LogLevel::info,
          "{}: buffers are not registered for I/O, reads work without ({}); a larger RLIMIT_MEMLOCK helps", file_.name,
          registered.error().message());
    }
  }

  /// The registered buffer that all of `buffer` lies in.
  [[nodiscard]] int fixed_index(std::span<std::byte> buffer) const {
    if (fixed_.empty() || buffer.data() < fixed_.data()) return os::Ring::kNotFixed;
    const auto start = static_cast<std::uint64_t>(buffer.data() - fixed_.data());
    if (start >= fixed_.size() || buffer.size() > fixed_.size() - start) return os::Ring::kNotFixed;
    const std::uint64_t index = start / kMaxFixedBuffer;
    if ((start + buffer.size() - 1) / kMaxFixedBuffer != index) return os::Ring::kNotFixed;
    return static_cast<int>(index);
  }

  void arm_wake() {
    while (!ring_->prepare_stream_read(wake_fd_.get(), std::as_writable_bytes(std::span(&wake_value_, 1)), kWakeTag)) {
      ring_->submit();
    }
  }

  void prepare(Slot* slot) {
    const FileTransfer::Part part = slot->transfer->next(file_);
    const int fd = part.direct ? file_.direct.get() : file_.buffered.get();
    const int file = files_registered_ ? static_cast<int>(part.direct) : fd;
    const auto tag = reinterpret_cast<std::uintptr_t>(slot);
    const int fixed = fixed_index(part.buffer);
    const auto prepared = [&] {
      return part.write ? ring_->prepare_write(file, part.buffer, part.offset, fixed, tag)
                        : ring_->prepare_read(file, part.buffer, part.offset, fixed, tag);
    };
    while (!prepared()) ring_->submit();
  }

  void submit(Slot* slot) {
    ++in_flight_;
    prepare(slot);
  }

  void cancel(Slot* slot) {
    slot->transfer->cancel(file_);
    release(slot);
  }

  void completed(std::uint64_t tag, std::int32_t result) {
    if (tag == kWakeTag) {
      arm_wake();
      return;
    }
    auto* const slot = reinterpret_cast<Slot*>(tag);
    if (slot->transfer->advance(file_, result) == FileTransfer::Step::more) {
      prepare(slot);
      return;
    }
    --in_flight_;
    release(slot);
  }

  void release(Slot* slot) {
    slot->transfer.reset();
    load_.fetch_sub(1, std::memory_order_relaxed);
    const MutexLock lock(mutex_);
    slot->next = free_;
    free_ = slot;
  }

  const FileAccess& file_;
  const std::unique_ptr<os::Ring> ring_;
  const os::UniqueFd wake_fd_;
  std::vector<Slot> slots_;
  std::thread thread_;
  std::atomic<unsigned> load_{0};

  Mutex mutex_;
  Slot* free_ UFFDA_GUARDED_BY(mutex_) = nullptr;
  Slot* queue_ UFFDA_GUARDED_BY(mutex_) = nullptr;
  Slot** queue_end_ UFFDA_GUARDED_BY(mutex_) = &queue_;
  bool asleep_ UFFDA_GUARDED_BY(mutex_) = false;
  bool stopping_ UFFDA_GUARDED_BY(mutex_) = false;
  bool arena_is_new_ UFFDA_GUARDED_BY(mutex_) = false;
  std::span<std::byte> arena_ UFFDA_GUARDED_BY(mutex_);

  // The thread's own.
  std::uint64_t wake_value_ = 0;
  unsigned in_flight_ = 0;
  bool files_registered_ = false;
  std::span<std::byte> fixed_;
};

class RingEngine final : public FileEngine {
 public:
  static Result<std::unique_ptr<FileEngine>> create(const FileAccess& file) {
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    if (::sched_getaffinity(0, sizeof allowed, &allowed) != 0) return fail_errno(errno, "sched_getaffinity");
    auto self = std::make_unique<RingEngine>();
    const auto count = std::clamp<unsigned>(static_cast<unsigned>(CPU_COUNT(&allowed)), 1, kMaxRings);
    std::vector<cpu_set_t> cpus(count);
    unsigned next = 0;
    for (unsigned cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (CPU_ISSET(cpu, &allowed) == 0) continue;
      CPU_SET(cpu, &cpus[next]);
      self->ring_of_cpu_[cpu] = static_cast<std::uint8_t>(next);
      next = (next + 1) % count;
    }
    for (const cpu_set_t& set : cpus) self->threads_.push_back(UFFDA_TRY(RingThread::create(file, set)));
    return self;
  }

  void start(FileTransfer transfer) noexcept override {
    const int cpu = ::sched_getcpu();
    const auto known = cpu >= 0 && cpu < CPU_SETSIZE ? static_cast<std::size_t>(cpu) : 0;
    const std::size_t home = ring_of_cpu_[known];
    const std::size_t best = least_loaded(home);
    const bool crowded = threads_[home]->load() > threads_[best]->load() + kCrowd;
    const std::size_t chosen = transfer.length() < kSpreadFrom && !crowded ? home : best;
    threads_[chosen]->start(std::move(transfer));
  }

  void set_arena(std::span<std::byte> arena) override {
    for (const auto& thread : threads_) thread->set_arena(arena);
  }

 private:
  /// Among `home` and its neighbours; `home` if none is better.
  [[nodiscard]] std::size_t least_loaded(std::size_t home) const noexcept {
    std::size_t best = home;
    for (std::size_t step = 1; step < std::min(threads_.size(), kNeighbours); ++step) {
      const std::size_t other = (home + step) % threads_.size();
      if (threads_[other]->load() < threads_[best]->load()) best = other;
    }
    return best;
  }

  std::vector<std::unique_ptr<RingThread>> threads_;
  std::array<std::uint8_t, CPU_SETSIZE> ring_of_cpu_{};
};

}  // namespace

Result<std::unique_ptr<FileEngine>> make_ring_engine(const FileAccess& file) { return RingEngine::create(file); }

}  // namespace uffda::sources
