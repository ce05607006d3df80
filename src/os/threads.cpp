#include "os/threads.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <string_view>

#include "os/fd.h"

namespace uffda::os {

std::uint32_t this_thread_id() noexcept { return static_cast<std::uint32_t>(::gettid()); }

int cpu_of_thread(std::uint32_t thread) noexcept {
  constexpr int kUnknown = -1;
  constexpr std::string_view kProc = "/proc/";
  std::array<char, 32> path{};
  char* end = std::ranges::copy(kProc, path.begin()).out;
  end = std::to_chars(end, path.end(), thread).ptr;
  std::ranges::copy(std::string_view("/stat"), end);
  const UniqueFd file(::open(path.data(), O_RDONLY | O_CLOEXEC));
  std::array<char, 1024> text{};
  const ssize_t size = file ? ::read(file.get(), text.data(), text.size()) : 0;
  if (size <= 0) return kUnknown;
  std::string_view rest(text.data(), static_cast<std::size_t>(size));
  // The name, field 2, may hold anything; after its last parenthesis the fields are numbers. The CPU is field 39.
  rest.remove_prefix(std::min(rest.rfind(')') + 1, rest.size()));
  for (int field = 2; field < 39; ++field) rest.remove_prefix(std::min(rest.find(' ') + 1, rest.size()));
  int cpu = kUnknown;
  std::from_chars(rest.data(), rest.data() + rest.size(), cpu);
  return cpu;
}

}  // namespace uffda::os
