// Who follows which folios of an object are used: a monitor that records a working set, or counts what prefetching was
// good for. The core knows no more of it than this.
#pragma once

#include "uffda/units.h"

namespace uffda {

/// Both are called on the path of a fault, possibly in a signal handler and with a lock of the core held: they neither
/// wait, nor allocate, nor call the core. Threads: any.
class FolioObserver {
 public:
  virtual ~FolioObserver() = default;
  /// Somebody touched `folios`, or had them mapped beside the one that he touched. Not only at the first touch.
  virtual void touched(FolioRange folios) noexcept = 0;
  /// They are dropped from the cache.
  virtual void evicted(FolioRange folios) noexcept = 0;
};

}  // namespace uffda
