// Faults resolved in the thread that takes them: UFFD_FEATURE_SIGBUS turns a fault on an absent page into a signal, and
// its handler resolves it. No switch to another thread, so it is the fastest way; its limits are at
// HandlerPolicy::in_thread.
//
// The signal is synchronous and the engine never touches memory that it serves, so the handler interrupts none of its
// own code and may take its locks. SA_NODEFER: a fault inside somebody else's SIGBUS handler is a fault like any other.
#pragma once

#include <memory>

#include "mm/address_space.h"
#include "uffda/result.h"

namespace uffda {

/// While it lives, SIGBUS at an address of `space` is resolved in the thread. Other SIGBUSes go to the handler that was
/// there before.
class InlineFaults {
 public:
  static constexpr std::size_t kMaxSpaces = 16;  ///< at a time, in one process

  /// Errors: no_memory (kMaxSpaces).
  static Result<std::unique_ptr<InlineFaults>> start(std::shared_ptr<AddressSpace> space);
  ~InlineFaults();
  InlineFaults(const InlineFaults&) = delete;
  InlineFaults& operator=(const InlineFaults&) = delete;

 private:
  InlineFaults(std::shared_ptr<AddressSpace> space, std::size_t slot) : space_(std::move(space)), slot_(slot) {}

  std::shared_ptr<AddressSpace> space_;
  std::size_t slot_;
};

}  // namespace uffda
