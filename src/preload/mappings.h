// Which addresses of this process show served files. A sorted table in static memory: it is changed inside mmap, where
// nothing may be allocated. Under the shim's lock, except may_overlap.
//
// The kernel's truth can run ahead of the table only where a program unmaps by raw system call what it mapped through
// libc; insert and forget heal that when the addresses are used again.
#pragma once

#include <stddef.h>  // NOLINT(modernize-deprecated-headers)
#include <stdint.h>

namespace uffda::shim {

inline constexpr size_t kMaxRanges = 65536;  // the kernel's own default limit of mappings is 65,530

struct Range {
  uintptr_t start = 0;
  uintptr_t end = 0;
  uint64_t offset = 0;   // of `start` in the object, bytes
  uint16_t map = 0;      // index in config().maps
  uint16_t space = 0;    // index of the address space (userfaultfd) that it is registered with
  bool shared = false;   // the program asked for MAP_SHARED
  bool tracked = false;  // and it is, with the server's consent: the server hears of the first write to each page
  bool writable = true;  // may become writable: false for MAP_SHARED of a descriptor that is not
  bool inherit = false;  // a forked child gets it: false after the program's own MADV_DONTFORK
  bool lost = false;     // a forked child could not have it: PROT_NONE for good
  uintptr_t bytes() const { return end - start; }
};

/// Lock-free and in favour of yes: false only if no served range can touch [start, start + length).
bool may_overlap(uintptr_t start, uintptr_t length);

size_t range_count();
Range& range_at(size_t index);
/// The index of the first range that ends after `address`.
size_t first_range_after(uintptr_t address);

/// Puts `range` in, in place of whatever the table had there. False: the table is full, nothing changed.
bool insert_range(const Range& range);
/// Cuts [start, end) out of the table.
void forget_ranges(uintptr_t start, uintptr_t end);
/// Makes `address` a border between two ranges if it is inside one. False: the table is full.
bool split_range_at(uintptr_t address);

}  // namespace uffda::shim
