// One --map while it is served.
#pragma once

#include <cstdint>
#include <string>

namespace uffda::exec {

struct ResolvedMap {
  std::string path;        // absolute, without symbolic links
  std::string source;      // URI, or name of an export of a running server
  std::string name;        // of the export
  std::uint64_t size = 0;  // of the export in bytes, once the server has been asked
};

}  // namespace uffda::exec
