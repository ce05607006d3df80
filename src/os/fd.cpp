#include "os/fd.h"

#include <dirent.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstring>

namespace uffda::os {

std::vector<int> open_descriptors() {
  std::vector<int> all;
  DIR* const directory = ::opendir("/proc/self/fd");
  if (directory == nullptr) return all;
  while (const dirent* entry = ::readdir(directory)) {
    int fd = -1;
    const char* const end = entry->d_name + std::strlen(entry->d_name);
    if (std::from_chars(entry->d_name, end, fd).ptr == end && fd != ::dirfd(directory)) all.push_back(fd);
  }
  ::closedir(directory);
  std::ranges::sort(all);
  return all;
}

void close_all_but(std::vector<int> kept) {
  std::ranges::sort(kept);
  unsigned from = 0;
  for (const int fd : kept) {
    const auto number = static_cast<unsigned>(fd);
    if (number > from) (void)::syscall(SYS_close_range, from, number - 1, 0);
    from = std::max(from, number + 1);
  }
  (void)::syscall(SYS_close_range, from, ~0U, 0);
}

}  // namespace uffda::os
