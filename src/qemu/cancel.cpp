#include "qemu/cancel.h"

#include <algorithm>

#include "server/packet.h"

namespace uffda::qemu {

Result<void> Cancel::check() const {
  if (flag_ != nullptr && *flag_) return fail(Errc::cancelled, "interrupted");
  return {};
}

Result<void> Cancel::wait(int socket, short events, Deadline deadline) const {
  for (;;) {
    UFFDA_TRY_VOID(check());
    const Deadline look = Deadline::at(std::min(deadline.when(), Clock::now() + kLook));
    auto waited = handoff::wait_socket(socket, events, look);
    if (waited || waited.error().code() != Errc::timed_out || deadline.passed()) return waited;
  }
}

}  // namespace uffda::qemu
