// msync. The kernel's part, shared memory of this machine, is done at once; what is written to shared served memory is
// the server's to store, and MS_SYNC waits for that.
#include <sys/mman.h>

#include "preload/config.h"
#include "preload/hook.h"
#include "preload/kernel.h"
#include "preload/lock.h"
#include "preload/mappings.h"
#include "preload/serve.h"
#include "preload/session.h"

namespace uffda::shim {
namespace {

struct Part {
  int map;
  uint64_t offset;
  uint64_t length;
};

// The first part of [start, end) that is tracked; `start` is moved behind it. False: there is none.
bool next_part(uintptr_t& start, uintptr_t end, Part& part) {
  const Guard guard;
  for (size_t i = first_range_after(start); start < end && i < range_count() && range_at(i).start < end; ++i) {
    const Range& range = range_at(i);
    if (!range.tracked || range.lost) continue;
    const uintptr_t from = range.start > start ? range.start : start;
    const uintptr_t to = range.end < end ? range.end : end;
    part = {.map = range.map, .offset = range.offset + (from - range.start), .length = to - from};
    start = to;
    return true;
  }
  return false;
}

bool store(const Part& part) {
  const ServedMap& map = config().maps[part.map];
  if (part.offset >= map.size_bytes) return true;  // behind the end of the file
  const uint64_t left = map.size_bytes - part.offset;
  uint64_t seen = failures_seen(part.map);
  Connection connection;
  {
    const Guard guard;  // the limit of descriptors is moved
    const DescriptorHeadroom headroom;
    if (connection.prepare_sync() != Outcome::kOk) return false;
  }
  const Outcome outcome = connection.sync(map.name, part.offset, part.length < left ? part.length : left, seen);
  note_failures_seen(part.map, seen);
  return outcome == Outcome::kOk;
}

long synchronise(uintptr_t start, size_t length, int flags) {
  const long answer = kernel(SYS_msync, start, length, flags);
  if (answer != 0 || (flags & MS_SYNC) == 0 || !may_overlap(start, page_up(length))) return answer;
  bool all = true;
  Part part{};
  for (uintptr_t at = start; next_part(at, start + page_up(length), part);) all = store(part) && all;
  return all ? 0 : -EIO;
}

}  // namespace
}  // namespace uffda::shim

UFFDA_HOOK(int, msync, (void* address, size_t length, int flags)) {
  using namespace uffda::shim;
  return (int)to_libc(synchronise(reinterpret_cast<uintptr_t>(address), length, flags));
}
