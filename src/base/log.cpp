#include "base/log.h"

#include <unistd.h>

#include <array>
#include <cstdlib>
#include <cstring>

namespace uffda {
namespace {

constexpr std::array<std::string_view, 4> kNames{"debug", "info", "warning", "error"};

LogLevel level_from_environment() {
  const char* wanted = std::getenv("UFFDA_LOG");
  if (wanted == nullptr) return LogLevel::warning;
  for (std::size_t i = 0; i < kNames.size(); ++i) {
    if (kNames.at(i) == wanted) return static_cast<LogLevel>(i);
  }
  return LogLevel::warning;
}

void write_all(std::string_view text) noexcept {
  while (!text.empty()) {
    const ssize_t written = ::write(STDERR_FILENO, text.data(), text.size());
    if (written <= 0) return;
    text.remove_prefix(static_cast<std::size_t>(written));
  }
}

}  // namespace

bool log_enabled(LogLevel level) noexcept {
  static const LogLevel kThreshold = level_from_environment();
  return level >= kThreshold;
}

// NOLINTNEXTLINE(bugprone-exception-escape): the format is a constant and the buffer is ours: nothing throws
void log_line(LogLevel level, std::string_view text) noexcept {
  if (!log_enabled(level)) return;
  // One write per line, so that lines of several processes do not mix.
  std::array<char, 1024> line{};
  const auto done = fmt::format_to_n(line.data(), line.size() - 1, "uffda: {}{}{}",
                                     level == LogLevel::info ? "" : kNames.at(static_cast<std::size_t>(level)),
                                     level == LogLevel::info ? "" : ": ", text);
  std::size_t length = std::min(done.size, line.size() - 1);
  line.at(length++) = '\n';
  write_all({line.data(), length});
}

void assertion_failed(const char* expression, const char* file, int line) noexcept {
  log_line(LogLevel::error, fmt::format("assertion failed: {} at {}:{}", expression, file, line));
  std::abort();
}

}  // namespace uffda
