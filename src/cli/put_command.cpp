#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>

#include "cli/put.h"
#include "cli/table.h"

namespace uffda::cli {
namespace {

constexpr std::chrono::milliseconds kBetweenLines{100};
constexpr int kFailed = 1;
constexpr int kInterrupted = 130;

std::atomic<bool> interrupted{false};

void interrupt(int) { interrupted.store(true, std::memory_order_relaxed); }

/// SIGINT and SIGTERM end the copy in order, so that what was stored of it is removed again. The second one kills.
void catch_interrupts() {
  struct sigaction action{};
  action.sa_handler = interrupt;
  action.sa_flags = static_cast<int>(SA_RESETHAND | SA_RESTART);
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
}

/// One line on a terminal, written over again and again.
class ProgressLine {
 public:
  ~ProgressLine() {
    if (shown_) (void)std::fputs("\r\033[K", stderr);
  }

  void show(const PutProgress& progress) {
    const TimePoint now = Clock::now();
    if (!terminal_ || now < next_) return;
    next_ = now + kBetweenLines;
    shown_ = true;
    const double seconds = std::chrono::duration<double>(now - start_).count();
    fmt::print(
        stderr, "\r\033[K{:3.0f} %  {} of {}, {} of data, {}/s",
        100.0 * static_cast<double>(progress.done.value) / static_cast<double>(progress.size.value),
        size_text(progress.done), size_text(progress.size), size_text(progress.stored),
        size_text({static_cast<std::uint64_t>(static_cast<double>(progress.done.value) / std::max(seconds, 0.001))}));
    (void)std::fflush(stderr);
  }

 private:
  const bool terminal_ = ::isatty(STDERR_FILENO) == 1;
  const TimePoint start_ = Clock::now();
  TimePoint next_ = start_ + kBetweenLines;
  bool shown_ = false;
};

}  // namespace

int run_put(const PutCommand& command) {
  catch_interrupts();
  Result<PutProgress> done;
  {
    ProgressLine line;
    done = put(command, [&](const PutProgress& progress) {
      line.show(progress);
      return !interrupted.load(std::memory_order_relaxed);
    });
  }
  if (!done) {
    fmt::print(stderr, "uffda put: {}\n", done.error().message());
    return done.error().code() == Errc::cancelled ? kInterrupted : kFailed;
  }
  fmt::print("{}: {} stored, {} of them data\n", command.uri, size_text(done->size), size_text(done->stored));
  return 0;
}

}  // namespace uffda::cli
