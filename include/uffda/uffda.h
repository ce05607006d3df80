// uffda as a library: any byte source as memory of this process.
//
//   auto memory = uffda::map("file:disk.img");
//   if (!memory) return report(memory.error().message());
//   std::span<const std::byte> bytes = memory->bytes();   // read on touch
//
// Reading bytes that the source cannot deliver raises SIGBUS, as in a mapped file whose disk fails; it never shows
// zeroes.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "uffda/background_fill.h"
#include "uffda/deadline.h"
#include "uffda/handlers.h"
#include "uffda/page_source.h"
#include "uffda/result.h"
#include "uffda/uffd_ops.h"
#include "uffda/units.h"

namespace uffda {

/// Faults inside system calls (a read(2) into, or a write(2) from, an absent page) need a privilege: see the README.
enum class KernelFaults : std::uint8_t {
  required,  ///< opening fails where they are not permitted
  optional,  ///< such system calls fail with EFAULT where they are not permitted
};

/// Limits and policies, each with its default.
struct EngineOptions {
  HandlerPolicy handlers = HandlerPolicy::per_cpu;
  KernelFaults kernel_faults = KernelFaults::required;
  /// Cached pages, and those that are being fetched, never take more; 0: half of the machine's memory. Pages that
  /// cannot be had again (written to a shared mapping, supplied by a monitor) count apart: EngineReport::apart.
  ByteCount budget{};
  Duration warn_after = std::chrono::seconds(5);  ///< a fetch that takes longer is reported on standard error
  Duration deadline = std::chrono::seconds(30);   ///< a fetch that takes longer fails: SIGBUS for who waits
  /// What a Userfault (uffda/userfault.h) of this engine may ask for; empty: there will be none. One that may come
  /// makes faults some microseconds slower. Three of them are of all the engine's memory: wp_unpopulated; wp_async; and
  /// sigbus, which `handlers` in_thread needs, and nothing else can have.
  std::optional<UffdFeatures> monitors;
};

/// What the program may do with a mapping.
enum class Access : std::uint8_t {
  read_only,     ///< pages are shared by all mappings of the object
  private_,      ///< may be written; what is written stays in this mapping
  shared,        ///< may be written; what is written is seen by all mappings of the object, and not by the source
  written_back,  ///< the same, and the source gets what is written: after some seconds, at sync(), and at the end
};

/// When the pages of a mapping are fetched.
enum class Populate : std::uint8_t {
  on_touch,  ///< each when it is touched
  first,     ///< all of them, before it is mapped
};

struct MapOptions {
  Access access = Access::read_only;
  /// Memory type: "shmem"; "anon" for private memory without a page cache; "hugetlb" and "hugetlb-1g" for pages of 2
  /// MiB and 1 GiB, which are taken from the machine's pool; "guest_memfd" for memory of a KVM guest, or
  /// "guest_memfd?vm=FD" for one of this machine. guest_memfd raises no faults, so it needs Populate::first.
  std::string type = "shmem";
  Populate populate = Populate::on_touch;
  ByteCount budget{};  ///< of this object alone, within the engine's; 0: the engine's. At least 2 of the type's pages
};

/// Counters of an engine, at one moment.
struct EngineReport {
  std::uint64_t faults_cached = 0;
  std::uint64_t faults_missing = 0;
  std::uint64_t faults_poisoned = 0;
  std::uint64_t folios_mapped = 0;
  std::uint64_t fetches = 0;
  std::uint64_t folios_evicted = 0;
  std::uint64_t folios_written_back = 0;
  std::uint64_t writeback_failures = 0;
  ByteCount bytes_fetched;
  ByteCount resident;  ///< cached pages, those apart included
  ByteCount apart;     ///< of these, what is not evicted and the budget does not hold
};

/// What a mapping's object is touched for is being recorded, until the object goes. Move-only. Threads: any.
class Recording {
 public:
  Recording(Recording&&) noexcept;
  Recording& operator=(Recording&&) noexcept;
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;
  ~Recording();  ///< the file stays as it was saved last

  /// Writes what was touched until now. The file is also written every two seconds, so that most of it is there after
  /// a crash. Whoever reads it finds a whole one. Errors: io, permission_denied.
  Result<void> save();

 private:
  friend class Memory;
  struct Impl;
  explicit Recording(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// Mapped memory. Move-only; unmapped when it goes: nobody may touch its bytes from then on, and what another thread
/// writes while it goes may be lost. Threads: any.
/// Not inherited by fork(): the child gets SIGSEGV there, not wrong bytes.
class Memory {
 public:
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  Memory(Memory&&) noexcept;
  Memory& operator=(Memory&&) noexcept;
  ~Memory();

  /// Exactly as long as the source.
  [[nodiscard]] std::span<const std::byte> bytes() const;
  /// The same, to write to. Requires: an access other than read_only.
  [[nodiscard]] std::span<std::byte> writable_bytes();
  /// What is fetched, mapped and protected at once: 4 KiB, or the huge pages' size.
  [[nodiscard]] ByteCount page_size() const;
  /// Fetches a range now, and waits for it. Errors: io, timed_out, out_of_range, unsupported (a type without a page
  /// cache).
  Result<void> populate(ByteRange range, Deadline deadline);
  /// The same for all of it, in the background; faults come first. What the source says is zero is left to be touched.
  /// At most `per_second` bytes a second; 0: as fast as the source. The handle keeps the object, and stops the fill
  /// when it goes.
  BackgroundFill populate_in_background(ByteCount per_second = {});
  /// Records which pages are touched, in order and when, to `file` (docs/formats/working-set.md). Once for an object.
  /// Errors: busy, no_memory, and what opening the file said.
  Result<Recording> record(const std::string& file);
  /// Fetches in the background what was recorded in `file`, in its order, as long as that helps. Once for an object.
  /// Errors: busy, no_memory; not_found, invalid_argument (no recording, or one of an object of another size).
  Result<BackgroundFill> prefetch(const std::string& file);
  /// The same of the recording that came with the source (`uffda pack --working-set`). Errors: not_found (none did).
  Result<BackgroundFill> prefetch();
  /// What was written to a range before the call is stored by the source, and outlives a loss of power. A failure to
  /// store something since the last call of this Memory's is told now, once, whatever range it met; what failed stays
  /// here and is written again. Requires: Access::written_back. Errors: io and what else the source said, timed_out,
  /// out_of_range.
  Result<void> sync(ByteRange range, Deadline deadline);
  Result<void> sync(Deadline deadline) { return sync({.start = {}, .length = {bytes().size()}}, deadline); }
  /// Bytes of pages that the source does not have yet.
  [[nodiscard]] ByteCount dirty() const;
  /// The memory's own descriptor, for KVM_SET_USER_MEMORY_REGION2 or to map it elsewhere. It belongs to this Memory;
  /// -1: anonymous memory. Who maps it without a userfaultfd sees zeroes where nothing was fetched.
  [[nodiscard]] int descriptor() const;
  /// Maps the same object once more: its cached pages are shared. Errors: as Engine::map.
  Result<Memory> map_again(Access access) const;

 private:
  friend class Engine;
  friend class DirtyLog;
  struct Impl;
  explicit Memory(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// A page cache, the threads that handle this process's faults, and limits. Threads: any.
class Engine {
 public:
  /// Errors: permission_denied (which privilege, device or sysctl is missing), unsupported (which kernel feature),
  /// no_memory.
  static Result<Engine> create(const EngineOptions& options = {});

  /// Errors: those of open_source, not_found (type), invalid_argument (an empty source, options of the type),
  /// unsupported (the type, or the source, cannot do it; the message says what can), no_memory (it says how to get
  /// more, huge pages for one), io and timed_out (Populate::first: nothing is mapped then).
  Result<Memory> map(std::string_view uri, const MapOptions& options = {});
  /// The same for a source of your own.
  Result<Memory> map(std::unique_ptr<PageSource> source, const MapOptions& options = {});

  [[nodiscard]] EngineReport report() const;

 private:
  friend class Memory;
  friend class Userfault;
  struct Impl;
  explicit Engine(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
  std::shared_ptr<Impl> impl_;
};

/// Maps with an engine of default options that this process keeps.
Result<Memory> map(std::string_view uri, const MapOptions& options = {});
Result<Memory> map(std::unique_ptr<PageSource> source, const MapOptions& options = {});

}  // namespace uffda
