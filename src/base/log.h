// Messages for the person who runs this. Never called on the path of a cached fault, nor with a lock of the core held.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <string_view>

namespace uffda {

enum class LogLevel : std::uint8_t { debug, info, warning, error };

/// Writes one line to standard error if `level` is enabled (environment UFFDA_LOG=debug|info|warning|error; default
/// warning).
void log_line(LogLevel level, std::string_view text) noexcept;
[[nodiscard]] bool log_enabled(LogLevel level) noexcept;

template <typename... Args>
void log(LogLevel level, fmt::format_string<Args...> format, Args&&... args) {
  if (log_enabled(level)) log_line(level, fmt::format(format, std::forward<Args>(args)...));
}

/// A programmer's error: says what and where, and aborts. Stays on in every build.
[[noreturn]] void assertion_failed(const char* expression, const char* file, int line) noexcept;

}  // namespace uffda

#define UFFDA_ASSERT(expression) \
  (static_cast<bool>(expression) ? void(0) : ::uffda::assertion_failed(#expression, __FILE__, __LINE__))
