// What userfaultfd may do with mappings of a memory type: the ops table and its rules.
#pragma once

#include <cstdint>

#include "uffda/flags.h"
#include "uffda/result.h"
#include "uffda/units.h"

namespace uffda {

class MemoryObject;
class FolioRef;

/// Faults that a memory type can raise; the bits are UFFDIO_REGISTER_MODE_*.
enum class UffdMode : std::uint64_t { missing = 1U << 0U, wp = 1U << 1U, minor = 1U << 2U };
using UffdModes = Flags<UffdMode>;

/// Resolutions that a memory type accepts; the bits are those of uffdio_register.ioctls. API, REGISTER, UNREGISTER and
/// WAKE are always there.
enum class UffdIoctl : std::uint64_t {
  copy = 1U << 3U,
  zeropage = 1U << 4U,
  move = 1U << 5U,
  writeprotect = 1U << 6U,
  continue_ = 1U << 7U,
  poison = 1U << 8U,
};
using UffdIoctls = Flags<UffdIoctl>;

/// What a monitor can ask of a userfaultfd; the bits are UFFD_FEATURE_*.
enum class UffdFeature : std::uint64_t {
  pagefault_flag_wp = 1U << 0U,
  event_remap = 1U << 2U,
  event_remove = 1U << 3U,
  missing_hugetlbfs = 1U << 4U,
  missing_shmem = 1U << 5U,
  event_unmap = 1U << 6U,
  sigbus = 1U << 7U,  ///< a fault is SIGBUS where it happens, and no message
  thread_id = 1U << 8U,
  minor_hugetlbfs = 1U << 9U,
  minor_shmem = 1U << 10U,
  exact_address = 1U << 11U,
  wp_hugetlbfs_shmem = 1U << 12U,
  wp_unpopulated = 1U << 13U,
  poison = 1U << 14U,
  wp_async = 1U << 15U,  ///< writes to protected pages go on, and are found by Userfault::written()
  move = 1U << 16U,
};
using UffdFeatures = Flags<UffdFeature>;

/// What userfaultfd may do with mappings of one memory type. Declared once, constant.
struct UffdOps {
  UffdModes modes;
  UffdIoctls ioctls;
  /// Resolves UFFDIO_CONTINUE: the folio cached at `index`, referenced until the FolioRef goes (which is the lock: a
  /// referenced folio is neither evicted nor changed). Never allocates, never does I/O, never touches a page table.
  /// Errors: not_found if nothing is cached. Null: the type resolves CONTINUE through fault() called with
  /// FaultFlag::userfault_continue.
  Result<FolioRef> (*get_folio)(MemoryObject&, FolioIndex) = nullptr;
  /// Mode wp is there on a userfaultfd with WP_ASYNC only: writes are tracked, and raise no fault.
  bool wp_async_only = false;
};

/// Whether pages of the type can be fetched when they are touched: it raises MISSING or MINOR faults. A type that
/// raises neither is filled as a whole before it is mapped, and keeps all of it.
[[nodiscard]] bool raises_faults(const UffdOps& ops);

/// Refuses tables that contradict themselves; the message names the rule. Called when a type is registered, so that a
/// contradiction is never met at fault time. Errors: invalid_argument.
Result<void> validate(const UffdOps& ops);

}  // namespace uffda
