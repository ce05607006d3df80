// mremap. With UFFD_FEATURE_EVENT_REMAP the kernel keeps a moved mapping registered and the server reads where it went
// before mremap returns; a mapping that grows stays registered over its new part. So there is no moment in which an
// absent page could read as zero. What is left to do here: tell the server what the new part shows, and the table.
#include <stdarg.h>  // NOLINT(modernize-deprecated-headers)
#include <sys/mman.h>

#include <algorithm>

#include "preload/config.h"
#include "preload/hook.h"
#include "preload/kernel.h"
#include "preload/lock.h"
#include "preload/mappings.h"
#include "preload/serve.h"

namespace uffda::shim {
namespace {

constexpr int kDontUnmap = 4;  // MREMAP_DONTUNMAP, Linux 5.7

struct RemapCall {
  uintptr_t from;
  uintptr_t from_length;  // these two rounded up to pages
  uintptr_t to_length;
  int flags;
  uintptr_t target;  // with MREMAP_FIXED
};

long real_mremap(const RemapCall& call) {
  return kernel(SYS_mremap, call.from, call.from_length, call.to_length, call.flags, call.target);
}

bool served(uintptr_t start, uintptr_t length) {
  const size_t index = first_range_after(start);
  return index < range_count() && range_at(index).start < start + length;
}

// Moves the table's entries of [from, from + length) to `to`. Entries are moved one at a time: source and target do
// not overlap, as the kernel demands.
void move_ranges(uintptr_t from, uintptr_t length, uintptr_t to, bool keep) {
  uintptr_t at = from;
  while (true) {
    const size_t index = first_range_after(at);
    if (index == range_count() || range_at(index).start >= from + length) break;
    Range moved = range_at(index);
    if (moved.start < from) {
      moved.offset += from - moved.start;
      moved.start = from;
    }
    moved.end = std::min(moved.end, from + length);
    at = moved.end;
    if (!keep) forget_ranges(moved.start, moved.end);
    moved.start = moved.start - from + to;
    moved.end = moved.end - from + to;
    (void)insert_range(moved);
  }
}

// What MREMAP_DONTUNMAP left behind: the server has taken the event for a move, and is told anew.
void announce_kept(uintptr_t start, uintptr_t length) {
  const DescriptorHeadroom headroom;
  Connection connection;
  for (size_t i = first_range_after(start); i < range_count() && range_at(i).start < start + length; ++i) {
    Range& range = range_at(i);
    if (!range.lost && !announce(connection, range)) lose(range);
  }
}

// The range that ends at `end` now goes on for `more` bytes: table and server.
bool grow(uintptr_t end, uintptr_t more) {
  const size_t index = first_range_after(end - 1);
  if (index == range_count() || range_at(index).start >= end) return true;
  Range part = range_at(index);
  part.offset += end - part.start;
  part.start = end;
  part.end = end + more;
  if (!insert_range(part)) return false;
  if (part.lost) return true;
  const DescriptorHeadroom headroom;
  Connection connection;
  return announce(connection, part);
}

// The server does not take the new part: nobody would fill it. Everything goes back to where it was.
long undo_growth(const RemapCall& call, uintptr_t now) {
  (void)kernel(SYS_munmap, now + call.from_length, call.to_length - call.from_length);
  forget_ranges(now + call.from_length, now + call.to_length);
  if (now == call.from) return -ENOMEM;
  const RemapCall back{now, call.from_length, call.from_length, MREMAP_MAYMOVE | MREMAP_FIXED, call.from};
  const long reserved = kernel(SYS_mmap, call.from, call.from_length, PROT_NONE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  if (!failed(reserved) && !failed(real_mremap(back))) move_ranges(now, call.from_length, call.from, false);
  return -ENOMEM;
}

// old_size 0 asks for a second mapping of the same shared memory. Ours may be private to the kernel: a new one is made.
long duplicate(const RemapCall& call) {
  const Range source = range_at(first_range_after(call.from));
  if (!source.shared || (call.flags & MREMAP_MAYMOVE) == 0) return -EINVAL;
  return map_served({.address = call.target,
                     .length = call.to_length,
                     .protection = source.tracked && source.writable ? PROT_READ | PROT_WRITE : PROT_READ,
                     .flags = MAP_SHARED | ((call.flags & MREMAP_FIXED) != 0 ? MAP_FIXED : 0),
                     .map = source.map,
                     .offset = source.offset + (call.from - source.start),
                     .writable_descriptor = source.writable});
}

long remap_served(const RemapCall& call) {
  if (call.from_length == 0) return duplicate(call);
  const long answer = real_mremap(call);
  if (failed(answer)) return answer;
  const auto now = (uintptr_t)answer;
  const uintptr_t moved = std::min(call.from_length, call.to_length);
  if (call.to_length < call.from_length) forget_ranges(call.from + moved, call.from + call.from_length);
  if (now != call.from) {
    forget_ranges(now, now + call.to_length);
    const bool keep = (call.flags & kDontUnmap) != 0;
    move_ranges(call.from, moved, now, keep);
    if (keep) announce_kept(call.from, moved);
  }
  if (call.to_length > call.from_length && !grow(now + moved, call.to_length - moved)) {
    return undo_growth(call, now);
  }
  return answer;
}

long remap(const RemapCall& call) {
  const bool fixed = (call.flags & MREMAP_FIXED) != 0;
  const uintptr_t length = call.from_length == 0 ? kPage : call.from_length;
  if (!may_overlap(call.from, length) && !(fixed && may_overlap(call.target, call.to_length))) {
    return real_mremap(call);
  }
  const Guard guard;
  if (served(call.from, length) && call.from % kPage == 0) return remap_served(call);
  const long answer = real_mremap(call);
  if (!failed(answer) && fixed) forget_ranges(call.target, call.target + call.to_length);
  return answer;
}

}  // namespace
}  // namespace uffda::shim

UFFDA_HOOK(void*, mremap, (void* address, size_t from_length, size_t to_length, int flags, ...)) {
  using namespace uffda::shim;
  va_list more;
  va_start(more, flags);
  const uintptr_t target = (flags & (MREMAP_FIXED | kDontUnmap)) != 0 ? va_arg(more, uintptr_t) : 0;
  va_end(more);
  const RemapCall call{reinterpret_cast<uintptr_t>(address), page_up(from_length), page_up(to_length), flags, target};
  return reinterpret_cast<void*>(to_libc(remap(call)));
}
