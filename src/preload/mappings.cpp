#include "preload/mappings.h"

#include <atomic>

namespace uffda::shim {
namespace {

constinit Range g_ranges[kMaxRanges]{};
constinit size_t g_count = 0;
// The hull of all ranges, for may_overlap. It may be wider than they are for a moment, never narrower.
constinit std::atomic<uintptr_t> g_low{UINTPTR_MAX};
constinit std::atomic<uintptr_t> g_high{0};

void update_hull() {
  g_low.store(g_count == 0 ? UINTPTR_MAX : g_ranges[0].start, std::memory_order_release);
  g_high.store(g_count == 0 ? 0 : g_ranges[g_count - 1].end, std::memory_order_release);
}

// Not memmove: a thread sanitizer in the program sees that one, but not our lock, and would call it a race. The empty
// asm keeps the compiler from making one.
void move_entry(size_t to, size_t from) {
  g_ranges[to] = g_ranges[from];
  asm volatile("" ::: "memory");
}

void remove_at(size_t index, size_t many) {
  if (many == 0) return;
  for (size_t i = index; i + many < g_count; ++i) move_entry(i, i + many);
  g_count -= many;
}

void make_room_at(size_t index) {
  for (size_t i = g_count; i > index; --i) move_entry(i, i - 1);
  ++g_count;
}

}  // namespace

bool may_overlap(uintptr_t start, uintptr_t length) {
  return start < g_high.load(std::memory_order_acquire) && start + length > g_low.load(std::memory_order_acquire);
}

size_t range_count() { return g_count; }
Range& range_at(size_t index) { return g_ranges[index]; }

size_t first_range_after(uintptr_t address) {
  size_t low = 0;
  size_t high = g_count;
  while (low < high) {
    const size_t middle = (low + high) / 2;
    if (g_ranges[middle].end > address) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

bool split_range_at(uintptr_t address) {
  const size_t index = first_range_after(address);
  if (index == g_count || g_ranges[index].start >= address) return true;
  if (g_count == kMaxRanges) return false;
  make_room_at(index);
  Range& head = g_ranges[index];
  Range& tail = g_ranges[index + 1];
  tail.offset += address - head.start;
  tail.start = address;
  head.end = address;
  return true;
}

void forget_ranges(uintptr_t start, uintptr_t end) {
  if (!split_range_at(start)) {
    // Full, and a hole in the middle of a range: what is behind it leaves the table, too. It stays served, but no
    // child inherits it.
    g_ranges[first_range_after(start)].end = start;
  }
  size_t index = first_range_after(start);
  size_t many = 0;
  while (index + many < g_count && g_ranges[index + many].end <= end) ++many;
  remove_at(index, many);
  if (index < g_count && g_ranges[index].start < end) {
    g_ranges[index].offset += end - g_ranges[index].start;
    g_ranges[index].start = end;
  }
  update_hull();
}

bool insert_range(const Range& range) {
  if (g_count + 1 >= kMaxRanges) return false;  // forget may need one for a split
  forget_ranges(range.start, range.end);
  const size_t index = first_range_after(range.start);
  make_room_at(index);
  g_ranges[index] = range;
  update_hull();
  return true;
}

}  // namespace uffda::shim
