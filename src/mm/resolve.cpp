#include "mm/resolve.h"

#include <cerrno>

namespace uffda {
namespace {

Resolution meaning_of(int error) {
  switch (error) {
    case EFAULT:
      return Resolution::not_cached;
    case ENOENT:
      return Resolution::no_range;
    case ESRCH:
      return Resolution::gone;
    case EINVAL:
      return Resolution::refused;
    default:
      return Resolution::try_later;
  }
}

/// Repeats `step(at, length)` until the range is done. Progress hides the error that stopped it; the next call shows
/// it.
template <typename Step>
Resolved resolve(os::Userfault& userfault, Address start, ByteCount length, ByteCount page, Mapped mapped,
                 Step&& step) {
  Resolved result;
  while (result.reached < length) {
    const os::Progress progress = step(start + result.reached, length - result.reached);
    result.reached += progress.done;
    result.mapped += progress.done;
    if (progress.error == 0) break;
    if (progress.done.value != 0) continue;
    if (progress.error != EEXIST) {
      result.resolution = meaning_of(progress.error);
      break;
    }
    // Whoever faulted here raced with the one who mapped it, and may be asleep by now.
    userfault.wake(start + result.reached, page);
    result.reached += page;
    if (mapped == Mapped::stop) break;
  }
  return result;
}

}  // namespace

Resolved continue_range(os::Userfault& userfault, Address start, ByteCount length, ByteCount page, Mapped mapped,
                        os::Protect protect) {
  return resolve(userfault, start, length, page, mapped,
                 [&](Address at, ByteCount left) { return userfault.continue_run(at, left, os::Wake::yes, protect); });
}

Resolved copy_range(os::Userfault& userfault, Address start, std::span<const std::byte> bytes, ByteCount page,
                    os::Protect protect) {
  return resolve(userfault, start, {bytes.size()}, page, Mapped::skip, [&](Address at, ByteCount left) {
    return userfault.copy(at, bytes.last(left.value), os::Wake::yes, protect);
  });
}

Resolved poison_range(os::Userfault& userfault, Address start, ByteCount length, ByteCount page) {
  return resolve(userfault, start, length, page, Mapped::skip,
                 [&](Address at, ByteCount left) { return userfault.poison(at, left, os::Wake::yes); });
}

}  // namespace uffda
