#include "mm/resolve.h"

#include <algorithm>
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
/// it. A range that crosses mappings of theirs (mprotect alone makes two of one) is refused as a whole: it is halved
/// until its parts lie in one.
template <typename Step>
Resolved resolve(os::Userfault& userfault, Address start, ByteCount length, ByteCount page, Mapped mapped,
                 Step&& step) {
  Resolved result;
  ByteCount most = length;
  while (result.reached < length) {
    const ByteCount asked = std::min(most, length - result.reached);
    const os::Progress progress = step(start + result.reached, asked);
    result.reached += progress.done;
    result.mapped += progress.done;
    if (progress.error == 0 && progress.done < asked) break;
    if (progress.done.value != 0) {
      most = length;
      continue;
    }
    if (progress.error == ENOENT && asked > page) {
      most = {align_up(asked.value / 2, page.value)};
      continue;
    }
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
    return userfault.copy(at, bytes.subspan((at - start).value, left.value), os::Wake::yes, protect);
  });
}

Resolved poison_range(os::Userfault& userfault, Address start, ByteCount length, ByteCount page) {
  return resolve(userfault, start, length, page, Mapped::skip,
                 [&](Address at, ByteCount left) { return userfault.poison(at, left, os::Wake::yes); });
}

}  // namespace uffda
