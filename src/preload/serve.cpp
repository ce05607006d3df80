#include "preload/serve.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>

#include "preload/config.h"
#include "preload/kernel.h"
#include "preload/userfault.h"

namespace uffda::shim {
namespace {

constexpr uint64_t kNotAsked = UINT64_MAX;
struct Seen {
  std::atomic<uint64_t> failures{kNotAsked};
};
constinit Seen g_seen[kMaxMaps]{};

constexpr int kKeptFlags = MAP_FIXED | MAP_FIXED_NOREPLACE | MAP_NORESERVE | MAP_32BIT;

// Steps 3 and 4. False leaves the range unregistered, so that unmapping it waits for nobody.
bool arm(Connection& connection, const Range& range) {
  if (!register_range(range)) return false;
  if (announce(connection, range)) return true;
  unregister_range(range.space, range.start, range.bytes());
  return false;
}

void discard(const MapWish& wish, uintptr_t start) {
  // What replaces a MAP_FIXED mapping is put over it: its place must not be free for another thread in between.
  if ((wish.flags & MAP_FIXED) == 0) (void)kernel(SYS_munmap, start, wish.length);
}

bool finish(Connection& connection, const MapWish& wish, const Range& range) {
  if (kernel(SYS_madvise, range.start, range.bytes(), MADV_DONTFORK) != 0) return false;
  if (!arm(connection, range)) return false;
  if (insert_range(range) && kernel(SYS_mprotect, range.start, range.bytes(), wish.protection) == 0) return true;
  forget_ranges(range.start, range.end);
  unregister_range(range.space, range.start, range.bytes());
  return false;
}

}  // namespace

bool MapWish::shared() const {
  const int type = flags & MAP_TYPE;
  return type == MAP_SHARED || type == MAP_SHARED_VALIDATE;
}

bool MapWish::tracked() const { return shared() && config().maps[map].mode == Mode::kWritable; }

bool announce(Connection& connection, const Range& range) {
  const ServedMap& map = config().maps[range.map];
  const uint64_t object_end = page_up(map.size_bytes);
  if (range.offset >= object_end) return true;
  const uint64_t length = std::min(uint64_t{range.bytes()}, object_end - range.offset);
  const handoff::Token& token = space_at(range.space).token;
  const handoff::Type how = range.tracked ? handoff::Type::kMapShared : handoff::Type::kMap;
  return connection.map(how, token, map.name, range.start, length, range.offset) == Outcome::kOk;
}

long map_served(const MapWish& wish) {
  const ServedMap& map = config().maps[wish.map];
  const DescriptorHeadroom headroom;
  Connection connection;
  const int space = current_space(connection);
  if (space < 0) return -EPERM;
  Descriptor cache;
  handoff::OpenReply reply{};
  if (connection.open(map.name, cache, reply) != Outcome::kOk) return -EIO;
  if (map.size_bytes == 0) learn_size(wish.map, reply.size);
  if (reply.size < map.size_bytes || reply.folio_size != kPage) return -EIO;
  if (uint64_t told = 0; wish.tracked() && g_seen[wish.map].failures.load() == kNotAsked) {
    if (connection.sync(map.name, 0, 0, told) != Outcome::kOk) return -EIO;
    g_seen[wish.map].failures.store(told);
  }
  const int flags = (wish.tracked() ? MAP_SHARED : MAP_PRIVATE) | (wish.flags & kKeptFlags);
  const long start = kernel(SYS_mmap, wish.address, wish.length, PROT_NONE, flags, cache.get(), (off_t)wish.offset);
  if (failed(start)) return start;
  if ((wish.flags & MAP_FIXED) != 0) forget_ranges((uintptr_t)start, (uintptr_t)start + wish.length);
  const Range range{.start = (uintptr_t)start,
                    .end = (uintptr_t)start + wish.length,
                    .offset = wish.offset,
                    .map = (uint16_t)wish.map,
                    .space = (uint16_t)space,
                    .shared = wish.shared(),
                    .tracked = wish.tracked(),
                    .writable = !wish.shared() || wish.writable_descriptor,
                    .inherit = true,
                    .lost = false};
  if (finish(connection, wish, range)) return start;
  discard(wish, range.start);
  return -EIO;
}

uint64_t failures_seen(int map) {
  const uint64_t seen = g_seen[map].failures.load();
  return seen == kNotAsked ? 0 : seen;
}

void note_failures_seen(int map, uint64_t failures) { g_seen[map].failures.store(failures); }

void lose(Range& range) {
  (void)kernel(SYS_mprotect, range.start, range.bytes(), PROT_NONE);
  range.lost = true;
}

void prefetch(uintptr_t start, uintptr_t length) { (void)kernel(SYS_madvise, start, length, kPopulateRead); }

}  // namespace uffda::shim
