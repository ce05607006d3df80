// Reads and writes by threads that call pread and pwrite: where io_uring is refused (containers often do), and to
// measure against.
#include <pthread.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <deque>
#include <optional>
#include <system_error>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "sources/file_engine.h"

namespace uffda::sources {

namespace {

/// Transfers under way at once. Enough to keep an SSD busy; more would only be threads.
constexpr unsigned kFileThreads = 8;

class ThreadEngine final : public FileEngine {
 public:
  explicit ThreadEngine(const FileAccess& file) : file_(file), queue_(kFileTransfers) {}
  ThreadEngine(const ThreadEngine&) = delete;
  ThreadEngine& operator=(const ThreadEngine&) = delete;

  ~ThreadEngine() override {
    {
      const MutexLock lock(mutex_);
      stopping_ = true;
    }
    wanted_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  Result<void> start_threads() {
    // No signal of the program is handled on these threads: the mask is inherited.
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    Result<void> started;
    try {
      for (unsigned i = 0; i < kFileThreads; ++i) {
        threads_.emplace_back([this] { run(); });
        pthread_setname_np(threads_.back().native_handle(), "uffda-file");
      }
    } catch (const std::system_error& error) {
      started = fail_errno(error.code().value(), "starting the threads of a file source");
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    return started;
  }

  void start(FileTransfer transfer) noexcept override {
    {
      const MutexLock lock(mutex_);
      if (count_ < queue_.size()) {
        queue_[(first_ + count_++) % queue_.size()].emplace(std::move(transfer));
        wanted_.notify_one();
        return;
      }
    }
    transfer.refuse(file_);
  }

  void set_arena(std::span<std::byte>) override {}

 private:
  /// The next one; none when it is time to go. With `cancelled` set it is not to be started any more.
  std::optional<FileTransfer> take(bool& cancelled) {
    const MutexLock lock(mutex_);
    while (count_ == 0 && !stopping_) wanted_.wait_until(mutex_, Clock::now() + std::chrono::seconds(10));
    cancelled = stopping_;
    if (count_ == 0) return std::nullopt;
    std::optional<FileTransfer> transfer = std::move(queue_[first_]);
    queue_[first_].reset();
    first_ = (first_ + 1) % queue_.size();
    --count_;
    return transfer;
  }

  void run() noexcept {
    bool cancelled = false;
    while (std::optional<FileTransfer> transfer = take(cancelled)) {
      if (cancelled) {
        transfer->cancel(file_);
        continue;
      }
      for (auto step = FileTransfer::Step::more; step == FileTransfer::Step::more;) {
        const FileTransfer::Part part = transfer->next(file_);
        const int fd = part.direct ? file_.direct.get() : file_.buffered.get();
        const auto offset = static_cast<off_t>(part.offset);
        const ssize_t done = part.write ? ::pwrite(fd, part.buffer.data(), part.buffer.size(), offset)
                                        : ::pread(fd, part.buffer.data(), part.buffer.size(), offset);
        step = transfer->advance(file_, done < 0 ? -errno : done);
      }
    }
  }

  const FileAccess& file_;
  std::vector<std::thread> threads_;

  Mutex mutex_;
  CondVar wanted_;
  std::vector<std::optional<FileTransfer>> queue_ UFFDA_GUARDED_BY(mutex_);  ///< a ring buffer
  std::size_t first_ UFFDA_GUARDED_BY(mutex_) = 0;
  std::size_t count_ UFFDA_GUARDED_BY(mutex_) = 0;
  bool stopping_ UFFDA_GUARDED_BY(mutex_) = false;
};

}  // namespace

Result<std::unique_ptr<FileEngine>> make_thread_engine(const FileAccess& file) {
  auto engine = std::make_unique<ThreadEngine>(file);
  UFFDA_TRY_VOID(engine->start_threads());
  return engine;
}

}  // namespace uffda::sources
