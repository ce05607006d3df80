#include "preload/config.h"

#include <fcntl.h>
#include <stdlib.h>  // NOLINT(modernize-deprecated-headers)
#include <string.h>  // NOLINT(modernize-deprecated-headers)
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "preload/kernel.h"

namespace uffda::shim {
namespace {

constinit Config g_config{};

/// A decimal number and the colon after it; moves `text` behind both.
bool parse_number(const char*& text, uint64_t& value) {
  value = 0;
  const char* first = text;
  while (*text >= '0' && *text <= '9') value = value * 10 + (uint64_t)(*text++ - '0');
  if (text == first || *text != ':') return false;
  ++text;
  return true;
}

bool parse_map(const char*& text, ServedMap& map) {
  uint64_t device_major = 0;
  uint64_t device_minor = 0;
  uint64_t mode = 0;
  if (!parse_number(text, device_major) || !parse_number(text, device_minor) || !parse_number(text, map.inode) ||
      !parse_number(text, map.size_bytes) || !parse_number(text, mode) || mode > (uint64_t)Mode::kCow) {
    return false;
  }
  map.mode = (Mode)mode;
  map.device_major = (uint32_t)device_major;
  map.device_minor = (uint32_t)device_minor;
  size_t length = 0;
  while (text[length] != 0 && text[length] != ';') ++length;
  if (length == 0 || length >= sizeof map.name) return false;
  memcpy(map.name, text, length);
  text += length;
  if (*text == ';') ++text;
  return true;
}

}  // namespace

const Config& config() { return g_config; }

void read_environment() {
  const char* path = secure_getenv("UFFDA_SHIM_SOCKET");
  const char* maps = secure_getenv("UFFDA_SHIM_MAPS");
  if (path == nullptr || maps == nullptr || strlen(path) >= sizeof g_config.socket.sun_path) return;
  g_config.socket.sun_family = AF_UNIX;
  memcpy(g_config.socket.sun_path, path, strlen(path));
  int count = 0;
  while (*maps != 0 && count < kMaxMaps) {
    if (!parse_map(maps, g_config.maps[count])) {
      static constinit bool said = false;
      say_once(said, "UFFDA_SHIM_MAPS is malformed: its files are served through FUSE only");
      break;
    }
    ++count;
  }
  g_config.map_count = count;
}

void learn_size(int map, uint64_t bytes) { g_config.maps[map].size_bytes = bytes; }

int find_map(int fd, OpenFile& file) {
  struct stat status;
  const int saved = errno;
  const int answer = fstat(fd, &status);
  errno = saved;
  if (answer != 0 || !S_ISREG(status.st_mode)) return -1;
  for (int i = 0; i < g_config.map_count; ++i) {
    const ServedMap& map = g_config.maps[i];
    if (map.inode != status.st_ino || map.device_major != gnu_dev_major(status.st_dev) ||
        map.device_minor != gnu_dev_minor(status.st_dev)) {
      continue;
    }
    // mmap of a descriptor that cannot be read is an error: the kernel's own words for it.
    const long flags = kernel(SYS_fcntl, fd, F_GETFL);
    if (failed(flags) || (flags & O_PATH) != 0 || (flags & O_ACCMODE) == O_WRONLY) return -1;
    file = {.writable = (flags & O_ACCMODE) == O_RDWR, .size_bytes = (uint64_t)status.st_size};
    return i;
  }
  return -1;
}

}  // namespace uffda::shim
