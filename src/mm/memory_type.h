// Memory types: what kind of memory holds the pages, and what userfaultfd may do with it.
//
// A type declares a UffdOps table and makes Backings. It never sees a page table, a userfaultfd, a lock of the core or
// another object's folio, and the core never asks which type it has at hand: it asks the table.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "os/fd.h"
#include "uffda/flags.h"
#include "uffda/result.h"
#include "uffda/uffd_ops.h"
#include "uffda/units.h"

namespace uffda {

class MemoryObject;
struct FolioWait;

/// The memory of one object: where the contents of its folios are cached. The core calls publish for folios that it has
/// claimed, so no two calls for one folio overlap. Threads: any.
class Backing {
 public:
  virtual ~Backing() = default;
  /// Makes the folios of `range` hold `bytes`, whole folios at once for whoever has them mapped: a reader sees nothing
  /// of a folio or all of it. `range` starts at a folio; it ends at one or at the end of the object. Errors: no_memory,
  /// no_space.
  virtual Result<void> publish(ByteRange range, std::span<const std::byte> bytes) = 0;
  /// Frees the folios of `range` and unmaps them wherever they are mapped.
  virtual Result<void> drop(ByteRange range) = 0;
  /// Copies cached bytes out. The caller has the folios pinned.
  virtual Result<void> read(ByteOffset offset, std::span<std::byte> bytes) = 0;
  /// Changes bytes of cached folios, in whatever way whoever has them mapped sees: a part now, and a part a moment
  /// later. The caller has them pinned. Only for types with write protection. Errors: no_memory; unsupported.
  virtual Result<void> write(ByteOffset offset, std::span<const std::byte> bytes);
  /// A descriptor for a client to map, good for reading only. Errors: unsupported, if the type has none.
  virtual Result<os::UniqueFd> share() = 0;
  /// A descriptor for a client to map shared, and to write to. Errors: unsupported, if the type has none.
  virtual Result<os::UniqueFd> share_writable();
  /// Whether the pages that a MAP_PRIVATE mapping has copied on write outlive drop(). If not, the core drops nothing of
  /// an object once it has been mapped privately or handed to a client.
  [[nodiscard]] virtual bool private_copies_outlive_drop() const { return true; }
  /// Only for types whose folios are larger than a staging buffer (kHugeBuffer): the memory of a claimed folio itself,
  /// to read the bytes of `range` into; publish() then gets that very span. Nobody who has registered his mapping sees
  /// it meanwhile. Errors: no_memory.
  virtual Result<std::span<std::byte>> in_place(ByteRange range);
  /// The descriptor for mappings of this process; -1: anonymous memory.
  [[nodiscard]] virtual int mapping_fd() const = 0;
};

enum class FaultFlag : std::uint32_t {
  userfault_continue = 1U << 0U,  ///< look the folio up, and do not allocate, fetch or wait
};
using FaultFlags = Flags<FaultFlag>;

/// What became of a fault.
enum class FaultOutcome : std::uint8_t {
  ready,     ///< the folio is cached; look again
  queued,    ///< a fetch is under way; who waits will hear
  poisoned,  ///< the source failed for good
  later,     ///< a resource is exhausted for the moment; fault again
};

class MemoryType {
 public:
  virtual ~MemoryType() = default;
  [[nodiscard]] virtual std::string_view name() const = 0;
  /// Null: userfaultfd cannot be used with this type, and it cannot be registered.
  [[nodiscard]] virtual const UffdOps* ops() const = 0;
  [[nodiscard]] virtual ByteCount folio_size() const = 0;
  /// Memory for `size` bytes, all absent. Errors: unsupported, no_memory.
  virtual Result<std::unique_ptr<Backing>> create(ByteCount size, const std::string& name) const = 0;
  /// The same with the options that stand behind a type's name, as in "guest_memfd?vm=5". Errors: invalid_argument.
  virtual Result<std::unique_ptr<Backing>> create_with(ByteCount size, const std::string& name,
                                                       std::string_view options) const;
  /// That memory again, by the descriptor that mapping_fd() was in a server that is dead. Errors: unsupported, if what
  /// a type caches is not all behind that descriptor.
  virtual Result<std::unique_ptr<Backing>> adopt(ByteCount size, os::UniqueFd fd) const;

  /// The ordinary page fault: find the folio or have the page source fill it, and knows nothing of userfaultfd. `wait`
  /// hears when the folio is there. A type without get_folio answers FaultFlag::userfault_continue by looking up and
  /// nothing else.
  virtual FaultOutcome fault(MemoryObject& object, FolioIndex index, FaultFlags flags, const FolioWait& wait) const;
};

/// The types that objects can be made of. Types are registered at start-up and stay.
class MemoryTypes {
 public:
  /// Errors: invalid_argument (a table that contradicts itself: the message names the rule), already_exists.
  Result<void> register_type(std::unique_ptr<MemoryType> type);
  /// Errors: not_found (the message lists the types there are).
  [[nodiscard]] Result<const MemoryType*> find(std::string_view name) const;
  [[nodiscard]] const std::vector<std::unique_ptr<MemoryType>>& all() const { return types_; }

 private:
  std::vector<std::unique_ptr<MemoryType>> types_;
};

}  // namespace uffda
