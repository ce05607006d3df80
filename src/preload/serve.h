// Making memory that the server fills: the steps that a mapping goes through before the program may see it.
//
//   1 ask the server for the page cache (a memfd that can only be read, unless what is written goes to the source)
//   2 map it PROT_NONE, private, not inherited by children: nobody can touch it, nothing populates it. Shared, where it
//     is written back
//   3 register it with our userfaultfd: from here on an absent page waits for the server and never reads as zero; nor
//     is a page of shared memory written to before the server has heard of it
//   4 tell the server what it shows
//   5 give it the protection that was asked for
#pragma once

#include <stddef.h>  // NOLINT(modernize-deprecated-headers)
#include <stdint.h>

#include "preload/mappings.h"
#include "preload/session.h"

namespace uffda::shim {

/// What the program asked mmap for. Checked: length > 0, offset a multiple of the page size and inside the object.
struct MapWish {
  uintptr_t address;
  uintptr_t length;  // rounded up to pages
  int protection;
  int flags;
  int map;
  uint64_t offset;
  bool writable_descriptor;
  bool shared() const;
  /// It is to be the memory that everybody shares: what is written there goes to the source.
  bool tracked() const;
};

/// The address of a served mapping, or a negative errno: then nothing of it is left, but what MAP_FIXED replaced is
/// gone as the kernel has it, and the caller maps the FUSE file instead. Under the lock.
long map_served(const MapWish& wish);

/// Tells the server what `range` shows; bytes past the end of the object are left out. Under the lock.
bool announce(Connection& connection, const Range& range);

/// Makes `range` inaccessible for good, after its registration or the server's consent could not be had. Under the
/// lock.
void lose(Range& range);

/// How many failures to store something this process was told of; what it had not mapped yet was told to others.
uint64_t failures_seen(int map);
void note_failures_seen(int map, uint64_t failures);

/// Fetches what [start, start + length) shows, as a hint: errors are not reported. Waits for the source: no lock.
void prefetch(uintptr_t start, uintptr_t length);

}  // namespace uffda::shim
