// What the program calls instead of libc: mmap, munmap, mprotect and the advice calls. Everything that is not exactly a
// served file goes straight to the kernel. (mremap has a file of its own, fork too.)
#include <stdlib.h>  // NOLINT(modernize-deprecated-headers)
#include <sys/mman.h>

#include "preload/config.h"
#include "preload/hook.h"
#include "preload/kernel.h"
#include "preload/lock.h"
#include "preload/mappings.h"
#include "preload/serve.h"

namespace uffda::shim {
namespace {

// Kinds of mapping that shared memory of the server cannot imitate.
constexpr int kForeignFlags = MAP_ANONYMOUS | MAP_HUGETLB | MAP_GROWSDOWN | MAP_SYNC;

struct MmapCall {
  void* address;
  size_t length;
  int protection;
  int flags;
  int fd;
  off_t offset;
};

long real_mmap(const MmapCall& call) {
  return kernel(SYS_mmap, call.address, call.length, call.protection, call.flags, call.fd, call.offset);
}

// The index of the served file that this call maps, or -1: the kernel does, or refuses it in its own words.
int map_of(const MmapCall& call, OpenFile& file) {
  if (call.fd < 0 || (call.flags & kForeignFlags) != 0 || call.length == 0) return -1;
  const int type = call.flags & MAP_TYPE;
  if (type != MAP_SHARED && type != MAP_PRIVATE && type != MAP_SHARED_VALIDATE) return -1;
  if (((uintptr_t)call.offset % kPage) != 0 || call.offset < 0 || call.length > UINTPTR_MAX / 4) return -1;
  if ((call.flags & (MAP_FIXED | MAP_FIXED_NOREPLACE)) != 0 && reinterpret_cast<uintptr_t>(call.address) % kPage != 0)
    return -1;
  const int map = find_map(call.fd, file);
  if (map < 0) return -1;
  const bool writes_shared = type != MAP_PRIVATE && (call.protection & PROT_WRITE) != 0;
  if (writes_shared && !file.writable && config().maps[map].mode != Mode::kReadOnly) return -1;
  if (writes_shared && config().maps[map].mode == Mode::kReadOnly) {
    static constinit bool said = false;
    say_once(said,
             "a served file is read-only: a shared writable mapping of it is refused, a private one works "
             "(--map PATH=URI,rw makes the file writable)");
    return -1;
  }
  return (uint64_t)call.offset < file.size_bytes ? map : -1;
}

// A mapping of something else. What the table had at its place is gone: replaced by MAP_FIXED, or unmapped before by a
// raw system call.
long map_foreign(const MmapCall& call) {
  const auto wanted = reinterpret_cast<uintptr_t>(call.address);
  if ((call.flags & MAP_FIXED) != 0 && may_overlap(wanted, call.length)) {
    const Guard guard;
    const long start = real_mmap(call);
    if (!failed(start)) forget_ranges(wanted, wanted + page_up(call.length));
    return start;
  }
  const long start = real_mmap(call);
  if (!failed(start) && may_overlap((uintptr_t)start, call.length)) {
    const Guard guard;
    forget_ranges((uintptr_t)start, (uintptr_t)start + page_up(call.length));
  }
  return start;
}

// The FUSE file itself, where memory could not be had. Under the lock.
long fall_back(const MmapCall& call) {
  const long start = real_mmap(call);
  if (failed(start) && (call.flags & MAP_FIXED) != 0) (void)kernel(SYS_munmap, call.address, call.length);
  if (!failed(start)) forget_ranges((uintptr_t)start, (uintptr_t)start + page_up(call.length));
  return start;
}

long map_file(const MmapCall& call, int map, bool writable_descriptor) {
  const MapWish wish{.address = reinterpret_cast<uintptr_t>(call.address),
                     .length = page_up(call.length),
                     .protection = call.protection,
                     .flags = call.flags,
                     .map = map,
                     .offset = (uint64_t)call.offset,
                     .writable_descriptor = writable_descriptor};
  Guard guard;
  const long start = map_served(wish);
  if (failed(start)) return start == -EEXIST ? start : fall_back(call);
  guard.release();
  if ((call.flags & (MAP_POPULATE | MAP_LOCKED)) != 0) prefetch((uintptr_t)start, wish.length);
  if ((call.flags & MAP_LOCKED) != 0) (void)kernel(SYS_mlock, start, wish.length);
  return start;
}

long unmap(uintptr_t start, size_t length) {
  if (length == 0 || !may_overlap(start, page_up(length))) return kernel(SYS_munmap, start, length);
  const Guard guard;
  // The server hears of it by the userfaultfd's own event; the kernel waits here until it was read.
  const long answer = kernel(SYS_munmap, start, length);
  if (answer == 0) forget_ranges(start, start + page_up(length));
  return answer;
}

// Errno for making [start, end) have `protection`, or 0. Under the lock.
int refused_protection(uintptr_t start, uintptr_t end, int protection) {
  for (size_t i = first_range_after(start); i < range_count() && range_at(i).start < end; ++i) {
    if (range_at(i).lost && protection != PROT_NONE) return ENOMEM;
    // The descriptor was not open for writing: what the kernel says of a shared mapping of it.
    if (!range_at(i).writable && (protection & PROT_WRITE) != 0) return EACCES;
  }
  return 0;
}

template <typename Call>
long protect(void* address, size_t length, int protection, Call call) {
  const auto start = reinterpret_cast<uintptr_t>(address);
  if (!may_overlap(start, page_up(length))) return call();
  const Guard guard;
  const int error = refused_protection(start, start + page_up(length), protection);
  return error != 0 ? -error : call();
}

}  // namespace
}  // namespace uffda::shim

using namespace uffda::shim;

UFFDA_HOOK(void*, mmap, (void* address, size_t length, int protection, int flags, int fd, off_t offset)) {
  const MmapCall call{address, length, protection, flags, fd, offset};
  if (!active()) return reinterpret_cast<void*>(to_libc(real_mmap(call)));
  OpenFile file;
  const int map = map_of(call, file);
  return reinterpret_cast<void*>(to_libc(map < 0 ? map_foreign(call) : map_file(call, map, file.writable)));
}

UFFDA_HOOK(void*, mmap64, (void* address, size_t length, int protection, int flags, int fd, off64_t offset)) {
  return hook_mmap(address, length, protection, flags, fd, offset);
}

UFFDA_HOOK(int, munmap, (void* address, size_t length)) {
  return (int)to_libc(unmap(reinterpret_cast<uintptr_t>(address), length));
}

UFFDA_HOOK(int, mprotect, (void* address, size_t length, int protection)) {
  return (int)to_libc(
      protect(address, length, protection, [=] { return kernel(SYS_mprotect, address, length, protection); }));
}

UFFDA_HOOK(int, pkey_mprotect, (void* address, size_t length, int protection, int key)) {
  return (int)to_libc(protect(address, length, protection,
                              [=] { return kernel(SYS_pkey_mprotect, address, length, protection, key); }));
}
