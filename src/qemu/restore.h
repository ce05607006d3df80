// Restoring a machine into a QEMU that was started with -incoming defer: towards it uffda is a source of postcopy,
// which has stopped its guest already and sends pages when they are asked for.
//
//   1. the monitor: postcopy-ram on, migrate-incoming with a descriptor of ours;
//   2. devices, and the word that the guest may run: it runs, with no page at all;
//   3. its pages (ram_push.h), until QEMU has all of them and needs nobody.
//
// If this process ends in 3, QEMU waits (postcopy-paused) with what it has, and another restore goes on from there: by
// way of a keeper (keeper.h), for QEMU's monitor may wait as well.
#pragma once

#include <atomic>
#include <string>

#include "qemu/machine.h"
#include "uffda/deadline.h"
#include "uffda/result.h"
#include "uffda/units.h"

namespace uffda::qemu {

struct RestoreOptions {
  std::string qmp;  ///< path of QEMU's monitor
  StoredMachine machine;
  std::string record;    ///< file for the working set: what is asked for, in order; empty: none
  std::string prefetch;  ///< file of one, to be sent first; empty: what came with the image
  bool no_prefetch = false;
  CoreOptions core;
  const std::atomic<bool>* cancel = nullptr;  ///< set: end, and leave the machine paused; may be null
};

/// What was done. Pages are units of the block's memory.
struct RestoreCounts {
  std::uint64_t asked = 0;  ///< pages that the machine waited for
  ByteCount asked_bytes;
  std::uint64_t pushed = 0;   ///< pages that were sent unasked
  std::uint64_t zeroes = 0;   ///< of both, pages of zeroes
  std::uint64_t before = 0;   ///< pages that an earlier restore had sent
  std::uint64_t fetches = 0;  ///< asked of the sources
  ByteCount fetched;
  bool resumed = false;                ///< an interrupted restore went on
  std::chrono::milliseconds to_run{};  ///< until the devices were sent, and with them the word to run
  std::chrono::milliseconds total{};
};

/// Returns when QEMU has all pages. Requires: no other thread, for it forks. Errors: as Entry::open and enter,
/// open_machine; unsupported (a capability of QEMU), gone (QEMU ended), io and timed_out (a page cannot be had: the
/// message says what to do), cancelled.
Result<RestoreCounts> restore(const RestoreOptions& options);

}  // namespace uffda::qemu
