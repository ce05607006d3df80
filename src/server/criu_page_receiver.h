// Stores the pages that `criu dump --page-server` sends: pagemap-ID.img and pages-N.img, as CRIU's own page server
// does.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "criu/page_server_wire.h"
#include "os/fd.h"
#include "uffda/result.h"

namespace uffda {

/// Threads: one at a time.
class CriuPageReceiver {
 public:
  /// Makes, or makes empty, the file of a name, for writing.
  using CreateFile = std::function<Result<os::UniqueFd>(const std::string& name)>;
  explicit CriuPageReceiver(CreateFile create) : create_(std::move(create)) {}
  /// Those of a directory, which exists.
  static CreateFile files_in(std::string directory);

  /// One record, whose bytes are read from the socket. False: it was the last, and everything is stored for good.
  /// Errors: protocol, io, no_memory (no space), gone, timed_out.
  Result<bool> handle(int socket, const criu::PageRecord& record);

 private:
  Result<void> open(const criu::PageRecord& record);
  Result<void> add(int socket, const criu::PageRecord& record, std::uint32_t flags);
  Result<void> store();

  const CreateFile create_;
  std::uint64_t id_ = 0;        // of what is open
  std::uint32_t pages_id_ = 0;  // of the last pages-N.img
  os::UniqueFd pagemap_;
  os::UniqueFd pages_;
  std::vector<std::byte> buffer_;
};

}  // namespace uffda
