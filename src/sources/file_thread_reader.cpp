// Reads by threads that call pread: where io_uring is refused (containers often do), and to measure against.
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
#include "sources/file_reader.h"

namespace uffda::sources {

namespace {

/// Reads under way at once. Enough to keep an SSD busy; more would only be threads.
constexpr unsigned kReaderThreads = 8;

class ThreadReader final : public FileReader {
 public:
  explicit ThreadReader(const FileAccess& file) : file_(file), queue_(kFileParallel) {}
  ThreadReader(const ThreadReader&) = delete;
  ThreadReader& operator=(const ThreadReader&) = delete;

  ~ThreadReader() override {
    {
      const MutexLock lock(mutex_);
      stopping_ = true;
    }
    wanted_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  Result<void> start() {
    // No signal of the program is handled on these threads: the mask is inherited.
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    Result<void> started;
    try {
      for (unsigned i = 0; i < kReaderThreads; ++i) {
        threads_.emplace_back([this] { run(); });
        pthread_setname_np(threads_.back().native_handle(), "uffda-file");
      }
    } catch (const std::system_error& error) {
      started = fail_errno(error.code().value(), "starting the threads of a file source");
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    return started;
  }

  void read(FetchTicket ticket, ByteCount done) noexcept override {
    {
      const MutexLock lock(mutex_);
      if (count_ < queue_.size()) {
        queue_[(first_ + count_++) % queue_.size()].emplace(std::move(ticket), done);
        wanted_.notify_one();
        return;
      }
    }
    refuse_overload(file_, std::move(ticket));
  }

  void set_arena(std::span<std::byte>) override {}

 private:
  /// The next read; none when it is time to go. With `cancelled` set it is not to be started any more.
  std::optional<FileRead> take(bool& cancelled) {
    const MutexLock lock(mutex_);
    while (count_ == 0 && !stopping_) wanted_.wait_until(mutex_, Clock::now() + std::chrono::seconds(10));
    cancelled = stopping_;
    if (count_ == 0) return std::nullopt;
    std::optional<FileRead> read = std::move(queue_[first_]);
    queue_[first_].reset();
    first_ = (first_ + 1) % queue_.size();
    --count_;
    return read;
  }

  void run() noexcept {
    bool cancelled = false;
    while (std::optional<FileRead> read = take(cancelled)) {
      if (cancelled) {
        read->cancel(file_.name + ": closed while the read was queued");
        continue;
      }
      for (auto step = FileRead::Step::more; step == FileRead::Step::more;) {
        const FileRead::Part part = read->next(file_);
        const int fd = part.direct ? file_.direct.get() : file_.buffered.get();
        const ssize_t got = ::pread(fd, part.buffer.data(), part.buffer.size(), static_cast<off_t>(part.offset));
        step = read->advance(file_, got < 0 ? -errno : got);
      }
    }
  }

  const FileAccess& file_;
  std::vector<std::thread> threads_;

  Mutex mutex_;
  CondVar wanted_;
  std::vector<std::optional<FileRead>> queue_ UFFDA_GUARDED_BY(mutex_);  ///< a ring buffer
  std::size_t first_ UFFDA_GUARDED_BY(mutex_) = 0;
  std::size_t count_ UFFDA_GUARDED_BY(mutex_) = 0;
  bool stopping_ UFFDA_GUARDED_BY(mutex_) = false;
};

}  // namespace

Result<std::unique_ptr<FileReader>> make_thread_reader(const FileAccess& file) {
  auto reader = std::make_unique<ThreadReader>(file);
  UFFDA_TRY_VOID(reader->start());
  return reader;
}

}  // namespace uffda::sources
