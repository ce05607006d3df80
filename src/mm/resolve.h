// What the errno of a resolution means: the one place for EEXIST, EAGAIN, ENOENT, EFAULT, ESRCH and partial progress.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "os/userfault.h"
#include "uffda/units.h"

namespace uffda {

enum class Resolution : std::uint8_t {
  done,        ///< every page of the range is mapped, by us or by somebody else before us
  not_cached,  ///< CONTINUE found no page in the kernel's cache (EFAULT)
  try_later,   ///< an event is pending, or memory is short (EAGAIN, ENOMEM, EINTR): fault again
  no_range,    ///< no mapping there (ENOENT)
  gone,        ///< the address space has exited (ESRCH)
  refused,     ///< the mapping there is not of the kind that we were told (EINVAL): it will never work
};

struct Resolved {
  Resolution resolution = Resolution::done;
  ByteCount mapped;   ///< pages that this call mapped
  ByteCount reached;  ///< from the start: how far the range is done
};

/// What becomes of a page that is mapped already (EEXIST).
enum class Mapped : std::uint8_t {
  skip,  ///< go on after it
  stop,  ///< the range ends here: neighbours were only an offer
};

/// Maps the cached pages of the range and wakes it. The caller has them pinned.
Resolved continue_range(os::Userfault& userfault, Address start, ByteCount length, ByteCount page, Mapped mapped,
                        os::Protect protect = os::Protect::no);
/// Copies `bytes` (whole pages) into absent pages and wakes the range.
Resolved copy_range(os::Userfault& userfault, Address start, std::span<const std::byte> bytes, ByteCount page,
                    os::Protect protect = os::Protect::no);
/// Makes the absent pages of the range SIGBUS, and wakes it.
Resolved poison_range(os::Userfault& userfault, Address start, ByteCount length, ByteCount page);

}  // namespace uffda
