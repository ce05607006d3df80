// One connection to an NBD server, negotiated and ready for commands. Everything here belongs to one thread at a time.
#pragma once

#include <libnbd.h>

#include <cstdint>
#include <functional>
#include <memory>

#include "sources/nbd_address.h"
#include "uffda/deadline.h"
#include "uffda/result.h"
#include "uffda/units.h"

namespace uffda::nbd {

struct CloseHandle {
  void operator()(nbd_handle* handle) const { nbd_close(handle); }
};
using Handle = std::unique_ptr<nbd_handle, CloseHandle>;

struct Session {
  Handle handle;
  ByteCount size;
  std::uint64_t min_block = 1;      ///< requests are whole blocks of it, except at the end; a power of two
  std::uint64_t max_block = 0;      ///< no request is longer
  std::uint64_t preferred = 0;      ///< a good length for requests; 0: it does not say
  bool several_allowed = false;     ///< the server serves several connections of one client as one
  bool tells_block_status = false;  ///< base:allocation
  bool writable = false;

  [[nodiscard]] bool lost() const { return nbd_aio_is_dead(handle.get()) == 1 || nbd_aio_is_closed(handle.get()) == 1; }
};

/// What the last failed call of libnbd in this thread says.
Error last_error(std::string_view what);

/// Waits until the handle's socket wants attention, `wake` (-1: none) can be read, or `until`, and then lets libnbd
/// work. Errors: what libnbd says; the connection is lost then.
Result<void> wait_and_work(nbd_handle& handle, int wake, TimePoint until);

/// How to wait while connecting: `wake` ends a wait early, and `before_wait` (may be null) says for how long at most,
/// or that it is to be given up.
struct Waiting {
  int wake = -1;
  std::function<Result<TimePoint>()> before_wait;
};

/// Connects and negotiates. Errors, with what to do about them: not_found (no such export; lists what there is),
/// timed_out (no answer), permission_denied (TLS), protocol (not an NBD server), io, and what before_wait says.
/// The name of a host is looked up in the calling thread.
Result<Session> connect(const sources::NbdAddress& address, Deadline deadline, const Waiting& waiting);

}  // namespace uffda::nbd
