// A monitor's side of a local address space: registering ranges and resolving their faults. Registration and events are
// in uffd_register.cpp, resolutions in uffd_resolve.cpp.
//
// The engine's own userfaultfd traps the faults of all its mappings, whoever wants them. So registering marks mappings
// as armed, and a resolution is a change of the page cache (if the mapping shows it) followed by the same ioctl on the
// engine's userfaultfd. Pages of the mapping alone (anonymous and private memory) are the kernel's business as a whole.
#pragma once

#include <memory>

#include "mm/address_space.h"
#include "mm/uffd_context.h"
#include "uffda/userfault.h"

namespace uffda {

/// Whether userfaultfd takes it as a range: whole pages, at least one, below the end of user memory.
bool valid_uffd_range(Address start, ByteCount length);

/// Threads: any. Outcomes and errno values are the kernel's: see Userfault.
class UffdMonitor {
 public:
  UffdMonitor(std::shared_ptr<AddressSpace> space, std::shared_ptr<UffdContext> context)
      : space_(std::move(space)), context_(std::move(context)) {}
  /// Disarms everything; who waits faults again.
  ~UffdMonitor();
  UffdMonitor(const UffdMonitor&) = delete;
  UffdMonitor& operator=(const UffdMonitor&) = delete;

  [[nodiscard]] UffdContext& context() { return *context_; }

  Result<UffdIoctls> register_range(Address start, ByteCount length, UffdModes modes);
  Result<void> unregister_range(Address start, ByteCount length);
  UffdOutcome copy(Address to, Address from, ByteCount length, ResolveFlags flags);
  UffdOutcome zeropage(Address start, ByteCount length, ResolveFlags flags);
  UffdOutcome continue_(Address start, ByteCount length, ResolveFlags flags);
  UffdOutcome poison(Address start, ByteCount length, ResolveFlags flags);
  UffdOutcome move(Address to, Address from, ByteCount length, ResolveFlags flags);
  UffdOutcome writeprotect(Address start, ByteCount length, ResolveFlags flags);
  UffdOutcome wake(Address start, ByteCount length);
  Result<WrittenPages> written(Address start, ByteCount length, std::span<WrittenRange> found, Rearm rearm);

 private:
  /// One resolution under way.
  struct Step {
    Address start;
    ByteCount length;
    os::Wake wake;
    os::Protect protect;
  };

  [[nodiscard]] int can_register(UffdModes modes, Address start, Address end) const UFFDA_REQUIRES(space_->lock_);
  void arm(Mapping& mapping, UffdModes modes) UFFDA_REQUIRES(space_->lock_);
  void disarm(Mapping& mapping) UFFDA_REQUIRES(space_->lock_);

  /// The one mapping that holds the whole range and has a monitor, or null.
  [[nodiscard]] Mapping* target(Address start, ByteCount length) const UFFDA_REQUIRES_SHARED(space_->lock_);
  [[nodiscard]] bool tracks_writes(Address start, Address end) const UFFDA_REQUIRES_SHARED(space_->lock_);
  static bool lost(const Mapping& mapping, FolioIndex index);
  UffdOutcome finish(Address start, ByteCount length, ResolveFlags flags, os::Progress progress);
  os::Progress fill_cache(const Mapping& mapping, const Step& step, std::span<const std::byte> bytes)
      UFFDA_REQUIRES_SHARED(space_->lock_);
  os::Progress copy_part(const Step& step, Address from);
  os::Progress zero_part(const Step& step);
  os::Progress continue_part(const Mapping& mapping, const Step& step) UFFDA_REQUIRES_SHARED(space_->lock_);

  std::shared_ptr<AddressSpace> space_;
  std::shared_ptr<UffdContext> context_;
};

}  // namespace uffda
