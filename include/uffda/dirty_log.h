// DirtyLog: which pages of a mapping were written since somebody looked last. The base of incremental snapshots and of
// migration: copy everything, then what was written meanwhile, again and again, until little is left.
//
//   auto engine = uffda::Engine::create({.monitors = uffda::UffdFeature::wp_async});
//   auto memory = engine->map("file:disk.img", {.access = uffda::Access::private_});
//   auto log = uffda::DirtyLog::start(*engine, *memory);
//   ...
//   for (uffda::ByteRange range : *log->collect()) send(range, memory->bytes());
//
// Mostly the kernel keeps the log, in the page table (WP_ASYNC and PAGEMAP_SCAN, Linux 6.7): a write costs a fault the
// first time after a look, and no thread of ours has to answer it. Other mappings of the same object have logs of their
// own. Not seen: what a device writes to pinned pages (io_uring fixed buffers), and what MADV_DONTNEED throws away.
//
// Of memory that is written back (Access::written_back) we keep it ourselves, for its first writes come to us anyway;
// the engine needs no wp_async, and cannot have it. That log is of the object: it names what is written through any
// mapping of it. A look costs a writer one fault more for each page that is named.
#pragma once

#include <memory>
#include <vector>

#include "uffda/userfault.h"

namespace uffda {

/// Move-only. Threads: any for each object, one at a time for one log.
class DirtyLog {
 public:
  /// Nothing counts as written from here on. Requires: `memory` is of `engine`, and both outlive this; an engine with
  /// UffdFeature::wp_async among its monitors, unless the memory is written back. With the kernel's log, pages are
  /// fetched one by one while it lasts, without read-ahead, and it costs 3 ms and 2 MiB of page table for each GiB.
  /// Errors: unsupported (the engine's features; the memory type), busy (another monitor has the memory; of memory that
  /// is written back there is one log at a time), timed_out (it is written back, and could not be protected).
  static Result<DirtyLog> start(const Engine& engine, const Memory& memory);

  /// What was written since the last call: whole pages (Memory::page_size) up to the end, ascending, no two of them
  /// adjoin. A write that happens during the call is in this answer or in the next, never in none. Of memory that is
  /// written back, a page that is touched during the call may be named in both. Errors: permission_denied (the
  /// memory is not mapped any more); after it, everything counts as written. timed_out (it is written back, and could
  /// not be protected); nothing is forgotten then.
  Result<std::vector<ByteRange>> collect();
  /// The same without starting anew.
  Result<std::vector<ByteRange>> peek();

  DirtyLog(DirtyLog&&) noexcept;
  DirtyLog& operator=(DirtyLog&&) noexcept;
  DirtyLog(const DirtyLog&) = delete;
  DirtyLog& operator=(const DirtyLog&) = delete;
  ~DirtyLog();

 private:
  class Keeper;
  class KernelKeeper;
  class ObjectKeeper;
  explicit DirtyLog(std::unique_ptr<Keeper> keeper);

  std::unique_ptr<Keeper> keeper_;
};

}  // namespace uffda
