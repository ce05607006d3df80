// One line for the person who runs uffda, as one write: "uffda: ...".
#pragma once

#include <fmt/format.h>
#include <unistd.h>

#include <string>
#include <utility>

namespace uffda::exec {

template <typename... Args>
void say(fmt::format_string<Args...> format, Args&&... args) {
  const std::string line = "uffda: " + fmt::format(format, std::forward<Args>(args)...) + "\n";
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, line.data(), line.size());
}

}  // namespace uffda::exec
