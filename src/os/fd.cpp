#include "os/fd.h"

#include <dirent.h>

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

}  // namespace uffda::os
