// madvise on served memory. Most advice means the same there and goes to the kernel. The exceptions:
//   DONTFORK, DOFORK      the program's wish is remembered; to the kernel they stay DONTFORK (see fork.cpp)
//   HUGEPAGE, COLLAPSE    would fill holes of the shared cache with zeroes
//   REMOVE                would punch a hole into memory that is written back: refused, as by FUSE
//   WILLNEED              the kernel would look for swapped pages; here it fetches
#include <sys/mman.h>

#include "preload/hook.h"
#include "preload/kernel.h"
#include "preload/lock.h"
#include "preload/mappings.h"
#include "preload/serve.h"

namespace uffda::shim {
namespace {

constexpr uintptr_t kWillNeedBytes = uintptr_t{8} << 20;  // WILLNEED promises not to wait for long

bool is_special(int advice) {
  return advice == MADV_DONTFORK || advice == MADV_DOFORK || advice == MADV_HUGEPAGE || advice == kCollapse ||
         advice == MADV_WILLNEED || advice == MADV_REMOVE;
}

void set_inherit(uintptr_t start, uintptr_t end, bool inherit) {
  (void)split_range_at(start);
  (void)split_range_at(end);
  for (size_t i = first_range_after(start); i < range_count() && range_at(i).start < end; ++i) {
    range_at(i).inherit = inherit;
  }
}

// Gives `advice` to what lies between the served ranges of [start, end). The first error wins, as in the kernel.
long advise_others(uintptr_t start, uintptr_t end, int advice) {
  long first_error = 0;
  uintptr_t at = start;
  for (size_t i = first_range_after(start); at < end; ++i) {
    const bool more = i < range_count() && range_at(i).start < end;
    const uintptr_t until = more ? range_at(i).start : end;
    if (until > at) {
      const long answer = kernel(SYS_madvise, at, until - at, advice);
      if (answer != 0 && first_error == 0) first_error = answer;
    }
    if (!more) break;
    at = range_at(i).end;
  }
  return first_error;
}

bool any_tracked(size_t index, uintptr_t end) {
  for (; index < range_count() && range_at(index).start < end; ++index) {
    if (range_at(index).tracked) return true;
  }
  return false;
}

long advise(uintptr_t start, size_t length, int advice) {
  const uintptr_t bytes = page_up(length);
  if (!is_special(advice) || start % kPage != 0 || bytes == 0 || !may_overlap(start, bytes)) {
    return kernel(SYS_madvise, start, length, advice);
  }
  const uintptr_t end = start + bytes;
  Guard guard;
  const size_t index = first_range_after(start);
  if (index == range_count() || range_at(index).start >= end) return kernel(SYS_madvise, start, length, advice);
  if (advice == MADV_WILLNEED) {
    guard.release();
    const long answer = kernel(SYS_madvise, start, length, advice);
    if (answer == 0) prefetch(start, bytes < kWillNeedBytes ? bytes : kWillNeedBytes);
    return answer;
  }
  if (advice == kCollapse) return -EINVAL;
  if (advice == MADV_REMOVE) {
    return any_tracked(index, end) ? -EOPNOTSUPP : kernel(SYS_madvise, start, length, advice);
  }
  if (advice == MADV_DONTFORK || advice == MADV_DOFORK) set_inherit(start, end, advice == MADV_DOFORK);
  return advise_others(start, end, advice);
}

}  // namespace
}  // namespace uffda::shim

UFFDA_HOOK(int, madvise, (void* address, size_t length, int advice)) {
  using namespace uffda::shim;
  return (int)to_libc(advise(reinterpret_cast<uintptr_t>(address), length, advice));
}

UFFDA_HOOK(int, posix_madvise, (void* address, size_t length, int advice)) {
  using namespace uffda::shim;
  if (advice == POSIX_MADV_DONTNEED) return 0;  // as libc: MADV_DONTNEED would throw private changes away
  return (int)-advise(reinterpret_cast<uintptr_t>(address), length, advice);
}
