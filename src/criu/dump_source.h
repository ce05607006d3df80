// criu:DIR. The memory of a CRIU dump, as dump.h says, as a page source.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "criu/dump.h"
#include "uffda/page_source.h"
#include "uffda/result.h"

namespace uffda::criu {

/// Whoever has the pages that are not in the dump's files.
class RemotePages {
 public:
  virtual ~RemotePages() = default;
  /// Fills `out` with a task's memory from `address` on, and waits for it. Threads: any. Errors: the server's; gone,
  /// timed_out.
  virtual Result<void> read(pid_t pid, Address address, std::span<std::byte> out, Deadline deadline) = 0;
};

/// Makes the schemes of this directory known to open_source() and to help: criu, criu-page-server. Called once.
void register_criu_sources();

/// criu:DIR, with what a URI cannot have written as %XX.
std::string source_uri(const std::string& directory);

/// The source of a dump. `remote`: null if there is none. Errors: those of Layout and Pages, no_memory (threads).
Result<std::unique_ptr<PageSource>> open_dump(std::string name, const std::string& directory,
                                              std::unique_ptr<RemotePages> remote);

}  // namespace uffda::criu
