#include "mm/budget.h"

namespace uffda {

bool Budget::take(ByteCount bytes, Reserve reserve_use) {
  const std::uint64_t kept = reserve_use == Reserve::use ? 0 : reserve().value;
  const std::uint64_t most = limit_.value - kept;
  std::uint64_t used = used_.load(std::memory_order_relaxed);
  do {
    if (used > most || bytes.value > most - used) {
      const std::uint64_t wanted = std::min(bytes.value + kept, limit_.value);
      std::uint64_t before = wanted_.load(std::memory_order_relaxed);
      while (reserve_use != Reserve::spare && before < wanted &&
             !wanted_.compare_exchange_weak(before, wanted, std::memory_order_relaxed))
        continue;
      return false;
    }
  } while (!used_.compare_exchange_weak(used, used + bytes.value, std::memory_order_relaxed));
  return true;
}

}  // namespace uffda
