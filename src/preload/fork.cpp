// fork: the child inherits served mappings, and must not be able to touch them before they are registered again with
// a userfaultfd of its own: unregistered, an absent page reads as zero, and the zero page stays in the cache of all.
//
// So served mappings are MADV_DONTFORK all the time (a fork by raw system call gets a hole there), and inheritable only
// between the prepare handler and the end of fork, with all signals of the forking thread blocked. Child handlers run
// in the order of their registration: only those that a library registered in its constructor come before ours.
#include <dlfcn.h>
#include <pthread.h>
#include <sys/mman.h>

#include "preload/config.h"
#include "preload/hook.h"
#include "preload/kernel.h"
#include "preload/lock.h"
#include "preload/mappings.h"
#include "preload/memory_mark.h"
#include "preload/paths.h"
#include "preload/serve.h"
#include "preload/userfault.h"

namespace uffda::shim {
namespace {

constinit uint64_t g_signals = 0;  // these two under the lock
constinit bool g_nested = false;
using ForkCall = pid_t (*)();
constinit ForkCall g_fork = nullptr;

void advise_inheritable(int advice) {
  for (size_t i = 0; i < range_count(); ++i) {
    const Range& range = range_at(i);
    if (range.inherit) (void)kernel(SYS_madvise, range.start, range.bytes(), advice);
  }
}

void prepare() {
  uint64_t signals = 0;
  if (!lock_for_fork(signals)) {
    g_nested = true;
    return;
  }
  g_signals = signals;
  advise_inheritable(MADV_DOFORK);
}

void after_in_parent() {
  if (g_nested) {
    g_nested = false;
    return;
  }
  advise_inheritable(MADV_DONTFORK);
  unlock_after_fork(g_signals);
}

void lose_in_child(Range& range) {
  lose(range);
  static constinit bool said = false;
  say_once(said, "a forked child cannot have its parent's served mappings: touching them is SIGSEGV");
}

void adopt(Connection& connection, int space, Range& range) {
  (void)kernel(SYS_madvise, range.start, range.bytes(), MADV_DONTFORK);
  if (range.lost) return;
  range.space = (uint16_t)space;
  // The copied page table lets the child write, to shared memory, what nobody would hear of: it begins with none.
  if (range.tracked) (void)kernel(SYS_madvise, range.start, range.bytes(), MADV_DONTNEED);
  if (space < 0 || !register_range(range)) {
    lose_in_child(range);
  } else if (!announce(connection, range)) {
    lose_in_child(range);
    unregister_range(space, range.start, range.bytes());
  }
}

void after_in_child() {
  if (g_nested) {
    g_nested = false;
    return;
  }
  renew_mark();
  for (size_t i = range_count(); i-- > 0;) {
    const Range range = range_at(i);
    if (!range.inherit) forget_ranges(range.start, range.end);
  }
  drop_spaces();
  if (range_count() != 0) {
    const DescriptorHeadroom headroom;
    Connection::forget_failures();
    Connection connection;
    const int space = current_space(connection);
    for (size_t i = 0; i < range_count(); ++i) adopt(connection, space, range_at(i));
  }
  unlock_after_fork(g_signals);
}

[[gnu::constructor]] void start() {
  g_fork = reinterpret_cast<ForkCall>(dlsym(RTLD_NEXT, "_Fork"));
  read_path_environment();
  read_environment();
  if (!active()) return;
  (void)pthread_atfork(prepare, after_in_parent, after_in_child);
}

}  // namespace
}  // namespace uffda::shim

// glibc's fork runs the handlers above and does not come here; a program that calls _Fork asks for no handlers, but
// the mappings are the shim's own business.
UFFDA_HOOK(pid_t, _Fork, ()) {
  using namespace uffda::shim;
  if (g_fork == nullptr) return (pid_t)to_libc(-ENOSYS);
  if (!active()) return g_fork();
  prepare();
  const pid_t child = g_fork();
  const int error = errno;
  if (child == 0) {
    after_in_child();
  } else {
    after_in_parent();
  }
  errno = error;
  return child;
}
