// One --map while it is served.
#pragma once

#include <cstdint>
#include <string>

namespace uffda {

/// What a program may do with the file that it sees.
enum class MapMode : std::uint8_t {
  read_only,
  writable,  ///< what it writes goes to the source
  growable,  ///< and it can move the file's end
  cow,       ///< it may open it for writing; what it writes through a mapping stays in that mapping
};

namespace exec {

struct ResolvedMap {
  std::string path;        // absolute, without symbolic links
  std::string asked;       // absolute, as the user spelled it
  std::string mount_path;  // where the FUSE file is: `path`, or elsewhere if that cannot be made (exec/rewriting.h)
  std::string source;      // URI, or name of an export of a running server
  std::string name;        // of the export
  MapMode mode = MapMode::read_only;
  std::uint64_t size = 0;  // of the export in bytes, once the server has been asked
  bool changes = false;    // as the server says: somebody may write to it

  [[nodiscard]] bool is_written_to() const { return mode == MapMode::writable || mode == MapMode::growable; }
};

}  // namespace exec
}  // namespace uffda
