#include "preload/memory_mark.h"

#include <sys/mman.h>

#include <atomic>

#include "preload/kernel.h"

namespace uffda::shim {
namespace {

// A page of our own with MADV_WIPEONFORK: a copy of the process reads zeroes here.
alignas(kPage) constinit uint32_t g_marks[kPage / sizeof(uint32_t)]{};
constinit std::atomic<bool> g_marked{false};

std::atomic_ref<uint32_t> mark(Owned what) { return std::atomic_ref<uint32_t>(g_marks[(int)what]); }

}  // namespace

bool mark_memory() {
  if (g_marked) return true;
  if (kernel(SYS_madvise, g_marks, sizeof g_marks, MADV_WIPEONFORK) != 0) return false;
  mark(Owned::kLock) = 1;
  mark(Owned::kSpaces) = 1;
  g_marked = true;
  return true;
}

bool was_copied(Owned what) {
  return g_marked && mark(what).load(std::memory_order_relaxed) == 0 && mark(what).exchange(1) == 0;
}

void renew_mark() {
  if (!g_marked) return;
  mark(Owned::kLock) = 1;
  mark(Owned::kSpaces) = 1;
}

}  // namespace uffda::shim
