// What `uffda exec` told this process through its environment, copied once before the program runs.
#pragma once

#include <stdint.h>  // NOLINT(modernize-deprecated-headers)
#include <sys/un.h>

#include "server/handoff_wire.h"

namespace uffda::shim {

inline constexpr int kMaxMaps = 64;

enum class Mode : uint8_t {
  kReadOnly,
  kWritable,  // shared mappings can be written to, and the source gets it
  kCow,       // shared mappings can be written to, and nobody else sees it
};

/// One file that the server serves: who it is to fstat(2), and its name there.
struct ServedMap {
  uint32_t device_major;
  uint32_t device_minor;
  uint64_t inode;
  uint64_t size_bytes;  // of the object; 0: of a file that grows, until the server was asked
  Mode mode;
  char name[handoff::kNameSize];
};

struct Config {
  sockaddr_un socket;  // path of the supervisor's relay
  ServedMap maps[kMaxMaps];
  int map_count;  // 0: the shim stays out of the way
};

/// Never changes after the constructor of the shim, but for learn_size.
const Config& config();
inline bool active() { return config().map_count != 0; }

struct OpenFile {
  bool writable = false;
  uint64_t size_bytes = 0;
};
/// The index of the map that `fd` is an open file of, or -1. The descriptor must be one that mmap accepts for reading.
int find_map(int fd, OpenFile& file);
/// Of a file that grows: the server says how large it can become. Under the lock.
void learn_size(int map, uint64_t bytes);

/// Reads UFFDA_SHIM_SOCKET and UFFDA_SHIM_MAPS ("major:minor:ino:size:mode:name[;...]"). Called once, by the
/// constructor.
void read_environment();

}  // namespace uffda::shim
