// One --map while it is served.
#pragma once

#include <cstdint>
#include <string>

namespace uffda::exec {

struct ResolvedMap {
  std::string path;        // absolute, without symbolic links
  std::string asked;       // absolute, as the user spelled it
  std::string mount_path;  // where the FUSE file is: `path`, or elsewhere if that cannot be made (exec/rewriting.h)
  std::string source;      // URI, or name of an export of a running server
  std::string name;        // of the export
  std::uint64_t size = 0;  // of the export in bytes, once the server has been asked
};

}  // namespace uffda::exec
