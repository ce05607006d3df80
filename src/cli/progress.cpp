#include "cli/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>

#include "cli/table.h"

namespace uffda::cli {
namespace {

constexpr std::chrono::milliseconds kBetweenLines{100};
std::atomic<bool> interrupted{false};
std::atomic<int> by_signal{0};

void note_signal(int number) {
  by_signal = number;
  interrupted = true;
}

/// The second signal ends the process, whatever it waits for.
void handle(void (*handler)(int)) {
  struct sigaction action{};
  action.sa_handler = handler;
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
}

}  // namespace

ProgressLine::ProgressLine(std::string what)
    : what_(std::move(what)), on_terminal_(::isatty(STDERR_FILENO) == 1), start_(Clock::now()), next_(start_) {}

ProgressLine::~ProgressLine() {
  if (shown_) fmt::print(stderr, "\r\033[K");
}

void ProgressLine::show(ByteCount done, ByteCount size) {
  const TimePoint now = Clock::now();
  if (!on_terminal_ || now < next_) return;
  next_ = now + kBetweenLines;
  shown_ = true;
  const double share = size.value == 0 ? 1 : static_cast<double>(done.value) / static_cast<double>(size.value);
  const double seconds = std::chrono::duration<double>(now - start_).count();
  const auto rate = static_cast<std::uint64_t>(seconds > 0 ? static_cast<double>(done.value) / seconds : 0);
  constexpr int kWidth = 30;
  const int full = static_cast<int>(share * kWidth);
  fmt::print(stderr, "\r{} [{:=<{}}{: <{}}] {:3.0f} % of {}, {}/s\033[K", what_, "", full, "", kWidth - full,
             share * 100, size_text(size), size_text({rate}));
  (void)std::fflush(stderr);
}

Interruptible::Interruptible() { handle(note_signal); }
Interruptible::~Interruptible() { handle(SIG_DFL); }
const std::atomic<bool>& Interruptible::flag() { return interrupted; }
int Interruptible::status() { return interrupted ? 128 + by_signal : 0; }

}  // namespace uffda::cli
