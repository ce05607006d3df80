// DirtyLog: which pages of a mapping were written since somebody looked last. The base of incremental snapshots and of
// migration: copy everything, then what was written meanwhile, again and again, until little is left.
//
//   auto engine = uffda::Engine::create({.monitors = uffda::UffdFeature::wp_async});
//   auto memory = engine->map("file:disk.img", {.access = uffda::Access::private_});
//   auto log = uffda::DirtyLog::start(*engine, *memory);
//   ...
//   for (uffda::ByteRange range : *log->collect()) send(range, memory->bytes());
//
// The kernel keeps the log in the page table (WP_ASYNC and PAGEMAP_SCAN, Linux 6.7): a write costs a fault the first
// time after a look, and no thread of ours has to answer it. Other mappings of the same object have logs of their own.
// Not seen: what a device writes to pinned pages (io_uring fixed buffers), and what MADV_DONTNEED throws away.
#pragma once

#include <vector>

#include "uffda/userfault.h"

namespace uffda {

/// Move-only. Threads: any for each object, one at a time for one log.
class DirtyLog {
 public:
  /// Nothing counts as written from here on. Requires: an engine with UffdFeature::wp_async among its monitors, which
  /// outlives this, and `memory` of it, which does, too. While it lasts, pages are fetched one by one, without
  /// read-ahead. Costs 3 ms and 2 MiB of page table for each GiB. Errors: unsupported (the engine's features; the
  /// memory type), busy (another monitor has the memory).
  static Result<DirtyLog> start(const Engine& engine, const Memory& memory);

  /// What was written since the last call: whole pages (Memory::page_size) up to the end, ascending, no two of them
  /// adjoin. A write
  /// that happens during the call is in this answer or in the next, never in none. Errors: permission_denied (the
  /// memory is not mapped any more); after one, everything counts as written.
  Result<std::vector<ByteRange>> collect();
  /// The same without starting anew.
  Result<std::vector<ByteRange>> peek();

 private:
  DirtyLog(Userfault monitor, Address start, ByteCount length, ByteCount size)
      : monitor_(std::move(monitor)), start_(start), length_(length), size_(size) {}
  Result<std::vector<ByteRange>> look(Rearm rearm);

  Userfault monitor_;
  Address start_;
  ByteCount length_;
  ByteCount size_;
  bool all_ = false;  ///< counts as written
};

}  // namespace uffda
