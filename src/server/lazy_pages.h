// `uffda criu lazy-pages`: stands in for `criu lazy-pages`. CRIU's restore hands over the userfaultfd of every task,
// and from then on each task's memory is an address space like any other, over the memory of the dump.
//
//   lazy-pages.socket: pid, userfaultfd; pid, userfaultfd; ... RSTF   -> AddressSpaces, mappings of one object
//   faults -> the core; after RSTF everything else -> monitors/mapped_fill; all is there -> the end
//
// CRIU's tasks keep no copy of their userfaultfd: without one in this process an absent page would read as zeroes. So
// there is always a holder (takeover.md), and the end comes when nothing is absent, or when what is cannot be touched
// without SIGBUS.
#pragma once

#include <chrono>
#include <string>

#include "uffda/deadline.h"
#include "uffda/result.h"

namespace uffda {

struct LazyPagesOptions {
  std::string images;  ///< the directory of the dump's images
  std::string work;    ///< where lazy-pages.socket is made; empty: `images`
  std::string pages;   ///< the source of the memory: a pack of the dump, a page server; empty: the images
  int ready_fd = -1;   ///< gets "ready\n" and is closed when CRIU can connect

  Duration warn_after = std::chrono::seconds(5);  ///< a source that takes longer is reported
  Duration deadline = std::chrono::seconds(30);   ///< a source that takes longer has failed
};

/// Serves one restore. The caller becomes the holder, and servers return from this call, too: each is a process that
/// ends with the status that it gets: 0 if every page got its bytes. SIGTERM and SIGINT: what is absent is fetched at
/// once, and then it ends; a second one: what is absent is SIGBUS. Requires: no other thread. Errors: those of the
/// images and of opening the source; invalid_argument (the source is not the memory of this dump), busy (somebody
/// listens there), no_memory (too many tasks).
Result<int> run_lazy_pages(const LazyPagesOptions& options);

}  // namespace uffda
